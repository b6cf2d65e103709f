"""The command line, as a user meets it."""
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from typer.testing import CliRunner

from timm_preact import __version__
from timm_preact.catalog import list_networks
from timm_preact.cli import app
from timm_preact.evaluation import eval_transform
from timm_preact.propagation import Propagation


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


def test_list_prints_the_catalog_as_json():
    assert json.loads(run('list', '--json')) == list_networks()


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


def test_evaluate_takes_the_images_of_the_package_where_none_are_named():
    scores = json.loads(run('evaluate', '--model', 'preact_resnet20', '--json'))
    assert scores['images'] == 500 and scores['data'] == 'the sample in the package' and scores['top1'] > 90


def test_evaluate_sets_two_networks_beside_each_other(npz_folder, tmp_path):
    state = timm.create_model('preact_resnet20', pretrained=True).state_dict()
    state['head.fc.bias'][3] -= 100  # it never says cat
    torch.save(state, tmp_path / 'no_cats.pth')
    options = ['evaluate', '--model', 'preact_resnet20', '--data', npz_folder, '--against-weights',
               tmp_path / 'no_cats.pth']
    found = json.loads(run(*options, '--json'))
    cats, none = (one['cat'] for one in found['per_class'])
    assert cats > 50 and none == 0 and found['top1'][0] > found['top1'][1] and found['images'] == 100
    output = run(*options)
    assert f'{len(found["differ"])} of 100 images are named differently: {found["differ"][0]}, ' in output
    assert '0 of 100 images are named differently\n' in run(
        'evaluate', '--model', 'preact_resnet20', '--against', 'preact_resnet20', '--data', npz_folder)
    assert 'leave out --img-size' in refusal(*options, '--img-size', 16)


def test_a_repository_of_the_hub_is_a_model(hub, sample, tmp_path):
    folder = Path(__file__).parents[2] / 'hub_cards' / 'preact_resnet20.cifar10'
    hub.commit('lab/net', {path.name: path.read_bytes() for path in folder.iterdir()})
    Image.fromarray(sample.images[400]).save(tmp_path / 'ship.png')
    assert run('predict', tmp_path / 'ship.png', '--json', '--model', 'hf-hub:lab/net') == run(
        'predict', tmp_path / 'ship.png', '--json')
    assert 'leave out --weights' in refusal('evaluate', '--model', 'hf-hub:lab/net', '--weights', folder)
    assert 'cannot be fetched from the Hub' in refusal('evaluate', '--model', 'hf-hub:lab/nothing')
    hub.commit('lab/empty', {'config.json': b'{}'})
    assert 'lab/empty has no model.safetensors' in refusal('evaluate', '--model', 'hf-hub:lab/empty')


def test_demo_runs_offline_from_an_installed_package_and_draws_a_picture(tmp_path):
    result = subprocess.run(
        [sys.executable, '-m', 'timm_preact', 'demo'], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert 'on 500 CIFAR-10 test images' in result.stdout and 'top-1 error' in result.stdout
    with Image.open(tmp_path / 'timm_preact_demo.png') as picture:
        assert picture.width > 900 and picture.height > 600


def test_help_shows_the_version_and_every_command():
    output = run('--help')
    assert __version__ in output and all(command in output for command in (
        'list', 'predict', 'evaluate', 'export', 'run', 'demo', 'convert', 'verify', 'publish', 'benchmark',
        'propagate'))


def test_an_unknown_name_suggests_the_nearest(npz_folder):
    assert 'did you mean preact_resnet20' in refusal('evaluate', '--model', 'preact_resnt20', '--data', npz_folder)


def test_a_name_without_weights_says_which_have_some(npz_folder):
    output = refusal('evaluate', '--model', 'preact_resnet56', '--data', npz_folder)
    assert 'preact_resnet56.cifar10 has no published weights: use preact_resnet56_pcv.cifar10, the best of' in output


def test_a_batch_size_of_0_is_refused(npz_folder):
    output = refusal('evaluate', '--model', 'preact_resnet20', '--data', npz_folder, '--batch-size', 0)
    assert '--batch-size must be at least 1, got 0.' in output


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


def check_of(*arguments):
    """Exit code and sentences of propagate --check."""
    result = CliRunner().invoke(app, ['propagate', '--check', *map(str, arguments)], catch_exceptions=False)
    return result.exit_code, result.stdout.splitlines()


def test_propagate_measures_initial_and_shipped_weights_and_writes_what_it_found(tmp_path):
    names = 'preact_resnet20', 'preact_resnet110_orig_const_scale'
    run('propagate', names[0], '--eval', '--batch-size', 4, '--to', tmp_path / 'eval')
    output = run('propagate', *names, '--batch-size', 4, '--to', tmp_path / 'out')
    rows = [line.split()[:3] for line in output.splitlines() if line.strip().startswith('preact_resnet')]
    assert rows == [[names[0], 'initialisation', 'yes'], [names[0], 'cifar10', 'yes'],
                    [names[1], 'initialisation', 'NO']]
    stems = {f'{names[0]}.initialisation', f'{names[0]}.cifar10', f'{names[1]}.initialisation'}
    assert {path.name for path in (tmp_path / 'out').iterdir()} == {
        'propagation.png', *(f'{stem}.{kind}' for stem in stems for kind in ('csv', 'json'))}
    found = Propagation.from_json(tmp_path / 'out' / f'{names[1]}.initialisation.json')
    for folder, training in (('out', True), ('eval', False)):
        assert Propagation.from_json(tmp_path / folder / f'{names[0]}.cifar10.json').training is training
    assert len(found.units) == 55 and found.images == 4 and found.scaling_product[0] == 0.5 ** 54


def test_propagate_prints_every_unit():
    output = run('propagate', 'preact_resnet20', '--units', '--batch-size', 2, '--model-kwargs', 'layers=[1, 2, 1]')
    units = [line.split()[0] for line in output.splitlines() if 'blocks' in line or ' end ' in line]
    assert units == ['stages.0.blocks.0', 'stages.1.blocks.0', 'stages.1.blocks.1', 'stages.2.blocks.0', 'end']


def test_propagate_check_says_it_in_a_sentence_and_by_its_exit_code():
    code, lines = check_of('preact_resnet20', 'resnet18', '--batch-size', 8)
    assert code == 0 and len(lines) == 3 and all('stays between' in line for line in lines)
    code, lines = check_of('preact_resnet20', 'preact_resnet110_orig_conv_shortcut', '--batch-size', 8)
    assert code == 1 and len(lines) == 3
    assert '1x1 convolution stands on the shortcut, where the paper would leave an identity' in lines[2]


def test_propagate_takes_names_and_weights_of_ones_own(npz_folder, tmp_path, monkeypatch):
    (tmp_path / 'my_networks.py').write_text('''
import timm, timm_preact
from timm.models import register_model

@register_model
def my_plain_resnet(pretrained=False, **kwargs):
    return timm.create_model('preact_resnet110', merge='const_scale', merge_kwargs=dict(shortcut=0.25, residual=1.))
''')
    monkeypatch.chdir(tmp_path)
    code, lines = check_of('my_plain_resnet', '--device-modules', 'my_networks', '--data', npz_folder)
    assert code == 1 and lines[0].startswith('my_plain_resnet (initialisation): the gradient through the shortcuts')
    assert 'a constant multiplies the shortcut' in lines[0]
    assert 'cannot be imported' in refusal('propagate', 'resnet18', '--device-modules', 'no_such_module')
    model = timm.create_model('preact_resnet20', pretrained=True)
    torch.save(model.state_dict(), tmp_path / 'w.pth')
    code, lines = check_of('preact_resnet56', '--weights', tmp_path / 'w.pth', '--model-kwargs', 'layers=[3, 3, 3]')
    assert code == 0 and lines[1].startswith('preact_resnet56 (w.pth): over 9 units')
    torch.save(timm.create_model('preact_resnet20', num_classes=12).state_dict(), tmp_path / 'twelve.pth')
    twelve = 'preact_resnet20', '--weights', tmp_path / 'twelve.pth'
    assert 'pass --num-classes 12' in refusal('propagate', *twelve)
    assert check_of(*twelve, '--num-classes', 12)[0] == 0
    assert 'does not fit preact_resnet56' in refusal('propagate', 'preact_resnet56', '--weights', tmp_path / 'w.pth')


def test_propagate_refuses_what_it_cannot_measure(sample, npz_folder, tmp_path):
    (tmp_path / 'empty').mkdir()
    assert 'holds no parquet' in refusal('propagate', 'preact_resnet20', '--data', tmp_path / 'empty')
    np.savez(tmp_path / 'grey.npz', images=np.full((8, 32, 32, 3), 128, np.uint8), labels=np.arange(8) % 2,
             classes=['a', 'b'])
    assert 'every image is constant' in refusal('propagate', 'preact_resnet20', '--data', tmp_path / 'grey.npz')
    assert 'VGG has no residual units' in refusal('propagate', 'vgg11', '--check')
    state = timm.create_model('preact_resnet20', pretrained=True).state_dict()
    state['stages.1.blocks.0.pre.weight'][0] = float('nan')
    torch.save(state, tmp_path / 'nan.pth')
    weights = ('--weights', tmp_path / 'nan.pth')
    assert 'stages.1.blocks.0.pre.weight holds NaN' in refusal('propagate', 'preact_resnet20', *weights)
    assert 'name one' in refusal('propagate', 'preact_resnet20', 'preact_resnet56', *weights)
    assert 'did you mean preact_resnet20' in refusal('propagate', 'preact_resnt20')
    assert 'give one of them' in refusal('propagate', 'preact_resnet20', '--check', '--units')
    assert 'a network of 4 input channels takes no image files' in refusal(
        'propagate', 'preact_resnet56', '--model-kwargs', 'in_chans=4')
    assert 'cannot be made with' in refusal('propagate', 'preact_resnet56', '--model-kwargs', 'act_layer=foo')
    assert 'unexpected keyword' in refusal('propagate', 'preact_resnet20', '--model-kwargs', 'deep=3')
    assert 'do not fit' in refusal(
        'propagate', 'preact_resnet20', '--pretrained', '--model-kwargs', 'layers=[1, 1, 1]')
    assert not list(tmp_path.glob('*.json'))
