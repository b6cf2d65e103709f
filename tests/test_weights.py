"""Weight files: what ships is verified and loads offline; what is damaged or does not fit is refused in a sentence."""
import json
import shutil
import subprocess
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file

import timm_preact.weights as weights
from timm_preact.card import card
from timm_preact.catalog import MEASURED
from timm_preact.evaluation import load_model
from timm_preact.weights import CHECKSUMS, SHIPPED, WeightsError, digest_of, export_model, read_weights
from timm_preact.weights.sources import SOURCES
from train.cards import CARDS, config_of_run, config_of_source, result_of, training

ROOT = Path(__file__).parents[1]


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
    assert torch.equal(features.model.stem.conv.weight, trained.stem.conv.weight)


def test_only_names_that_ship_or_have_a_source_count_as_pretrained():
    tagged = [name for name in timm.list_models('preact_*', pretrained=True, include_tags=True) if '.' in name]
    assert sorted(tagged) == sorted({*CHECKSUMS, *SOURCES})
    assert {path.stem for path in SHIPPED.glob('*.safetensors')} == set(MEASURED) == set(CHECKSUMS) - set(SOURCES)


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
    result, config = result_of(name), json.loads((CARDS / name / 'config.json').read_text())
    assert (CARDS / name / 'README.md').read_text() == card(config, training(name, result))
    assert config == config_of_run(name, config, result)
    assert f"sha256:{result['weights_sha256']}" == CHECKSUMS[name] == f"sha256:{config['sha256']}"
    assert MEASURED[name] == result['evaluation']['error'] == pytest.approx(result['test_error'], abs=1e-9)
    assert result['curve'][-1]['test_error'] == result['test_error']


@pytest.mark.parametrize('name', SOURCES)
def test_every_published_source_has_its_card_and_config(name):
    config = json.loads((CARDS / name / 'config.json').read_text())
    assert (CARDS / name / 'README.md').read_text() == card(config)
    now = json.loads(json.dumps(config_of_source(name)))
    assert {**config, **now} == config
    assert {**config['pretrained_cfg'], **now['pretrained_cfg']} == config['pretrained_cfg']


def test_no_card_is_of_an_unknown_name():
    assert {folder.name for folder in CARDS.iterdir()} == {*MEASURED, *SOURCES}


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
