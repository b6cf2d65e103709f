"""The command line, as a user meets it."""
import json
import subprocess
import sys

import pytest
import timm
import torch
from PIL import Image
from typer.testing import CliRunner

from timm_preact import __version__
from timm_preact.catalog import MEASURED
from timm_preact.cli import app
from timm_preact.evaluation import eval_transform
from timm_preact.preact_resnet import MODEL_ARGS


def run(*arguments):
    """What a command that must succeed prints."""
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.stdout


def refusal(*arguments):
    """The one sentence of a command that must end with exit code 2."""
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 2 and result.output.startswith('error: ') and result.output.count('\n') == 1
    return result.output


def test_list_names_every_network_with_its_facts():
    rows = json.loads(run('list', '--json'))
    assert {row['name'] for row in rows} == set(MODEL_ARGS)
    row = next(row for row in rows if row['name'] == 'preact_resnet1001' and row['data_set'] == 'cifar100')
    assert (row['depth'], row['params'], row['paper_error']) == (1001, 10_327_706, 22.71)
    row = next(row for row in rows if row['name'] == 'preact_resnet20')
    assert row['weights'] and row['our_error'] == MEASURED['preact_resnet20.cifar10']
    row = next(row for row in rows if row['name'] == 'preact_resnet200_fb')
    assert (row['paper_error'], row['published_error']) == (20.1, 21.66)


def test_list_as_a_table():
    output = run('list', 'preact_resnet110*')
    assert 'preact_resnet110_orig_dropout_shortcut' in output and 'fail' in output and 'preact_resnet20' not in output


def test_predict_names_real_images_of_any_size(sample, tmp_path):
    for i, size in ((0, 32), (450, 500)):
        Image.fromarray(sample.images[i]).resize((size, size)).save(tmp_path / f'{i}.png')
    results = json.loads(run('predict', tmp_path, '--top-k', 3, '--json'))
    assert [result['file'] for result in results] == [str(tmp_path / '0.png'), str(tmp_path / '450.png')]
    for result in results:
        probabilities = [guess['probability'] for guess in result['predictions']]
        assert len(probabilities) == 3 and probabilities == sorted(probabilities, reverse=True)
        assert {guess['class'] for guess in result['predictions']} <= set(sample.classes)


def test_predict_reads_greyscale_and_palette_images(sample, tmp_path):
    Image.fromarray(sample.images[0]).convert('L').save(tmp_path / 'grey.png')
    Image.fromarray(sample.images[0]).convert('P').save(tmp_path / 'palette.gif')
    assert 'grey.png' in run('predict', tmp_path / 'grey.png', tmp_path / 'palette.gif')


def test_evaluate_agrees_on_npz_parquet_and_image_folders(npz_folder, parquet_folder, sample, tmp_path):
    from timm_preact.data import load_image_set
    test = load_image_set(npz_folder, 'test')
    for i, (image, label) in enumerate(zip(test.images, test.labels, strict=True)):
        folder = tmp_path / 'test' / test.classes[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f'{i}.png')
    scores = [
        json.loads(run('evaluate', '--model', 'preact_resnet20', '--data', source, '--json'))
        for source in (npz_folder, parquet_folder, tmp_path)]
    assert len({(s['images'], s['top1'], s['top5'], s['error']) for s in scores}) == 1
    assert scores[0]['images'] == 100 and scores[0]['error'] < 20 and scores[0]['per_class'] == scores[2]['per_class']


def test_evaluate_takes_a_size_a_crop_and_weights_with_classes_of_ones_own(npz_folder, tmp_path):
    model = timm.create_model('preact_resnet18', num_classes=10)
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'checkpoint.pth.tar')
    options = ['evaluate', '--data', npz_folder, '--json', '--model', 'preact_resnet18', '--img-size', 32, '--weights',
               tmp_path / 'checkpoint.pth.tar']
    assert 'pass --num-classes 10' in refusal(*options)
    assert json.loads(run(*options, '--num-classes', 10))['images'] == 100
    whole, cropped, small = (
        json.loads(run('evaluate', '--data', npz_folder, '--json', '--model', 'preact_resnet20', *size))['top1']
        for size in ((), ('--crop-pct', 0.5), ('--img-size', 16)))
    assert whole > 85 and whole > cropped and whole > small


def test_the_papers_names_are_tested_at_320_unless_told_otherwise():
    """As validate.py does."""
    model = timm.create_model('preact_resnet18.in1k')
    for kwargs, size, shorter_side in (({}, 320, 320), (dict(size=224, crop_pct=0.875), 224, 256)):
        resize, crop, *_ = eval_transform(model, use_test_size=True, **kwargs).transforms
        assert tuple(crop.size) == (size, size) and resize.size == shorter_side


def test_demo_runs_offline_from_an_installed_package_and_draws_a_picture(tmp_path):
    result = subprocess.run(
        [sys.executable, '-m', 'timm_preact', 'demo'], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert 'on 500 CIFAR-10 test images' in result.stdout and 'top-1 error' in result.stdout
    with Image.open(tmp_path / 'timm_preact_demo.png') as picture:
        assert picture.width > 900 and picture.height > 600


def test_help_shows_the_version_and_every_command():
    output = run('--help')
    assert __version__ in output and all(command in output for command in (
        'list', 'predict', 'evaluate', 'export', 'run', 'demo', 'convert', 'verify', 'publish', 'benchmark'))


def test_an_unknown_name_suggests_the_nearest(npz_folder):
    assert 'did you mean preact_resnet20' in refusal('evaluate', '--model', 'preact_resnt20', '--data', npz_folder)


def test_a_name_without_weights_says_which_have_some(npz_folder):
    output = refusal('evaluate', '--model', 'preact_resnet56', '--data', npz_folder)
    assert 'preact_resnet56.cifar10 has no published weights: preact_resnet56_pcv has some' in output


def test_a_batch_size_of_0_is_refused(npz_folder):
    output = refusal('evaluate', '--model', 'preact_resnet20', '--data', npz_folder, '--batch-size', 0)
    assert 'choose 1 or more' in output


def test_data_with_other_classes_is_refused(tmp_path, sample):
    import numpy as np
    np.savez(tmp_path / 'test.npz', images=sample.images[:4], labels=np.arange(4), classes=np.array(list('abcd')))
    output = refusal('evaluate', '--model', 'preact_resnet20', '--data', tmp_path)
    assert 'the data has 4 classes and the model 10' in output


def test_a_missing_split_is_refused(npz_folder):
    output = refusal('evaluate', '--model', 'preact_resnet20', '--data', npz_folder, '--split', 'validation')
    assert 'validation' in output


@pytest.mark.parametrize('content', [b'no image', b'', None])
def test_an_image_that_is_no_image_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / 'cat.png').write_bytes(content)
    assert 'cat.png' in refusal('predict', tmp_path / 'cat.png')


def test_half_an_image_is_refused(sample, tmp_path):
    Image.fromarray(sample.images[0]).resize((300, 300)).save(tmp_path / 'whole.png')
    content = (tmp_path / 'whole.png').read_bytes()
    (tmp_path / 'half.png').write_bytes(content[:len(content) // 2])
    assert 'is not a whole image' in refusal('predict', tmp_path / 'half.png')


def test_a_folder_without_images_is_refused(tmp_path):
    assert 'holds no image file' in refusal('predict', tmp_path)


def test_a_picture_that_cannot_be_written_is_refused_and_leaves_nothing(tmp_path):
    (tmp_path / 'file').write_text('in the way')
    assert 'file' in refusal('demo', '--output', tmp_path / 'file' / 'demo.png')
    assert [p.name for p in tmp_path.iterdir()] == ['file']


def test_weights_that_do_not_exist_are_refused(npz_folder):
    output = refusal('evaluate', '--model', 'preact_resnet20', '--data', npz_folder, '--weights', '/no/such/file')
    assert '/no/such/file does not exist' in output
