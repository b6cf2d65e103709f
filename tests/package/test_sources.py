"""Published weights: each source's own network, its file put where a download lies, gives the logits that we give."""
import contextlib
import copy
import functools
import os
import re
import shutil
import socket
import struct
import sys
import tempfile
import threading
import zipfile
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file
from support.published import (
    bias_free,
    fair_network,
    fill,
    import_keras,
    publish_akamaster,
    publish_chenyaofo,
    publish_fair,
    publish_keras,
    publish_pytorchcv,
    run_torch7,
    spell_weights,
    unfolded,
    widened,
    with_running_std,
    write_fair,
)
from support.torch7_writer import write_torch7

from timm_preact.errors import UserError
from timm_preact.weights import CHECKSUMS, WeightsError, digest_of
from timm_preact.weights.fetch import fetch, is_writable
from timm_preact.weights.foreign import read_foreign
from timm_preact.weights.keymaps import KEY_MAPS, LayoutError, from_ours, source_of, to_ours
from timm_preact.weights.sources import SOURCES

pytestmark = [
    pytest.mark.filterwarnings('ignore:__array__ implementation:DeprecationWarning'),  # Keras with NumPy 2
    pytest.mark.usefixtures('memory_trimmed')]
CIFAR, IMAGENET = 'preact_resnet20_pcv.cifar10', 'preact_resnet18.pcv_in1k'
AKAMASTER = 'preact_resnet20_orig.aka_cifar10'
KERAS, FAIR = 'preact_resnet50_keras.in1k', 'preact_resnet200_fb.in1k'
SMALL = (1, 2, 2, 1)  # units in the stages of a network like FAIR's
TOLERANCE = 1e-5


def slow(name):
    return pytest.param(name, marks=pytest.mark.slow)


def publish(name, folder, sample, **kwargs):
    publishers = {
        '_keras.': publish_keras, '_fb.': publish_fair, '.aka_': publish_akamaster, '_chen.': publish_chenyaofo}
    publisher = next((publisher for part, publisher in publishers.items() if part in name), publish_pytorchcv)
    return publisher(name, folder, photos(name, sample), **kwargs)


def photos(name, sample, count=2):
    """Real images as the weights of this name want them."""
    config = timm.data.resolve_data_config({}, pretrained_cfg=timm.get_pretrained_cfg(name).to_dict())
    transform = timm.data.create_transform(**config)
    return torch.stack([transform(Image.fromarray(image)) for image in sample.images[::len(sample.images) // count]])


@pytest.fixture(scope='module')
def library(sample):
    """library(name, **kwargs): a published file that several tests read, made when the first one asks for it."""
    with tempfile.TemporaryDirectory() as folder:
        @functools.cache
        def borrow(name, **kwargs):
            return publish(name, Path(tempfile.mkdtemp(dir=folder)), sample, **kwargs)

        yield borrow


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Where torch.hub keeps downloads."""
    monkeypatch.setenv('TORCH_HOME', str(tmp_path))
    folder = tmp_path / 'hub' / 'checkpoints'
    folder.mkdir(parents=True)
    yield folder
    shutil.rmtree(folder)  # up to half a gigabyte


@pytest.fixture
def state_checksum(monkeypatch):
    """Let a file be the one that its publisher states the checksum of."""
    def state(published):
        if published.checksum:
            monkeypatch.setitem(CHECKSUMS, published.name, published.checksum)
        return published
    return state


@pytest.fixture
def download(library, cache, state_checksum):
    """download(name, **kwargs): put a file of the library into the cache."""
    def put(name, **kwargs):
        published = state_checksum(library(name, **kwargs))
        return published._replace(file=Path(shutil.copy(published.file, cache)))
    return put


def overlay(file):
    """pretrained_cfg_overlay for a file of the user's own."""
    return dict(file=str(file), custom_load=file.suffix in ('.h5', '.t7'))


def relative_error(model, original, images):
    """Largest difference of logits over the largest logit."""
    with torch.no_grad():
        ours, theirs = model.eval()(images), original(images)
    assert ours.isfinite().all() and theirs.isfinite().all()
    scale = theirs.abs().max()
    assert (theirs - theirs[0]).abs().max() > 0.05 * scale, 'the images make no difference'
    return ((ours - theirs).abs().max() / scale).item()


def assert_same_tensors(actual, expected, but=()):
    assert actual.keys() - set(but) == expected.keys() - set(but)
    for key in actual.keys() - set(but):
        assert torch.equal(actual[key], expected[key]), key


# pytorchcv


@pytest.mark.parametrize('name', [
    'preact_resnet20_pcv.cifar10',
    'preact_resnet20_pcv.cifar100',
    'preact_resnet20_pcv.svhn',
    'preact_resnet56_pcv.cifar10',
    'preact_resnet110_pcv.cifar10',
    'preact_resnet164_pcv.cifar10',
    slow('preact_resnet272_pcv.cifar10'),
    slow('preact_resnet542_pcv.cifar10'),
    'preact_resnet1001_pcv.cifar10',
    slow('preact_resnet1202_pcv.cifar10'),
    'preact_resnet18.pcv_in1k',
    slow('preact_resnet34.pcv_in1k'),
    'preact_resnet50.pcv_in1k',
    slow('preact_resnet101.pcv_in1k'),
    slow('preact_resnet152.pcv_in1k'),
    slow('preact_resnet200.pcv_in1k'),
])
def test_weights_of_pytorchcv_give_its_logits(name, sample, cache, state_checksum):
    published = state_checksum(publish(name, cache, sample))
    model = timm.create_model(name, pretrained=True)
    assert relative_error(model, published.original, photos(name, sample)) < TOLERANCE
    source = 'pytorchcv_cifar' if '_pcv' in name else 'pytorchcv_imagenet'
    assert_same_tensors(from_ours(model.state_dict(), source), published.original.state_dict())


def test_files_older_than_num_batches_tracked_load(library, tmp_path, sample):
    published = library(CIFAR)
    old = {k: tensor for k, tensor in published.original.state_dict().items() if not k.endswith('num_batches_tracked')}
    torch.save(old, tmp_path / 'old.pth', _use_new_zipfile_serialization=False)
    model = timm.create_model(CIFAR, pretrained=True, pretrained_cfg_overlay=dict(file=str(tmp_path / 'old.pth')))
    assert relative_error(model, published.original, photos(CIFAR, sample)) < TOLERANCE


def test_every_source_of_pytorchcv_is_a_row_of_its_table():
    """Release, checksum, the error in the file name and the number of parameters."""
    store = pytest.importorskip('pytorchcv.models.common.model_store')
    rows = store.get_model_metainfo_dict()
    of_pytorchcv = {name: source for name, source in SOURCES.items() if 'pcv' in name}
    for name, source in of_pytorchcv.items():
        parameters, error, sha1, release = rows[source.upstream]
        file = f'{source.upstream}-{error}-{sha1[:8]}.pth.zip'
        assert source.url == f'{store.imgclsmob_repo_url}/releases/download/{release}/{file}'
        assert source.checksum == CHECKSUMS[name] == f'sha1:{sha1}'
        top1, top5 = source.reported
        assert int(error) == round(100 * (top5 if 'in1k' in name else top1))
        assert sum(p.numel() for p in timm.create_model(name, device='meta').parameters()) == parameters
    published = {upstream for upstream, row in rows.items()
                 if re.fullmatch(r'preresnet\w+_(cifar10|cifar100|svhn)', upstream) and row[2] != 'NA'}
    assert published == {source.upstream for name, source in of_pytorchcv.items() if '_pcv.' in name}


# akamaster and chenyaofo


@pytest.mark.parametrize('name', [
    'preact_resnet20_orig.aka_cifar10',
    'preact_resnet32_orig.aka_cifar10',
    'preact_resnet44_orig.aka_cifar10',
    'preact_resnet56_orig.aka_cifar10',
    'preact_resnet110_orig.aka_cifar10',
    slow('preact_resnet1202_orig.aka_cifar10'),
    'preact_resnet20_orig_chen.cifar10',
    'preact_resnet20_orig_chen.cifar100',
    'preact_resnet32_orig_chen.cifar10',
    'preact_resnet44_orig_chen.cifar100',
    'preact_resnet56_orig_chen.cifar10',
])
def test_weights_of_original_networks_for_cifar_give_the_logits_of_theirs(name, sample, cache, state_checksum):
    published = state_checksum(publish(name, cache, sample))
    model = timm.create_model(name, pretrained=True)
    assert relative_error(model, published.original, photos(name, sample)) < TOLERANCE
    theirs = published.original.state_dict()
    counters = [key for key in theirs if key.endswith('num_batches_tracked')]  # which akamaster's files have not
    source = 'akamaster' if '.aka_' in name else 'torchvision'
    assert_same_tensors(from_ours(model.state_dict(), source), theirs, but=counters)


def test_the_channels_of_centred_shortcuts_are_moved(library, sample, monkeypatch):
    """All tensors fit as they are: without the move only logits show the mistake."""
    published = library(AKAMASTER)
    tensors = published.original.state_dict()
    model = timm.create_model('preact_resnet20_orig')
    monkeypatch.setitem(KEY_MAPS, 'akamaster', KEY_MAPS['akamaster']._replace(centred_shortcuts=False))
    model.load_state_dict(to_ours(tensors, 'akamaster', model))
    assert relative_error(model, published.original, photos(AKAMASTER, sample)) > 100 * TOLERANCE


def test_a_file_of_akamaster_with_another_beginning_of_its_sha256_is_refused(download):
    file = download(AKAMASTER).file
    file.write_bytes(flipped(file.read_bytes()))
    with pytest.raises(WeightsError, match=f'{file} is damaged'):
        timm.create_model(AKAMASTER, pretrained=True)


def test_sources_of_akamaster_and_chenyaofo_state_the_digits_of_the_name():
    sources = [source for source in SOURCES.values() if source.origin.endswith(('akamaster/pytorch_resnet_cifar10',
                                                                                'chenyaofo/pytorch-cifar-models'))]
    assert len(sources) == 6 + 8
    for source in sources:
        digits = re.search(r'-([0-9a-f]{8})\.(th|pt)$', source.url)[1]
        assert source.checksum.removeprefix('sha256:')[:8] == digits
        assert len(source.checksum.removeprefix('sha256:')) in (8, 64)


# Keras


def keras_error(name, published, sample, **kwargs):
    """In float64, for Keras has float64 everywhere but in its norms; ours too starts from the float32 of the file."""
    model = timm.create_model(name, pretrained=True, **kwargs).double()
    return relative_error(model, published.original, photos(name, sample).double())


@pytest.mark.parametrize('name', [
    'preact_resnet50_keras.in1k',
    slow('preact_resnet101_keras.in1k'),
    slow('preact_resnet152_keras.in1k'),
])
def test_weights_of_keras_give_its_logits(name, download, sample):
    assert keras_error(name, download(name), sample) < TOLERANCE


def test_weights_that_keras_3_names_give_its_logits(library, tmp_path, sample):
    published = library(KERAS)
    file = Path(shutil.copy(published.file, tmp_path))
    spell_weights(file, '')
    assert digest_of(file) != digest_of(published.file)
    assert keras_error(KERAS, published, sample, pretrained_cfg_overlay=overlay(file)) < TOLERANCE


def test_sources_of_keras_have_its_addresses_checksums_and_preprocessing(sample):
    keras = import_keras()
    from keras.src.applications.resnet import BASE_WEIGHTS_PATH, WEIGHTS_HASHES
    names = {name: source for name, source in SOURCES.items() if '_keras' in name}
    assert {source.upstream for source in names.values()} == {'ResNet50V2', 'ResNet101V2', 'ResNet152V2'}
    for name, source in names.items():
        upstream = source.upstream.lower()
        assert source.url == f'{BASE_WEIGHTS_PATH}{upstream}_weights_tf_dim_ordering_tf_kernels.h5'
        assert source.checksum == f'md5:{WEIGHTS_HASHES[upstream][0]}'
        config = timm.get_pretrained_cfg(name)
        image = sample.images[0] / 255
        ours = (image - config.mean) / config.std
        theirs = keras.applications.resnet_v2.preprocess_input(sample.images[0].astype('float32'))
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


# FAIR


def fair_error(published, sample, **kwargs):
    model = timm.create_model(FAIR, pretrained=True, **kwargs).double()
    return relative_error(model, published.original, photos(FAIR, sample).double())


def small_fair_error(published, sample):
    return fair_error(published, sample, layers=SMALL, pretrained_cfg_overlay=overlay(published.file))


def test_the_file_of_fair_gives_the_logits_of_its_modules(download, sample):
    """In float64: float32 differs by 1e-5 in 200 layers."""
    assert fair_error(download(FAIR), sample) < 1e-9


EVERYTHING = [unfolded, bias_free, with_running_std, widened]


@pytest.fixture(scope='module')
def small_network(sample):
    """small_network(): FAIR's modules in a small network, whose norms have seen images; each call returns a copy."""
    network = fair_network(SMALL)
    with torch.no_grad():
        run_torch7(network, photos(FAIR, sample), training=True)
    return functools.partial(copy.deepcopy, network)


@pytest.mark.parametrize('kind, variants', [
    *((kind, []) for kind in ('Cuda', 'Float', 'Double')),
    *(('Cuda', [variant]) for variant in EVERYTHING),
    ('Double', EVERYTHING),
], ids=lambda value: '+'.join(variant.__name__ for variant in value) if isinstance(value, list) else value)
def test_every_way_that_such_files_were_written_loads(kind, variants, small_network, tmp_path, sample):
    published = write_fair(FAIR, tmp_path, small_network(), variants, kind=kind, gradients=kind == 'Cuda')
    # running_std in float32 has the variance to that precision
    assert small_fair_error(published, sample) < (1e-6 if with_running_std in variants else 1e-9)


def test_a_wide_norm_whose_other_channels_are_in_use_is_refused(small_network, tmp_path):
    def widened_and_used(network):
        network = widened(network)
        for child in network.fields.get('modules', []):
            if 'running_mean' in child.fields:
                child.fields['running_mean'][-1] = 0.5
        return network

    published = write_fair(FAIR, tmp_path, small_network(), [widened_and_used])
    with pytest.raises(LayoutError, match='channels of statistics where 64 are expected'):
        to_ours(*read_foreign(published.file), timm.create_model('preact_resnet200_fb', layers=SMALL, device='meta'))


def test_the_first_file_seen_under_a_name_without_checksum_is_the_only_one(download, cache):
    file = download(FAIR).file
    assert FAIR not in CHECKSUMS
    assert fetch(FAIR) == file
    record = cache / 'resnet-200.t7.sha256'
    assert record.read_text() == digest_of(file)

    with open(file, 'r+b') as opened:
        opened.seek(file.stat().st_size // 2)
        byte = opened.read(1)[0]
        opened.seek(-1, os.SEEK_CUR)
        opened.write(bytes([byte ^ 1]))
    changed = digest_of(file)
    for _ in range(2):
        with pytest.raises(WeightsError, match=f'{file} is damaged'):
            timm.create_model(FAIR, pretrained=True)
    assert digest_of(file) == changed != record.read_text()

    download(FAIR)
    assert fetch(FAIR) == file


def test_another_network_of_fair_under_the_name_is_refused_and_not_recorded(download, cache):
    download(FAIR, layers=SMALL)
    with pytest.raises(UserError, match=r'4\.1\.0\.0\.0\.weight'):
        timm.create_model(FAIR, pretrained=True)
    assert os.listdir(cache) == ['resnet-200.t7']


# Layouts of timm and torchvision


def resnetv2(depth):
    name = f'preact_resnet{depth}' if depth == 152 else f'preact_resnet{depth}_timm'
    return timm.create_model(f'resnetv2_{depth}'), timm.create_model(name, stem_norm=False)


def resnet(depth):
    return getattr(torchvision.models, f'resnet{depth}')(), timm.create_model(f'preact_resnet{depth}_orig')


@pytest.mark.parametrize('source, create, depth', [
    ('timm_resnetv2', resnetv2, 18),
    pytest.param('timm_resnetv2', resnetv2, 34, marks=pytest.mark.slow),
    ('timm_resnetv2', resnetv2, 50),
    pytest.param('timm_resnetv2', resnetv2, 101, marks=pytest.mark.slow),
    pytest.param('timm_resnetv2', resnetv2, 152, marks=pytest.mark.slow),
    ('torchvision', resnet, 101),
    pytest.param('torchvision', resnet, 152, marks=pytest.mark.slow),
])
def test_a_layout_maps_there_and_back(source, create, depth, sample):
    images = photos(IMAGENET, sample)
    original, model = create(depth)
    theirs = fill(original, images).state_dict()
    model.load_state_dict(to_ours(theirs, source, model))
    assert relative_error(model, original, images) < TOLERANCE
    assert_same_tensors(from_ours(model.state_dict(), source), theirs)


def test_a_file_of_timms_resnetv2_loads_through_timm(tmp_path, sample):
    images = photos(IMAGENET, sample)
    original = fill(timm.create_model('resnetv2_18'), images)
    save_file(original.state_dict(), tmp_path / 'theirs.safetensors')
    model = timm.create_model(
        'preact_resnet18', stem_norm=False, pretrained=True,
        pretrained_cfg_overlay=overlay(tmp_path / 'theirs.safetensors'))
    assert relative_error(model, original, images) < TOLERANCE


# What the comparison of logits tells apart


@pytest.mark.parametrize('name, kwargs', [
    (CIFAR, dict(activated_shortcuts=('first', 'transition'))),
    (CIFAR, dict(activated_shortcuts=())),
    (IMAGENET, dict(activated_shortcuts=())),
    (KERAS, dict(norm_eps=1e-5)),
    (KERAS, dict(stem_pad='ignored')),
    (KERAS, dict(stride_on='1x1')),
    (KERAS, dict(activated_shortcuts=())),
    (FAIR, dict(activated_shortcuts=('transition',))),
    (FAIR, dict(stride_on='1x1')),
])
def test_a_network_that_differs_in_one_choice_has_other_logits(name, kwargs, library, tmp_path, sample):
    """The tensors load just as well: only logits show such a mistake."""
    small = dict(layers=SMALL) if name == FAIR else {}
    published = library(name, **small)
    file = published.file
    if file.suffix == '.zip':
        file = tmp_path / 'unpacked.pth'
        torch.save(published.original.state_dict(), file)
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay(file), **small, **kwargs)
    assert relative_error(model, published.original, photos(name, sample)) > 100 * TOLERANCE


# timm's arguments


@pytest.fixture(params=[CIFAR, IMAGENET, KERAS, FAIR])
def user(request, library, download):
    """create_model(name, pretrained=True) with a published file of each format."""
    if request.param == FAIR:
        file = library(FAIR, layers=SMALL).file
        return functools.partial(
            timm.create_model, FAIR, pretrained=True, layers=SMALL, pretrained_cfg_overlay=overlay(file))
    download(request.param)
    return functools.partial(timm.create_model, request.param, pretrained=True)


HEAD = ('head.fc.weight', 'head.fc.bias')
STEM = 'stem.conv.weight'


def test_other_classes_and_channels_adapt_what_was_published(user):
    published = user().state_dict()
    for kwargs in (dict(num_classes=7), dict(in_chans=1), dict(num_classes=7, in_chans=1)):
        adapted = user(**kwargs).state_dict()
        assert_same_tensors(adapted, published, but=(STEM, *HEAD))
        if 'in_chans' in kwargs:
            torch.testing.assert_close(adapted[STEM], published[STEM].sum(1, keepdim=True))
        else:
            assert torch.equal(adapted[STEM], published[STEM])
        if 'num_classes' in kwargs:
            assert adapted[HEAD[0]].shape == (7, published[HEAD[0]].shape[1])
        else:
            assert_same_tensors({k: adapted[k] for k in HEAD}, {k: published[k] for k in HEAD})


def test_a_network_without_classifier_or_with_another_pooling_has_what_was_published(user):
    published = user().state_dict()
    assert_same_tensors(user(global_pool='max').state_dict(), published)
    headless = user(num_classes=0)
    assert_same_tensors(headless.state_dict(), published, but=HEAD)
    assert headless.eval()(torch.randn(1, 3, 64, 64)).shape == (1, headless.num_features)


def test_features_are_those_of_what_was_published(user):
    full = user().eval()
    features = user(features_only=True).eval()
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        taps = full.forward_intermediates(images, intermediates_only=True)
        for ours, theirs in zip(features(images), taps, strict=True):
            assert torch.equal(ours, theirs)


def test_another_cache_folder_is_used(library, state_checksum, tmp_path, cache):
    published = state_checksum(library(CIFAR))
    shutil.copy(published.file, tmp_path)
    timm.create_model(CIFAR, pretrained=True, cache_dir=str(tmp_path))
    assert (tmp_path / published.file.stem).is_file() and os.listdir(cache) == []


IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.mark.parametrize('name', SOURCES)
def test_the_config_of_a_published_tag_is_the_publishers(name):
    config, source = timm.get_pretrained_cfg(name), SOURCES[name]
    address = dict(hf_hub_id=source.hub) if source.hub else dict(url=source.url)
    assert address.items() <= config.to_dict().items()
    assert (config.license, config.origin_url) == (source.license, source.origin)
    assert source.protocol and source.upstream and None not in source[:1] + source.reported[:1]
    if '_pcv.' in name:
        assert config.num_classes == (100 if name.endswith('.cifar100') else 10)
        assert (config.mean, config.std) == ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
        assert (config.input_size, config.crop_pct) == ((3, 32, 32), 1.0)
        return
    if '_orig' in name:
        classes = 100 if name.endswith('.cifar100') else 10
        assert (config.num_classes, config.input_size, config.crop_pct) == (classes, (3, 32, 32), 1.0)
        assert (config.mean, config.std) == (
            (IMAGENET_MEAN, IMAGENET_STD) if '.aka_' in name else
            ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010)) if classes == 10 else
            ((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761)))
        return
    if '_timm' in name:
        theirs = timm.get_pretrained_cfg(source.upstream).to_dict()
        for key in ('hf_hub_id', 'num_classes', 'input_size', 'test_input_size', 'crop_pct', 'test_crop_pct',
                    'interpolation', 'mean', 'std', 'license'):
            assert config.to_dict()[key] == theirs[key]
        return
    assert (config.num_classes, config.input_size, config.crop_pct) == (1000, (3, 224, 224), 0.875)
    if '_keras' in name:
        assert config.mean == config.std == (0.5, 0.5, 0.5)
        assert config.test_input_size == (3, 299, 299)
    else:
        assert (config.mean, config.std) == (IMAGENET_MEAN, IMAGENET_STD)
        assert config.interpolation == ('bicubic' if name == FAIR else 'bilinear')


# Layouts that do not fit


MAPPED = {
    'pytorchcv_imagenet': ('preact_resnet18', {}),
    'pytorchcv_cifar': ('preact_resnet20_pcv', {}),
    'fair': ('preact_resnet200_fb', dict(layers=SMALL)),
    'keras': ('preact_resnet50_keras', {}),
    'gluon': ('preact_resnet50', {}),
    'timm_resnetv2': ('preact_resnet18_timm', {}),
    'torchvision': ('preact_resnet101_orig', {}),
    'kuangliu': ('preact_resnet50_orig_kuang', {}),
    'kuangliu_preact': ('preact_resnet50_kuang', {}),
    'weiaicunzai': ('preact_resnet50_orig_kuang', {}),
    'weiaicunzai_preact': ('preact_resnet50_wei', {}),
    'akamaster': ('preact_resnet20_orig', {}),
}


@pytest.fixture(params=KEY_MAPS)
def mapped(request):
    """(key of KEY_MAPS, tensors by its names, network of ours that they make up), without values."""
    name, kwargs = MAPPED[request.param]
    model = timm.create_model(name, device='meta', **kwargs)
    return request.param, from_ours(model.state_dict(), request.param), model


def test_a_map_and_its_inverse_give_back_every_name_and_shape(mapped):
    source, theirs, model = mapped
    ours = model.state_dict()
    assert len(theirs) == len(ours)
    back = to_ours(theirs, source, model)
    assert {key: tensor.shape for key, tensor in back.items()} == {key: tensor.shape for key, tensor in ours.items()}


def test_tensors_are_recognised_as_those_of_one_source(mapped):
    source, theirs, model = mapped
    assert [key for key, keymap in KEY_MAPS.items() if keymap.names_tensors(theirs)] == [source]
    assert source_of(model.state_dict()) is None or source == 'timm_resnetv2'


@pytest.mark.parametrize('more', ['layer4.0.conv1.weight', 'layer2.0.shortcut.0.weight'])
def test_networks_with_akamasters_names_and_more_are_nobodys(more):
    """pytorch-cifar's, and akamaster's own with projections."""
    theirs = from_ours(timm.create_model('preact_resnet20_orig', device='meta').state_dict(), 'akamaster')
    assert source_of({**theirs, more: torch.empty(1, device='meta')}) is None


def optional(source, key):
    """A count that no forward pass reads; FAIR's convolutions may lack their bias."""
    return key.endswith('num_batches_tracked') or source == 'fair' and key.endswith('.bias')


def test_a_missing_tensor_is_named(mapped):
    source, theirs, model = mapped
    required = [key for key in theirs if not optional(source, key)]
    for missing in [*required[:3], *required[3:-2:20], *required[-2:]]:
        cut = {key: tensor for key, tensor in theirs.items() if key != missing}
        with pytest.raises(LayoutError, match=f'{re.escape(missing)}, which would be .* is missing'):
            to_ours(cut, source, model)


def test_a_tensor_too_many_is_named(mapped):
    source, theirs, model = mapped
    more = {**theirs, 'aux.weight': torch.zeros(1)}
    with pytest.raises(LayoutError, match=r'1 tensors have no place, aux\.weight for one'):
        to_ours(more, source, model)


def test_a_tensor_of_another_shape_is_named(mapped):
    source, theirs, model = mapped
    shaped = [key for key, tensor in theirs.items() if tensor.ndim]
    head = KEY_MAPS[source].rename('head.fc.')
    for key in [key for key in shaped if not key.startswith(head)][::20]:
        odd = {**theirs, key: torch.zeros(theirs[key].shape[0] + 1, *theirs[key].shape[1:])}
        with pytest.raises(LayoutError, match=re.escape(f'{key} has the shape {tuple(odd[key].shape)}')):
            to_ours(odd, source, model)


def test_a_classifier_of_other_features_is_named(mapped):
    source, theirs, model = mapped
    key = KEY_MAPS[source].rename('head.fc.weight')
    classes, features, *kernel = theirs[key].shape
    with pytest.raises(LayoutError, match=re.escape(f'{key} has the shape {(classes, features + 1, *kernel)}'[:-2])):
        to_ours({**theirs, key: torch.zeros(classes, features + 1, *kernel)}, source, model)


def test_a_classifier_with_a_bias_too_many_is_refused(mapped):
    source, theirs, model = mapped
    key = KEY_MAPS[source].rename('head.fc.bias')
    with pytest.raises(LayoutError, match='another number of weights than of biases'):
        to_ours({**theirs, key: torch.zeros(len(theirs[key]) + 1)}, source, model)


@pytest.mark.parametrize('source, held, asked', [
    ('pytorchcv_imagenet', 'preact_resnet34', 'preact_resnet18'),
    ('pytorchcv_cifar', 'preact_resnet110_pcv', 'preact_resnet110'),
])
def test_a_file_of_another_network_is_refused_with_the_name_that_fits(source, held, asked, tmp_path):
    torch.save(from_ours(timm.create_model(held).state_dict(), source), tmp_path / 'held.pth')
    with pytest.raises(LayoutError, match=rf'The layout is that of {held}\.$'):
        timm.create_model(asked, pretrained=True, pretrained_cfg_overlay=overlay(tmp_path / 'held.pth'))


def test_a_t7_file_of_something_else_is_refused_in_a_sentence(tmp_path):
    file = write_torch7(tmp_path / 'other.t7', dict(epoch=90))
    with pytest.raises(UserError, match='is no network of fb.resnet.torch'):
        timm.create_model(FAIR, pretrained=True, pretrained_cfg_overlay=overlay(file))


# Fetching


def zipped(file, *members, compression=zipfile.ZIP_DEFLATED):
    with zipfile.ZipFile(file, 'w', compression) as archive:
        for name, content in members:
            archive.writestr(name, content)


def with_field(file, offset, form, value):
    """Change a field of the entry that the archive's directory has for its first member."""
    content = bytearray(file.read_bytes())
    struct.pack_into(form, content, content.rindex(b'PK\1\2') + offset, value)
    file.write_bytes(content)


def flipped(content):
    content = bytearray(content)
    content[len(content) // 2] ^= 1
    return bytes(content)


def member_flipped(file, name, content):
    zipped(file, (name, flipped(content)))


def archive_flipped(file, name, content):
    zipped(file, (name, content))
    file.write_bytes(flipped(file.read_bytes()))


def deflate_broken(file, name, content):
    zipped(file, (name, content))
    broken = bytearray(file.read_bytes())
    start = 30 + len(name)
    broken[start:start + 100] = b'\xff' * 100
    file.write_bytes(broken)


def archive_cut(file, name, content):
    zipped(file, (name, content))
    file.write_bytes(file.read_bytes()[:-len(content) // 3])


def two_members(file, name, content):
    zipped(file, (name, content), ('README', b''))


def no_member(file, name, content):
    zipped(file)


def huge_member(file, name, content):
    zipped(file, (name, content))
    with_field(file, 24, '<I', 0x7fffffff)


def member_larger_than_it_says(file, name, content):
    zipped(file, (name, content))
    with_field(file, 24, '<I', 1000)


def encrypted_member(file, name, content):
    zipped(file, (name, content))
    with_field(file, 8, '<H', 1)


def unknown_compression(file, name, content):
    zipped(file, (name, content))
    with_field(file, 10, '<H', 77)


def page_of_html(file, name, content):
    file.write_text('<html>Sign in to this network</html>')


DAMAGES = {
    member_flipped: 'is damaged',
    archive_flipped: 'is not a .zip with one file|is damaged',
    deflate_broken: 'is not a .zip with one file',
    archive_cut: 'is not a .zip with one file',
    two_members: 'is not a .zip with one file',
    no_member: 'is not a .zip with one file',
    huge_member: 'unpacks to over 1 GiB',
    member_larger_than_it_says: 'is not a .zip with one file|is damaged',
    encrypted_member: 'is not a .zip with one file',
    unknown_compression: 'is not a .zip with one file',
    page_of_html: 'is not a .zip with one file',
}


@pytest.mark.parametrize('damage', DAMAGES, ids=lambda damage: damage.__name__)
def test_a_wrong_archive_is_refused_leaves_nothing_and_the_right_one_works(damage, download, cache):
    archive = download(CIFAR).file
    with zipfile.ZipFile(archive) as right:
        [member] = right.namelist()
        content = right.read(member)
    damage(archive, member, content)
    for _ in range(2):
        with pytest.raises(WeightsError, match=DAMAGES[damage]) as refusal:
            timm.create_model(CIFAR, pretrained=True)
        assert os.listdir(cache) == [archive.name]
        named = re.findall(r'\S*/checkpoints\S*', str(refusal.value))
        assert [str(archive)] == named, 'the sentence names the file that the user can put right'

    download(CIFAR)
    timm.create_model(CIFAR, pretrained=True)
    assert sorted(os.listdir(cache)) == [member, archive.name]


def test_an_unpacked_file_that_was_changed_is_refused_and_left(download, cache):
    archive = download(CIFAR).file
    file = fetch(CIFAR)
    file.write_bytes(flipped(file.read_bytes()))
    with pytest.raises(WeightsError, match=f'{file} is damaged'):
        timm.create_model(CIFAR, pretrained=True)
    assert sorted(os.listdir(cache)) == [file.name, archive.name]


@pytest.mark.parametrize('name, written', [(CIFAR, ['unpacked']), (FAIR, ['recorded'])], ids=['zip', 't7'])
def test_a_cache_that_cannot_be_written_is_read_and_the_rest_goes_to_our_own(
        name, written, download, cache, tmp_path_factory, monkeypatch):
    """What is unpacked, and the sha256 of a file that is seen for the first time, which then holds."""
    own = tmp_path_factory.mktemp('home') / 'timm_preact'
    monkeypatch.setattr('timm_preact.weights.fetch.OWN_CACHE', own)
    monkeypatch.setattr('timm_preact.weights.fetch.is_writable', lambda folder: folder != cache)
    published = download(name)
    held = os.listdir(cache)
    for _ in range(2):
        assert timm.create_model(name, pretrained=True).stem.conv.weight.isfinite().all()
        assert os.listdir(cache) == held
        assert os.listdir(own) == [
            published.file.stem if written == ['unpacked'] else f'{published.file.name}.sha256']
    if written == ['recorded']:
        (own / f'{published.file.name}.sha256').write_text('0' * 64)
        with pytest.raises(WeightsError, match='is damaged'):
            timm.create_model(name, pretrained=True)


def test_a_folder_that_cannot_be_written_is_noticed(tmp_path):
    """Root writes wherever a file system takes files: /proc takes none."""
    assert is_writable(tmp_path) and is_writable(tmp_path / 'not' / 'there')
    assert not is_writable(Path('/proc')) and not is_writable(Path('/proc/1/nothing'))


def test_a_member_is_never_written_where_its_name_points(download, cache, tmp_path):
    archive = download(CIFAR).file
    with zipfile.ZipFile(archive) as right:
        content = right.read(right.namelist()[0])
    zipped(archive, ('../../elsewhere.pth', content))
    timm.create_model(CIFAR, pretrained=True)
    assert not list(tmp_path.rglob('elsewhere*'))


def test_weights_of_keras_without_h5py_say_what_to_install(cache, monkeypatch):
    file = cache / SOURCES[KERAS].url.rpartition('/')[2]
    file.write_bytes(b'not looked into')
    monkeypatch.setitem(CHECKSUMS, KERAS, f'md5:{digest_of(file, "md5")}')
    monkeypatch.setitem(sys.modules, 'h5py', None)
    with pytest.raises(WeightsError, match=re.escape("pip install 'timm-preact[keras]'")):
        timm.create_model(KERAS, pretrained=True)


@pytest.fixture
def move(monkeypatch):
    """move(name, url): let a file be published at another url; returns what create_model needs to know of it."""
    def to(name, url):
        monkeypatch.setitem(SOURCES, name, SOURCES[name]._replace(url=url))
        return dict(pretrained_cfg_overlay=dict(url=url))
    return to


@pytest.fixture
def serve(move):
    """serve(published, share=1.): move a file to a server on this machine, which sends that share of it.

    Returns what create_model needs to know, and a list that grows by the path of each request.
    """
    with contextlib.ExitStack() as stack:
        def start(published, share=1.):
            content, requests = published.file.read_bytes(), []

            class Handler(BaseHTTPRequestHandler):
                def do_GET(self):
                    requests.append(self.path)
                    self.send_response(200)
                    self.send_header('Content-Length', str(len(content)))
                    self.end_headers()
                    self.wfile.write(content[:int(share * len(content))])

                def log_message(self, *args):
                    pass

            server = ThreadingHTTPServer(('127.0.0.1', 0), Handler)
            thread = threading.Thread(target=server.serve_forever, kwargs=dict(poll_interval=0.01))
            stack.callback(thread.join)
            stack.callback(server.server_close)
            stack.callback(server.shutdown)
            thread.start()
            url = f'http://127.0.0.1:{server.server_port}/{published.file.name}'
            return move(published.name, url), requests

        yield start


def test_a_download_leaves_the_unpacked_file_alone_and_happens_once(library, state_checksum, serve, cache, sample):
    published = state_checksum(library(CIFAR))
    kwargs, requests = serve(published)
    for _ in range(2):
        model = timm.create_model(CIFAR, pretrained=True, **kwargs)
        assert relative_error(model, published.original, photos(CIFAR, sample)) < TOLERANCE
        assert os.listdir(cache) == [published.file.stem]
    assert requests == [f'/{published.file.name}']


def test_a_download_of_a_file_without_checksum_leaves_its_record_too(library, serve, cache):
    published = library(FAIR)
    kwargs, requests = serve(published)
    for _ in range(2):
        timm.create_model(FAIR, pretrained=True, **kwargs)
        assert sorted(os.listdir(cache)) == ['resnet-200.t7', 'resnet-200.t7.sha256']
    assert requests == ['/resnet-200.t7']


@pytest.mark.parametrize('name', [CIFAR, KERAS, FAIR])
def test_a_download_that_is_cut_leaves_nothing(name, library, state_checksum, serve, cache):
    published = state_checksum(library(name))
    kwargs, requests = serve(published, share=0.5)
    for _ in range(2):
        with pytest.raises(WeightsError, match='fetch it again|fetch or install it again') as refusal:
            timm.create_model(name, pretrained=True, **kwargs)
        assert '.fetching' not in str(refusal.value), 'the sentence names a file that is gone'
        assert os.listdir(cache) == []
    assert len(requests) == 2


def test_without_network_the_sentence_names_the_url_and_the_cache(move, cache):
    with socket.create_server(('127.0.0.1', 0)) as server:
        port = server.getsockname()[1]
    url = f'http://127.0.0.1:{port}/weights.pth.zip'
    with pytest.raises(WeightsError) as refusal:
        timm.create_model(CIFAR, pretrained=True, **move(CIFAR, url))
    assert str(refusal.value).startswith(f'{url} cannot be fetched') and str(cache) in str(refusal.value)
    assert os.listdir(cache) == []
