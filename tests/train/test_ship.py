"""From a finished run to weights in the package, and the ablation of a recipe on a small copy."""
import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from timm_preact.data import CIFAR100_CLASSES, load_image_set
from timm_preact.errors import UserError
from timm_preact.evaluation import eval_transform, evaluate, load_model, open_images
from timm_preact.hub import verify_folder
from timm_preact.weights import digest_of
from train import ablation, cards, ship
from train.cifar import app
from train.recipe import RECIPES

NAME = 'preact_resnet20.cifar10'


def train(data, output, *options):
    """Run train.cifar for a few steps."""
    arguments = ['preact_resnet20', '--data', data, '--recipe', 'modern', '--batch-size', 32, '--no-amp',
                 '--output', output, *options]
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return output


@pytest.fixture(scope='module')
def run(npz_folder, tmp_path_factory):
    """A run of three steps."""
    return train(npz_folder, tmp_path_factory.mktemp('runs') / 'short', '--iterations', 3, '--cutout', 6,
                 '--translate', 3, '--label-smoothing', 0.1, '--alternate-flips', '--no-decay-all', '--average', 0.5)


@pytest.fixture
def places(tmp_path, monkeypatch):
    """Shipping goes to folders of the test."""
    for name in ('SHIPPED', 'RESULTS', 'CARDS'):
        monkeypatch.setattr(ship, name, tmp_path / name.lower())
    monkeypatch.setattr(cards, 'CARDS', tmp_path / 'cards')
    return tmp_path


def test_options_of_the_command_are_in_the_recipe_of_the_result(run):
    recipe = json.loads((run / 'run.json').read_text())['recipe']
    assert (recipe['cutout'], recipe['translate'], recipe['label_smoothing']) == (6, 3, 0.1)
    assert recipe['alternate_flips'] is True and recipe['decay_all'] is False and recipe['average'] == 0.5


def test_what_ships_is_in_half_precision_and_answers_as_the_run_did(run, places, npz_folder, capsys):
    ship.ship(run, 'cifar10', str(npz_folder))
    file = places / 'shipped' / f'{NAME}.safetensors'
    tensors = load_file(file)
    assert {tensor.dtype for tensor in tensors.values() if tensor.ndim > 1} == {torch.float16}
    assert all(tensor.dtype != torch.float16 for tensor in tensors.values() if tensor.ndim < 2)
    result, ran = (json.loads(path.read_text()) for path in (
        places / 'results' / f'{NAME}.seed0.json', run / 'run.json'))
    assert result['storage'] == 'float16' and result['weights_sha256'] == digest_of(file)
    assert result['evaluation']['error'] == pytest.approx(ran['test_error'])
    assert f"'{NAME}': 'sha256:{digest_of(file)}'" in capsys.readouterr().out
    card = places / 'cards' / NAME
    assert (card / 'model.safetensors').resolve() == file.resolve()
    assert json.loads((card / 'config.json').read_text())['sha256'] == digest_of(file)
    text = (card / 'README.md').read_text()
    for words in ('seed 0: 3 steps of batch 32', 'zero-padded by 3', 'a flip in every other epoch',
                  'a square of 6 pixels cut out', 'label smoothing 0.1', 'on convolutions and the classifier',
                  'over 50% of the run'):
        assert words in text
    model = load_model(NAME, str(card))
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert evaluate(model, open_images(str(npz_folder), 'test', eval_transform(model))).error == pytest.approx(
        ran['test_error'])
    verify_folder(card)


def test_a_tag_that_is_not_the_first_of_its_name_ships_with_its_classes(npz_folder, tmp_path, places):
    for split in ('train', 'test'):
        images = load_image_set(npz_folder, split)
        np.savez(tmp_path / f'{split}.npz', images=images.images, labels=images.labels * 7, classes=CIFAR100_CLASSES)
    ship.ship(train(tmp_path, tmp_path / 'run', '--iterations', 1), 'cifar100', str(tmp_path))
    card = places / 'cards' / 'preact_resnet20.cifar100'
    config = json.loads((card / 'config.json').read_text())
    assert config['pretrained_cfg']['tag'] == 'cifar100' and config['num_classes'] == 100
    assert tuple(config['label_names']) == CIFAR100_CLASSES
    assert 'type: uoft-cs/cifar100' in (card / 'README.md').read_text()
    verify_folder(card)


def test_weights_whose_error_half_precision_changes_ship_as_they_are(run, places, npz_folder, monkeypatch):
    monkeypatch.setattr(ship, 'halve', lambda state: {name: torch.zeros_like(t) for name, t in state.items()})
    ship.ship(run, 'cifar10', str(npz_folder))
    assert (places / 'shipped' / f'{NAME}.safetensors').read_bytes() == (run / 'model.safetensors').read_bytes()
    assert json.loads((places / 'results' / f'{NAME}.seed0.json').read_text())['storage'] == 'float32'


def test_weights_too_large_for_the_package_are_refused_and_nothing_is_written(run, places, npz_folder, monkeypatch):
    monkeypatch.setattr(ship, 'MOST_BYTES', 500_000)
    with pytest.raises(UserError, match='of which at most 500,000 ship'):
        ship.ship(run, 'cifar10', str(npz_folder))
    assert list(places.iterdir()) == []


def test_other_data_than_the_runs_are_refused(run, places, npz_folder, tmp_path):
    images = load_image_set(npz_folder, 'test')
    np.savez(tmp_path / 'test.npz', images=images.images[:50], labels=(images.labels[:50] + 1) % 10,
             classes=np.array(images.classes))
    with pytest.raises(UserError, match='evaluate on the data it was tested on'):
        ship.ship(run, 'cifar10', str(tmp_path))


def test_the_small_copy_trains_a_change_and_measures_images_that_it_did_not_see(npz_folder, tmp_path, monkeypatch):
    for name, value in dict(ABLATION=tmp_path, OTHERS=100, FEW=20, MEMORIES=(0.2, 1.)).items():
        monkeypatch.setattr(ablation, name, value)
    monkeypatch.setitem(ablation.BASE, 'batch_size', 20)
    said = ablation.train('cutout', 1, 3, str(npz_folder), 100, 'python -m train.ablation')
    assert said.startswith('cutout, seed 3: ')
    result = json.loads((tmp_path / 'cutout.1epochs.seed3.json').read_text())
    assert result['recipe']['cutout'] == 4 and result['recipe']['label_smoothing'] == 0 and 'test_error' not in result
    assert result['iterations'] == 5 and 0 <= result['validation_error'] <= 100
    assert result['averaged']['0.2'] == result['validation_error']  # of five steps a fifth: the last weights alone
    assert set(result['averaged']) == {'0.2', '1.0'}
    assert result['data']['train_sha256'] != result['data']['test_sha256']


def test_a_change_is_compared_with_runs_of_equal_seeds():
    base = {0: 30., 1: 31., 2: 29.}
    assert ablation.format_difference({0: 29., 1: 30.5}, base) == '-0.75 ± 0.35 (2)'
    assert ablation.format_difference({2: 30., 7: 99.}, base) == '+1.00 (1)'
    assert ablation.format_difference({7: 99.}, base) == ablation.format_difference({}, base) == '-'


def test_a_change_to_the_recipe_is_one_that_the_trainer_knows():
    for _, changes in ablation.CHANGES.values():
        assert set(changes) <= set(vars(RECIPES['modern']))
