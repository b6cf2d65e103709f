"""Weight files: what ships is verified and loads offline; what is damaged or does not fit is refused in a sentence."""
import json
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from timm.layers import GroupNormAct
from torch import nn

import timm_preact.weights as weights
from timm_preact import hub
from timm_preact.card import card
from timm_preact.catalog import MEASURED
from timm_preact.evaluation import eval_transform, load_model
from timm_preact.weights import (
    CHECKSUMS,
    SHIPPED,
    WeightsError,
    digest_of,
    export_model,
    has_checksum,
    read_config,
    read_weights,
    verify,
)
from timm_preact.weights.sources import SOURCES
from train.cards import configure_run, configure_source, find_result, format_training
from train.places import CARDS

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize('name', MEASURED)
def test_shipped_weights_load_offline_through_timm(name):
    model = timm.create_model(name, pretrained=True)
    shipped = load_file(SHIPPED / f'{name}.safetensors')
    assert all(torch.equal(tensor, shipped[key]) for key, tensor in model.state_dict().items())


def test_the_bare_name_gets_its_shipped_weights():
    bare, tagged = (timm.create_model(name, pretrained=True) for name in ('preact_resnet20', 'preact_resnet20.cifar10'))
    assert all(torch.equal(a, b) for a, b in zip(bare.state_dict().values(), tagged.state_dict().values(), strict=True))


def test_shipped_weights_adapt_to_other_classes_and_channels():
    trained = timm.create_model('preact_resnet20', pretrained=True)
    model = timm.create_model('preact_resnet20', pretrained=True, num_classes=3, in_chans=1)
    assert model.head.fc.weight.shape == (3, 64)
    torch.testing.assert_close(model.stem.conv.weight, trained.stem.conv.weight.sum(1, keepdim=True))
    features = timm.create_model('preact_resnet20', pretrained=True, features_only=True)
    assert torch.equal(features.stem_conv.weight, trained.stem.conv.weight)


def test_only_names_that_ship_or_have_a_source_count_as_pretrained():
    tagged = [name for name in timm.list_models('preact_*', pretrained=True, include_tags=True) if '.' in name]
    assert sorted(tagged) == sorted({*CHECKSUMS, *SOURCES})
    assert {path.stem for path in SHIPPED.glob('*.safetensors')} == set(MEASURED) == set(CHECKSUMS) - set(SOURCES)


def test_the_weights_that_ship_take_24_megabytes_at_most():
    assert 0 < sum(path.stat().st_size for path in SHIPPED.iterdir()) <= 24e6


@pytest.mark.parametrize('digits', [0, 1, 7, 8, 63, 64])
def test_the_first_eight_digits_of_a_digest_are_the_least_that_count(tmp_path, digits):
    (tmp_path / 'w').write_bytes(b'weights')
    sha256 = digest_of(tmp_path / 'w')
    assert has_checksum(tmp_path / 'w', f'sha256:{sha256[:digits]}') == (digits >= 8)
    wrong = sha256[:max(0, digits - 1)] + ('0' if sha256[max(0, digits - 1)] != '0' else '1')
    assert not has_checksum(tmp_path / 'w', f'sha256:{wrong}')
    with pytest.raises(WeightsError, match='is damaged'):
        verify(tmp_path / 'w', f'sha256:{wrong}')


@pytest.mark.parametrize('damage', ['flip', 'truncate', 'remove'])
def test_damaged_shipped_weights_are_refused_before_they_are_read(tmp_path, monkeypatch, damage):
    name = 'preact_resnet20.cifar10'
    copy = tmp_path / f'{name}.safetensors'
    content = bytearray((SHIPPED / f'{name}.safetensors').read_bytes())
    content[len(content) // 2] ^= 1
    copy.write_bytes(content if damage == 'flip' else content[:5000])
    if damage == 'remove':
        copy.unlink()
    monkeypatch.setattr(weights, 'SHIPPED', tmp_path)
    cfg = dict(timm.get_pretrained_cfg(name).to_dict(), file=str(copy))
    with pytest.raises(WeightsError, match='is damaged|does not exist'):
        timm.create_model('preact_resnet20', pretrained=True, pretrained_cfg=cfg)


def test_a_file_of_ones_own_is_loaded_by_overlay(tmp_path):
    model = timm.create_model('preact_resnet20')
    save_file(model.state_dict(), tmp_path / 'mine.safetensors')
    overlay = dict(file=str(tmp_path / 'mine.safetensors'))
    loaded = timm.create_model('preact_resnet20', pretrained=True, pretrained_cfg_overlay=overlay)
    assert torch.equal(loaded.head.fc.weight, model.head.fc.weight)


# Loading draws nothing that it overwrites, and leaves nothing undefined

@pytest.fixture
def nan_memory():
    """What nobody has written holds NaN, and in integers their maximum."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


def random_weights(file, name, drop=(), **kwargs):
    """Write weights unlike any initialisation, without the keys that end as one of `drop`; also return them."""
    state_dict = timm.create_model(name, **kwargs).state_dict()
    held = {key: torch.rand_like(tensor) + 1 if tensor.is_floating_point() else tensor + 3
            for key, tensor in state_dict.items() if not key.endswith(tuple(drop))}
    save_file(held, file)
    return held


def load_over(name, file, **kwargs):
    return timm.create_model(name, pretrained=True, pretrained_cfg_overlay=dict(file=str(file)), **kwargs)


def finite(model):
    return all(tensor.isfinite().all() and tensor.abs().max() < 1e6 for tensor in model.state_dict().values())


SMALL = dict(layers=(2, 2, 2))


@pytest.mark.parametrize('name, kwargs', [
    ('preact_resnet56', SMALL),
    ('preact_resnet56', dict(SMALL, drop_path_rate=0.1, recompute_norms=True)),
    ('preact_resnet56_pcv', SMALL),
    ('preact_resnet1001', SMALL),
    ('preact_resnet1001', dict(SMALL, dtype=torch.float64)),
    ('preact_resnet110_bn_after_add', SMALL),
    ('preact_resnet110_orig_shortcut_gate', SMALL),
    ('preact_resnet50_keras', dict(layers=(1, 1, 1, 1))),
    ('preact_resnet200_fb', dict(layers=(1, 1, 1, 1))),
])
def test_whole_weights_are_loaded_whole(tmp_path, name, kwargs):
    held = random_weights(tmp_path / 'w.safetensors', name, **kwargs)
    model = load_over(name, tmp_path / 'w.safetensors', **kwargs)
    assert model.state_dict().keys() == held.keys()
    assert all(torch.equal(tensor, held[key]) for key, tensor in model.state_dict().items())


def test_weights_with_other_classes_leave_the_classifier_alone_untrained(tmp_path, nan_memory):
    held = random_weights(tmp_path / 'w.safetensors', 'preact_resnet164', **SMALL)
    torch.manual_seed(5)
    model = load_over('preact_resnet164', tmp_path / 'w.safetensors', num_classes=40, in_chans=1, **SMALL)
    torch.manual_seed(5)
    untrained = timm.create_model('preact_resnet164', num_classes=40, in_chans=1, **SMALL)
    assert torch.equal(model.head.fc.weight, untrained.head.fc.weight) and not model.head.fc.bias.any()
    assert not {key for key, tensor in model.state_dict().items()
                if not key.startswith(('head.', 'stem.')) and not torch.equal(tensor, held[key])}
    torch.testing.assert_close(model.stem.conv.weight, held['stem.conv.weight'].sum(1, keepdim=True))


@pytest.mark.parametrize('feature_cls', ['getter', 'list', 'hook'])
def test_features_of_pretrained_weights_are_those_weights(tmp_path, nan_memory, feature_cls):
    held = random_weights(tmp_path / 'w.safetensors', 'preact_resnet56', **SMALL)
    features = load_over(
        'preact_resnet56', tmp_path / 'w.safetensors', features_only=True, feature_cls=feature_cls, out_indices=(1, 2),
        **SMALL)
    assert finite(features)
    loaded = {key.removeprefix('model.'): tensor for key, tensor in features.state_dict().items()}
    loaded = {key.replace('stem_conv', 'stem.conv').replace('stages_', 'stages.'): t for key, t in loaded.items()}
    assert len(loaded) > 30 and not [key for key in loaded if key not in held]
    assert all(torch.equal(tensor, held[key]) for key, tensor in loaded.items())


@pytest.mark.parametrize('drop', ['residual.conv1.weight', 'stages.1.blocks.0.pre.running_var', 'gate.bias'])
def test_weights_that_are_not_whole_leave_nothing_undefined(tmp_path, nan_memory, drop):
    """Only pretrained_strict=False takes them; what they lack starts as in an untrained network."""
    name, kwargs = 'preact_resnet110_orig_shortcut_gate', dict(SMALL, placement='full')
    held = random_weights(tmp_path / 'w.safetensors', name, [drop], **kwargs)
    with pytest.raises(RuntimeError, match='Missing key'):
        load_over(name, tmp_path / 'w.safetensors', **kwargs)
    loaded = load_over(name, tmp_path / 'w.safetensors', pretrained_strict=False, **kwargs).state_dict()
    untrained = timm.create_model(name, **kwargs).state_dict()
    missing = loaded.keys() - held.keys()
    assert missing and all(torch.equal(loaded[key], held[key]) for key in held)
    for key in missing:
        if key.endswith('conv1.weight'):
            assert loaded[key].std().item() == pytest.approx(untrained[key].std().item(), rel=0.15)
        else:
            assert torch.equal(loaded[key], untrained[key])


def test_weights_without_counters_of_batches_start_them_at_zero(tmp_path, nan_memory):
    """As FAIR's, Keras's and MXNet's are."""
    random_weights(tmp_path / 'w.safetensors', 'preact_resnet20', ['num_batches_tracked'], **SMALL)
    model = load_over('preact_resnet20', tmp_path / 'w.safetensors', **SMALL)
    assert finite(model) and model.norm.num_batches_tracked == 0


@pytest.mark.parametrize('layers', [
    dict(act_layer='prelu'), dict(act_layer=nn.SiLU), dict(norm_layer=partial(GroupNormAct, num_groups=4)),
    dict(norm_layer='evonormb0'),
])
def test_layers_that_init_weights_does_not_know_start_as_they_do_themselves(tmp_path, nan_memory, layers):
    random_weights(tmp_path / 'w.safetensors', 'preact_resnet20', **SMALL)
    model = load_over('preact_resnet20', tmp_path / 'w.safetensors', pretrained_strict=False, **SMALL, **layers)
    assert finite(model)


@pytest.fixture
def exported(tmp_path):
    """A small network as train.cifar leaves it."""
    kwargs = dict(layers=[1, 1, 1])
    model = timm.create_model('preact_resnet20', **kwargs).to(memory_format=torch.channels_last)
    export_model(model, tmp_path, kwargs)
    return tmp_path, model


def test_an_exported_model_loads_through_local_dir(exported):
    folder, model = exported
    loaded = timm.create_model(f'local-dir:{folder}', pretrained=True)
    x = torch.randn(2, 3, 32, 32)
    torch.testing.assert_close(loaded.eval()(x), model.eval()(x))
    assert json.loads((folder / 'config.json').read_text())['sha256'] == digest_of(folder / 'model.safetensors')


def test_a_folder_is_one_for_transformers_too(exported):
    """Which passes the number of classes itself, and looks for their names at the root of config.json."""
    config = read_config(exported[0] / 'config.json')
    assert 'num_classes' not in config['model_args'] and config['num_classes'] == 10
    assert config['label_names'] == config['pretrained_cfg']['label_names'] and config['label_names'][2] == 'bird'


def test_transformers_names_a_bird(exported, sample, tmp_path, monkeypatch):
    """By its pipeline, its automatic classes and timm's local-dir alike."""
    transformers = pytest.importorskip('transformers')
    folder, image = exported[0], Image.fromarray(sample.images[100])
    hub.convert('preact_resnet20.cifar10', tmp_path / 'made')
    guesses = transformers.pipeline('image-classification', model=str(tmp_path / 'made'))(image)
    ours = timm.create_model(f'local-dir:{tmp_path / "made"}', pretrained=True).eval()
    with torch.inference_mode():
        expected = ours(eval_transform(ours)(image)[None]).softmax(1)[0]
    assert guesses[0]['label'] == 'bird' and guesses[0]['score'] == pytest.approx(expected.max().item(), rel=1e-3)
    model = transformers.AutoModelForImageClassification.from_pretrained(folder)
    assert model.config.num_labels == 10 and model.config.id2label[8] == 'ship'
    assert transformers.AutoModel.from_pretrained(folder).timm_model.num_classes == 0


def test_a_bit_flipped_export_is_refused(exported):
    folder, _ = exported
    content = bytearray((folder / 'model.safetensors').read_bytes())
    content[-1] ^= 1
    (folder / 'model.safetensors').write_bytes(content)
    with pytest.raises(WeightsError, match='is damaged'):
        read_weights(folder)


def truncated(folder):
    content = (folder / 'model.safetensors').read_bytes()
    (folder / 'cut.safetensors').write_bytes(content[:len(content) // 2])
    return folder / 'cut.safetensors'


def text_renamed(folder):
    (folder / 'text.safetensors').write_text('no weights')
    return folder / 'text.safetensors'


def safetensors_renamed(folder):
    return shutil.copy(folder / 'model.safetensors', folder / 'model.pth')


def pickled(folder):
    torch.save({'state_dict': {'x': Path('/')}}, folder / 'pickle.pth')
    return folder / 'pickle.pth'


@pytest.mark.parametrize('make', [truncated, text_renamed, safetensors_renamed, pickled])
def test_a_file_that_is_no_whole_weight_file_is_refused(exported, make):
    with pytest.raises(WeightsError, match='is not a whole weight file'):
        read_weights(Path(make(exported[0])))


def test_weights_with_another_number_of_classes_are_refused(tmp_path):
    save_file(timm.create_model('preact_resnet20', num_classes=100).state_dict(), tmp_path / 'w.safetensors')
    with pytest.raises(WeightsError, match='has 100 classes, preact_resnet20 has 10'):
        load_model('preact_resnet20', str(tmp_path / 'w.safetensors'))


def test_weights_of_another_network_are_refused(exported, tmp_path):
    with pytest.raises(WeightsError, match='holds preact_resnet20, not preact_resnet56'):
        load_model('preact_resnet56', str(exported[0]))
    (tmp_path / 'other').mkdir()
    save_file(timm.create_model('preact_resnet20').state_dict(), tmp_path / 'other' / 'w.safetensors')
    with pytest.raises(WeightsError, match='does not fit preact_resnet56'):
        load_model('preact_resnet56', str(tmp_path / 'other' / 'w.safetensors'))


def test_every_checksum_is_of_the_file_that_ships():
    for name in MEASURED:
        assert f"sha256:{digest_of(SHIPPED / f'{name}.safetensors')}" == CHECKSUMS[name]


@pytest.mark.parametrize('name', MEASURED)
def test_the_card_and_the_catalog_say_what_the_result_file_says(name):
    """Nothing on a card is written by hand."""
    result, config = find_result(name), json.loads((CARDS / name / 'config.json').read_text())
    assert (CARDS / name / 'README.md').read_text() == card(config, format_training(name, result))
    assert config == configure_run(name, config, result)
    assert f"sha256:{result['weights_sha256']}" == CHECKSUMS[name] == f"sha256:{config['sha256']}"
    assert MEASURED[name] == result['evaluation']['error'] == pytest.approx(result['test_error'], abs=1e-9)
    assert result['curve'][-1]['test_error'] == result['test_error']


def test_the_card_is_of_the_run_whose_weights_ship_whichever_seed_that_was(tmp_path, monkeypatch):
    digest = CHECKSUMS['preact_resnet20.cifar10'].partition(':')[2]
    for seed, sha256 in ((0, '1' * 64), (1, digest), (2, '2' * 64)):
        result = dict(seed=seed, weights_sha256=sha256)
        (tmp_path / f'preact_resnet20.cifar10.seed{seed}.json').write_text(json.dumps(result))
    monkeypatch.setattr('train.cards.RESULTS', tmp_path)
    assert find_result('preact_resnet20.cifar10')['seed'] == 1


@pytest.mark.parametrize('name', SOURCES)
def test_every_published_source_has_its_card_and_config(name):
    config = json.loads((CARDS / name / 'config.json').read_text())
    assert (CARDS / name / 'README.md').read_text() == card(config)
    now = json.loads(json.dumps(configure_source(name)))
    assert {**config, **now} == config
    assert {**config['pretrained_cfg'], **now['pretrained_cfg']} == config['pretrained_cfg']


def test_no_card_is_of_an_unknown_name():
    assert {folder.name for folder in CARDS.iterdir()} == {*MEASURED, *SOURCES, 'space'}


@pytest.mark.parametrize('name', MEASURED)
def test_a_card_folder_loads_as_it_is(name):
    model = timm.create_model(f'local-dir:{CARDS / name}', pretrained=True)
    assert f"sha256:{digest_of(CARDS / name / 'model.safetensors')}" == CHECKSUMS[name]
    assert torch.equal(model.head.fc.weight, timm.create_model(name, pretrained=True).head.fc.weight)


def test_the_tracked_tree_is_small():
    """Under 16 MiB, with weights kept once."""
    files = subprocess.run(['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True).stdout.split('\n')
    sizes = [(ROOT / f).stat().st_size for f in files if f and (ROOT / f).is_file() and not (ROOT / f).is_symlink()]
    assert sum(sizes) < 16 << 20
