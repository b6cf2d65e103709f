"""timm's own resnetv2 weights under our names: fetched from the Hub, verified, and equal to timm's network."""
import tempfile
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from support.networks import assert_close
from support.published import fill
from timm.models import save_for_hf

from timm_preact.hub import convert, publish
from timm_preact.loading import find_name
from timm_preact.weights import CHECKSUMS, WeightsError, digest_of
from timm_preact.weights.fetch import find_cached
from timm_preact.weights.sources import SOURCES

NAMES = [name for name in SOURCES if '_timm.' in name]
NAME = 'preact_resnet18_timm.ra4_e3600_r224_in1k'
REPO = SOURCES[NAME].hub


@pytest.fixture(scope='module')
def photos(sample):
    """Two real images as timm's config asks for them."""
    transform = timm.data.create_transform(**timm.data.resolve_data_config(
        {}, pretrained_cfg=timm.get_pretrained_cfg(NAME).to_dict()))
    return torch.stack([transform(Image.fromarray(image)) for image in sample.images[::250]])


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """torch.hub's cache, where digests are recorded."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path / 'torch'))
    return tmp_path / 'torch' / 'hub' / 'checkpoints'


def files_of(model, change=lambda tensors: tensors):
    """The files of a repository of timm's, as timm writes them."""
    with tempfile.TemporaryDirectory() as folder:
        save_for_hf(model, folder, safe_serialization=True)
        weights = Path(folder) / 'model.safetensors'
        save_file(change(load_file(weights)), weights)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir() if path.suffix != '.bin'}


@pytest.fixture
def serve(hub, cache, photos, monkeypatch):
    """serve(name, change=...): put timm's network with random weights on the Hub under its name there."""
    def put(name=NAME, state_checksum=False, **kwargs):
        torch.manual_seed(0)
        original = fill(timm.create_model(SOURCES[name].upstream.partition('.')[0]), photos)
        files = files_of(original, **kwargs)
        hub.commit(SOURCES[name].hub, files)
        monkeypatch.delitem(CHECKSUMS, name, raising=False)
        if state_checksum:
            with tempfile.NamedTemporaryFile() as file:
                Path(file.name).write_bytes(files['model.safetensors'])
                monkeypatch.setitem(CHECKSUMS, name, f'sha256:{digest_of(file.name)}')
        return original
    return put


def refusal(name=NAME):
    with pytest.raises(WeightsError) as e:
        timm.create_model(name, pretrained=True)
    assert '\n' not in str(e.value)
    return str(e.value)


def test_every_network_that_timm_publishes_with_batchnorm_has_a_name():
    theirs = {name for name in timm.list_models('resnetv2_*', pretrained=True)
              if name.partition('.')[0] in ('resnetv2_18', 'resnetv2_34', 'resnetv2_50', 'resnetv2_101')}
    assert {SOURCES[name].upstream for name in NAMES} == theirs


@pytest.mark.parametrize('name', [
    NAME, *(pytest.param(name, marks=() if '50_' in name else pytest.mark.slow) for name in NAMES if name != NAME)])
def test_logits_training_and_features_are_those_of_timms_network(name, serve, photos, memory_trimmed):
    original = serve(name)
    model = timm.create_model(name, pretrained=True)
    with torch.no_grad():
        assert_close(model.eval()(photos), original(photos), 1e-5)
        features = original.forward_intermediates(photos, intermediates_only=True)
        ours = model.forward_intermediates(photos, intermediates_only=True)
        assert_close(ours[1:], features[1:], 1e-5)  # the first is the stem's
    losses = []
    for net in (model, original):
        net.train()
        losses.append(F.cross_entropy(net(photos), torch.tensor([1, 2])))
        losses[-1].backward()
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=1e-5)
    gradients = [net.get_parameter(key).grad for net, key in (
        (model, 'stages.1.blocks.0.pre.weight'), (original, 'stages.1.blocks.0.norm1.weight'))]
    assert_close(*gradients, 1e-3)
    statistics = [net.get_buffer(key) for net, key in (
        (model, 'stages.1.blocks.1.residual.norm1.running_var'), (original, 'stages.1.blocks.1.norm2.running_var'))]
    assert_close(*statistics, 1e-5)


def test_other_classes_and_channels_adapt_what_was_published(serve):
    original = serve()
    model = timm.create_model(NAME.partition('.')[0], pretrained=True, num_classes=3, in_chans=1)
    assert model.head.fc.weight.shape == (3, 512)
    assert_close(model.stem.conv.weight, original.stem.conv.weight.sum(1, keepdim=True), 1e-6)


@pytest.mark.parametrize('state_checksum', [True, False], ids=['checksum known', 'first file seen'])
def test_a_repository_that_changed_is_refused(state_checksum, serve, hub, cache):
    original = serve(state_checksum=state_checksum)
    timm.create_model(NAME, pretrained=True)
    with torch.no_grad():
        original.head.fc.weight.add_(1)
    hub.commit(REPO, files_of(original))
    message = refusal()
    assert REPO in message and ('is damaged' if state_checksum else 'has changed') in message
    if not state_checksum:
        (cache / f'{NAME}.sha256').unlink()  # as the message advises
        timm.create_model(NAME, pretrained=True)


def test_the_first_file_must_be_the_network(serve, cache):
    """A tensor too many, one of another shape, and one that is missing; nothing is recorded."""
    for change, problem in (
            (lambda tensors: dict(tensors, more=torch.zeros(1)), 'have no place, more for one'),
            (lambda tensors: dict(tensors, **{'stem.conv.weight': torch.zeros(8, 3, 7, 7)}), 'has the shape'),
            (lambda tensors: {k: t for k, t in tensors.items() if k != 'norm.bias'}, 'norm.bias, which would be')):
        serve(change=change)
        assert problem in refusal()
        assert not list(cache.glob('*.sha256'))


@pytest.mark.parametrize('state_checksum', [True, False], ids=['checksum known', 'checksum of the Hub'])
def test_a_flipped_byte_is_refused(state_checksum, serve, hub):
    serve(state_checksum=state_checksum)
    hub.flip(REPO, 'model.safetensors')
    assert 'is damaged' in refusal()


def test_a_repository_without_safetensors_or_that_is_gone_is_refused(hub, cache):
    assert f'{REPO} cannot be fetched from the Hub' in refusal()
    hub.commit(REPO, {'config.json': b'{}', 'pytorch_model.bin': b'a pickle'})
    assert f'{REPO} has no model.safetensors' in refusal()


def test_what_was_fetched_works_without_internet_access(serve, hub, photos):
    assert find_cached(NAME) is None
    original = serve()
    timm.create_model(NAME, pretrained=True)
    hub.stop()
    with torch.no_grad():
        assert_close(timm.create_model(NAME, pretrained=True).eval()(photos), original(photos), 1e-5)
    assert find_cached(NAME).is_file()


def test_a_mirror_is_asked_in_place_of_timm(serve, lab, tmp_path, photos, monkeypatch):
    original = serve()
    convert(NAME, tmp_path / 'folder')
    publish(tmp_path / 'folder', f'lab/{NAME}')
    monkeypatch.setenv('TIMM_PREACT_HUB_ORG', 'lab')
    lab.requests.clear()
    with torch.no_grad():
        assert_close(timm.create_model(NAME, pretrained=True).eval()(photos), original(photos), 1e-5)
    assert lab.requests and not any(REPO in request for request in lab.requests)


def test_a_file_of_timms_is_recognised(serve, hub, tmp_path):
    """By its tensors, and by its checksum with the tag."""
    serve()
    file = tmp_path / 'model.safetensors'
    file.write_bytes(hub.files(REPO)['model.safetensors'])
    assert find_name(file) == 'preact_resnet18_timm'
    serve(state_checksum=True)
    assert find_name(file) == NAME
