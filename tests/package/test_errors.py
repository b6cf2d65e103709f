"""What a user can put right ends with one sentence and exit code 2, whichever command it is."""
import inspect
import json
from pathlib import Path

import h5py
import numpy as np
import pytest
import timm
import torch
from PIL import Image
from typer.testing import CliRunner

from timm_preact import hub
from timm_preact.cli import app
from timm_preact.data import load_image_set
from timm_preact.errors import RESERVED_ARGS, UserError
from timm_preact.evaluation import load_model, open_images
from timm_preact.images import image_files
from timm_preact.loading import find_name, load_into
from timm_preact.weights import WeightsError, find_weights, read_checkpoint
from train.cifar import app as train


def refusal(*arguments, command=app):
    result = CliRunner().invoke(command, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 2 and result.stderr.startswith('error: ') and result.stderr.count('\n') == 1, (
        result.output)
    return result.stderr


@pytest.fixture
def image(sample, tmp_path):
    Image.fromarray(sample.images[0]).save(tmp_path / 'image.png')
    return tmp_path / 'image.png'


# Devices


@pytest.mark.parametrize('device', ['cuda', 'cuda:7', 'mps', 'gpu', 'meta', ''])
def test_a_device_that_is_not_there_is_refused_by_every_command(device, image, npz_folder, tmp_path):
    if device == 'cuda' and torch.cuda.is_available():
        pytest.skip('there is one here')
    for arguments in (['predict', image], ['evaluate', '--model', 'preact_resnet20', '--data', npz_folder],
                      ['verify', tmp_path], ['benchmark', 'preact_resnet20'], ['propagate', 'preact_resnet20']):
        assert f'--device {device}' in refusal(*arguments, '--device', device)
    assert f'--device {device}' in refusal(
        'preact_resnet20', '--data', npz_folder, '--output', tmp_path / 'run', '--device', device, command=train)


# Sizes and shares


@pytest.mark.parametrize('options, sentence', [
    (['--img-size', 0], '--img-size must be at least 1, got 0.'), (['--img-size', -3], '--img-size must be at least 1'),
    (['--crop-pct', -1], '--crop-pct must be above 0 and at most 1, got -1.0.'),
    (['--crop-pct', 0], '--crop-pct must be'), (['--crop-pct', 'nan'], 'got nan.'), (['--crop-pct', 2], 'got 2.0.'),
    (['--batch-size', -1], '--batch-size must be at least 1, got -1.')])
def test_a_size_or_share_that_is_none_is_refused(options, sentence, npz_folder):
    assert sentence in refusal('evaluate', '--model', 'preact_resnet20', '--data', npz_folder, *options)


@pytest.mark.parametrize('arguments, sentence', [
    (['export', 'preact_resnet20', '--to', 'x.pt', '--img-size', 0], '--img-size must be at least 1'),
    (['export', 'preact_resnet20', '--to', 'x.pt', '--batch-size', 0],
     '--batch-size must be at least 1'),
    (['benchmark', 'preact_resnet20', '--batch-size', 0], '--batch-size must be at least 1'),
    (['benchmark', 'preact_resnet20', '--img-size', -1], '--img-size must be at least 1, got -1'),
    (['benchmark', 'preact_resnet20', '--threads', 0], '--threads must be at least 1')])
def test_so_is_one_of_another_command(arguments, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sentence in refusal(*arguments) and not list(tmp_path.iterdir())


@pytest.mark.parametrize('arguments, sentence', [
    (['evaluate', '--model', 'preact_resnet20', '--num-classes', 5],
     '--num-classes is 5, and the weights of preact_resnet20 have 10 classes: leave it out'),
    (['export', 'preact_resnet20', '--to', 'x.pt', '--num-classes', 5], '--num-classes is 5'),
    (['export', 'preact_resnet20', '--to', 'x.pt', '--split', 'test'], '--split requires --int8.'),
    (['export', 'preact_resnet20', '--to', 'x.pt', '--calibration-images', 9], '--calibration-images requires --int8.'),
    (['evaluate', '--model', 'preact_resnet20', '--split', 'train'], '--split requires --data.'),
    (['evaluate', '--model', 'preact_resnet20', '--class-map', 'map.txt'],
     '--class-map requires --weights or --against-weights.'),
    (['propagate', 'preact_resnet20', '--split', 'train'], '--split requires --data.'),
    (['propagate', 'preact_resnet20', '--weights', 'w.pth', '--pretrained'], 'leave out --pretrained'),
    (['verify', '.', '--record'], '--record requires --data.'),
    (['verify', '.', '--split', 'test'], '--split requires --data.'),
    (['demo', '--port', 80], '--port requires --web.'),
    *((['convert', 'preact_resnet20.cifar10', '--to', 'made', *option], f'{option[0]} is for a weight file, and') for
      option in (['--name', 'preact_resnet20.mine'], ['--license', 'mit'], ['--class-map', 'map.txt'],
                 ['--model-kwargs', 'layers=[1, 1, 1]']))])
def test_an_option_without_effect_is_refused(arguments, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sentence in refusal(*arguments) and not list(tmp_path.iterdir())


def test_the_number_of_classes_that_the_weights_have_may_be_given():
    assert load_model('preact_resnet20', num_classes=10).num_classes == 10


@pytest.mark.parametrize('read', [
    lambda: load_image_set('', 'test'), lambda: open_images('', 'test', None), lambda: image_files(['']),
    lambda: find_weights(''), lambda: find_name(''), lambda: load_into('preact_resnet20', ''),
    lambda: hub.convert('', Path('made'))])
def test_an_empty_path_is_not_the_current_folder(read, tmp_path, monkeypatch):
    """pathlib.Path('') is the current folder, here one that each of these could read."""
    monkeypatch.chdir(tmp_path)
    hub.export_model(timm.create_model('preact_resnet20'), tmp_path)
    (tmp_path / 'class').mkdir()
    Image.new('RGB', (32, 32)).save(tmp_path / 'class' / 'image.png')
    with pytest.raises(UserError, match='empty'):
        read()


# Arguments of the model


@pytest.mark.parametrize('argument, sentence', [
    ('placement=odd', "placement='odd' is not known"), ('nothing=1', 'nothing'), ('layers=3', 'TypeError'),
    ('act_layer=foo', 'cannot be made with'), ('merge_kwargs={"bias": 1}', 'bias'),
    ('checkpoint_every=0', 'checkpoint_every must be at least 1'), ('drop_rate=2', 'drop_rate must be at least 0'),
    ('drop_path_rate=-1', 'drop_path_rate must be at least 0 and below 1, got -1'),
    ('bottle_ratio=0', 'bottle_ratio must be above 0'), ('norm_eps=-1', 'norm_eps must be at least 0'),
    ('stem_chs=0', 'stem_chs must be at least 1')])
def test_model_arguments_that_are_none_are_refused(argument, sentence, npz_folder, tmp_path):
    assert sentence in refusal(
        'preact_resnet20', '--data', npz_folder, '--output', tmp_path / 'run', '--model-kwargs', argument,
        command=train)
    torch.save(timm.create_model('preact_resnet20').state_dict(), tmp_path / 'w.pth')
    assert sentence in refusal('convert', tmp_path / 'w.pth', '--name', 'preact_resnet20.mine', '--to',
                               tmp_path / 'made', '--model-kwargs', argument)
    assert sentence in refusal('propagate', 'preact_resnet20', '--model-kwargs', argument)
    key, _, value = argument.partition('=')
    value = json.loads(value) if value[0] in '{-0123456789' else value
    (tmp_path / 'config.json').write_text(json.dumps(dict(architecture='preact_resnet20', model_args={key: value})))
    assert sentence in refusal('evaluate', '--model', 'preact_resnet20', '--data', npz_folder, '--weights',
                               tmp_path / 'w.pth')
    assert sorted(path.name for path in tmp_path.iterdir()) == ['config.json', 'w.pth']


@pytest.mark.parametrize('argument, message', [
    ('pretrained=True', 'pretrained is not an argument of the network: leave it out of model_kwargs (use --pretrained'),
    ('checkpoint_path=/home/me/net.pth', 'checkpoint_path is not an argument of the network'),
    ('num_classes=5', 'num_classes is not an argument of the network'), ('scriptable=True', 'scriptable is not'),
    ('features_only=True', 'features_only is not'), ('pretrained_strict=False', 'pretrained_strict is not'),
    ('global_pool=', 'global_pool must not be empty')])
def test_arguments_of_timms_factory_are_refused(argument, message, npz_folder, tmp_path):
    torch.save(timm.create_model('preact_resnet20').state_dict(), tmp_path / 'w.pth')
    for command, arguments in (
            (train, ['preact_resnet20', '--data', npz_folder, '--output', tmp_path / 'run']),
            (app, ['convert', tmp_path / 'w.pth', '--name', 'preact_resnet20.mine', '--to', tmp_path / 'made']),
            (app, ['propagate', 'preact_resnet20'])):
        assert message in refusal(*arguments, '--model-kwargs', argument, command=command)
    assert [path.name for path in tmp_path.iterdir()] == ['w.pth']


def test_every_argument_of_timms_factory_is_reserved():
    for function in (timm.create_model, timm.models.build_model_with_cfg):
        assert RESERVED_ARGS.keys() >= inspect.signature(function).parameters.keys() - {'kwargs'}


def test_a_misspelt_name_is_noticed_before_data_are_fetched(tmp_path):
    """This data set is nowhere: asking for it would be another error, after the network was asked."""
    assert 'did you mean preact_resnet20' in refusal(
        'preact_resnt20', '--data', 'nobody/nothing', '--output', tmp_path / 'run', command=train)


# Checkpoints


@pytest.mark.parametrize('inside', [
    lambda weights: {'net': weights, 'acc': 91.5, 'epoch': 3}, lambda weights: {'model_state_dict': weights},
    lambda weights: {'state_dict': weights, 'optimizer': {'state': {}, 'param_groups': []}},
    lambda weights: {f'module.{key}': tensor for key, tensor in weights.items()}, lambda weights: weights,
    lambda weights: {'state_dict_ema': weights, 'state_dict': {key: 0 * t for key, t in weights.items()}}])
def test_a_state_dict_is_found_wherever_it_lies(inside, npz_folder, tmp_path):
    torch.save(inside(timm.create_model('preact_resnet20', pretrained=True).state_dict()), tmp_path / 'w.pth')
    result = CliRunner().invoke(app, ['evaluate', '--model', 'preact_resnet20', '--data', str(npz_folder), '--json',
                                      '--weights', str(tmp_path / 'w.pth')], catch_exceptions=False)
    assert json.loads(result.stdout)['top1'] == 89


@pytest.mark.parametrize('content, sentence', [
    ({'epoch': 3}, 'holds no state dict: save model.state_dict'), ([1, 2], 'no state dict'), ({}, 'no state dict'),
    ({'generator': {'a': torch.ones(1)}, 'critic': {'a': torch.ones(1)}}, 'several state dicts, generator, critic')])
def test_a_file_without_one_is_refused(content, sentence, tmp_path):
    torch.save(content, tmp_path / 'w.pth')
    with pytest.raises(WeightsError, match=sentence):
        read_checkpoint(tmp_path / 'w.pth')
    assert sentence in refusal('predict', tmp_path / 'image.png', '--weights', tmp_path / 'w.pth')


@pytest.mark.parametrize('value', [float('nan'), float('inf')])
def test_weights_of_a_run_that_diverged_are_refused(value, image, tmp_path):
    weights = timm.create_model('preact_resnet20', pretrained=True).state_dict()
    weights['stages.2.blocks.0.residual.conv1.weight'][0, 0, 0, 0] = value
    torch.save(weights, tmp_path / 'w.pth')
    for arguments in (['predict', image, '--weights', tmp_path / 'w.pth'],
                      ['convert', tmp_path / 'w.pth', '--name', 'preact_resnet20.mine', '--to', tmp_path / 'made']):
        assert 'stages.2.blocks.0.residual.conv1.weight holds NaN or infinity' in refusal(*arguments)


def test_keras_3s_own_weights_are_called_what_they_are(tmp_path):
    with h5py.File(tmp_path / 'net.weights.h5', 'w') as file:
        file.create_dataset('layers/conv2d/vars/0', data=np.zeros((3, 3, 3, 8)))
    output = refusal('convert', tmp_path / 'net.weights.h5', '--name', 'preact_resnet50_keras.mine', '--to',
                     tmp_path / 'made')
    assert "is of Keras 3's save_weights" in output and "model.save('network.h5')" in output and 'damaged' not in output


# Folders for the Hub


def test_what_a_folder_lacks_is_said_with_the_command_that_makes_it(tmp_path):
    made = tmp_path / 'made'
    hub.convert('preact_resnet20.cifar10', made)
    for name, advice in (('README.md', f'that timm-preact convert made, of {made}.'),
                         ('model.safetensors', 'convert made, of a weight file or a folder of train.cifar.')):
        whole = (made / name).read_bytes()
        (made / name).unlink()
        for command in (['verify', made], ['publish', made, '--repo-id', 'lab/net', '--dry-run']):
            output = refusal(*command)
            assert f'has no {name}' in output and advice in output
        (made / name).write_bytes(whole)


def test_a_folder_of_the_trainer_can_be_converted_as_advised(tmp_path, npz_folder):
    result = CliRunner().invoke(train, [
        'preact_resnet20', '--data', str(npz_folder), '--recipe', 'modern', '--batch-size', '32', '--iterations', '2',
        '--model-kwargs', 'layers=[1, 1, 1]', '--output', str(tmp_path / 'run'), '--device', 'cpu'])
    assert result.exit_code == 0, result.output
    assert 'has no README.md' in refusal('verify', tmp_path / 'run')
    for command in (['convert', tmp_path / 'run', '--name', 'preact_resnet20.mine', '--license', 'mit', '--to',
                     tmp_path / 'made'], ['verify', tmp_path / 'made']):
        result = CliRunner().invoke(app, list(map(str, command)), catch_exceptions=False)
        assert result.exit_code == 0, result.output
