"""The CIFAR trainer: recipes, augmentation, exact resumption, and many processes."""
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from support.runs import TINY, cut
from typer.testing import CliRunner

from timm_preact.data import load_image_set
from timm_preact.errors import ArgumentError
from timm_preact.evaluation import eval_transform, evaluate, load_model, open_images
from train.batches import Batches, EpochPlan, channel_statistics
from train.cifar import app, find_launcher
from train.recipe import RECIPES, Recipe, choose_recipe, lr_at
from train.run import Run, read_checkpoint

ROOT = Path(__file__).parents[2]


def arguments(data, output, *options):
    kwargs = [word for key, value in TINY.items() for word in ('--model-kwargs', f'{key}={value}')]
    return ['preact_resnet20', *kwargs, '--recipe', 'modern', '--batch-size', '32', '--data', str(data), '--output',
            str(output), *options]


def train(data, output, *options):
    """Train in this process; the run must succeed."""
    result = CliRunner().invoke(app, arguments(data, output, *options), catch_exceptions=False)
    assert result.exit_code == 0, result.output


def refusal(data, output, *options):
    """The one sentence with which a run is refused."""
    result = CliRunner().invoke(app, arguments(data, output, *options), catch_exceptions=False)
    assert result.exit_code == 2
    return result.output


def start(data, output, *options):
    """Train in a process of its own."""
    return subprocess.Popen(
        [sys.executable, '-m', 'train.cifar', *arguments(data, output, *options)], cwd=ROOT, stdout=subprocess.DEVNULL)


def test_paper_recipe_is_the_appendix():
    """0.01 for 400 iterations, 0.1, a tenth at 32k and 48k of 64k; plain momentum; 1e-4 on convolutions."""
    paper = RECIPES['paper']
    rates = {0: 0.01, 399: 0.01, 400: 0.1, 31_999: 0.1, 32_000: 0.01, 47_999: 0.01, 48_000: 0.001, 63_999: 0.001}
    assert {step: pytest.approx(lr_at(paper, step, paper.iterations)) for step in rates} == rates
    assert (paper.batch_size, paper.momentum, paper.nesterov, paper.weight_decay) == (128, 0.9, False, 1e-4)
    assert (paper.mean, paper.iterations, paper.epochs) == ('pixel', 64_000, None)


def test_torch_recipe_drops_after_epochs_80_and_121_of_200():
    recipe = RECIPES['torch']
    steps = 50_000 // recipe.batch_size
    rates = [lr_at(recipe, epoch * steps, 200 * steps) for epoch in (0, 79, 80, 120, 121, 199)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 0.001, 0.001])
    assert recipe.nesterov and recipe.decay_all and recipe.mean == 'channel'


def test_modern_recipe_rises_once_and_falls_to_zero():
    rates = [lr_at(RECIPES['modern'], step, 1000) for step in range(1000)]
    peak = int(np.argmax(rates))
    assert rates[:peak + 1] == sorted(rates[:peak + 1]) and rates[peak:] == sorted(rates[peak:], reverse=True)
    assert max(rates) == pytest.approx(0.2, rel=0.01) and 0 < rates[-1] < 0.001


def test_statistics_are_the_channels_mean_and_standard_deviation(sample):
    pixels = sample.images.reshape(-1, 3) / 255
    mean, std = channel_statistics(sample.images)
    assert mean == pytest.approx(pixels.mean(0), abs=5.1e-5) and std == pytest.approx(pixels.std(0), abs=5.1e-5)


@pytest.mark.parametrize('mean_image', [True, False])
@pytest.mark.parametrize('pad, side', [(4, 0), (6, 0), (0, 9), (4, 12)])
def test_augmentation_is_zero_padding_crop_flip_and_hole_of_the_normalised_image(sample, mean_image, pad, side):
    recipe = choose_recipe('modern', translate=pad, cutout=side)
    mean = torch.from_numpy(sample.images.mean(0) / 255).float() if mean_image else torch.tensor([0.5, 0.4, 0.3])
    std = torch.tensor([0.2, 0.3, 0.4])
    batches = Batches(sample, recipe, mean, std, torch.device('cpu'))
    plan = EpochPlan.make(recipe, 0, 3, sample.images.shape, torch.device('cpu'))
    x, y = batches.train(plan, torch.arange(64, 192))
    assert x.is_contiguous(memory_format=torch.channels_last)
    for place, image, label in zip(range(64, 192), x, y, strict=True):
        index = plan.order[place].item()
        normalised = (torch.from_numpy(sample.images[index]).float() / 255 - mean) / std
        padded = np.pad(normalised.numpy(), ((pad, pad), (pad, pad), (0, 0)))
        top, left = plan.top[place] + pad, plan.left[place] + pad
        crop = padded[top:top + 32, left:left + 32]
        expected = crop[:, ::-1] if plan.flip[place] else crop
        if side:
            expected = expected.copy()
            top, left = plan.hole_top[place], plan.hole_left[place]
            expected[max(top, 0):top + side, max(left, 0):left + side] = 0
        assert label == sample.labels[index]
        assert np.array_equal(image.permute(1, 2, 0).numpy(), expected)


def test_an_epoch_is_a_function_of_seed_and_number():
    draw = [EpochPlan.make(RECIPES['paper'], seed, epoch, (1000, 32, 32, 3), torch.device('cpu'))
            for seed, epoch in ((0, 1), (0, 1), (1, 1), (0, 2))]
    assert all(torch.equal(a, b) for a, b in zip(draw[0], draw[1], strict=True))
    assert not torch.equal(draw[0].order, draw[2].order) and not torch.equal(draw[0].order, draw[3].order)
    assert draw[0].order.sort().values.equal(torch.arange(1000))
    assert set(draw[0].top.tolist()) == set(range(-4, 5))
    assert 400 < draw[0].flip.sum() < 600


def test_alternating_flips_show_an_image_both_ways_in_any_two_epochs():
    recipe = choose_recipe('modern', alternate_flips=True)
    flips = []
    for epoch in range(4):
        plan = EpochPlan.make(recipe, 5, epoch, (1000, 32, 32, 3), torch.device('cpu'))
        flips.append(plan.flip[plan.order.argsort()])
    assert torch.equal(flips[0], ~flips[1]) and torch.equal(flips[0], flips[2]) and torch.equal(flips[1], flips[3])
    assert 400 < flips[0].sum() < 600


def test_the_holes_centre_is_anywhere_in_the_crop():
    plan = EpochPlan.make(choose_recipe('modern', cutout=8), 0, 0, (1000, 32, 16, 3), torch.device('cpu'))
    assert set(plan.hole_top.tolist()) == set(range(-4, 28)) and set(plan.hole_left.tolist()) == set(range(-4, 12))


@pytest.fixture(scope='module')
def finished(small_folder, tmp_path_factory):
    """A whole run of 3 epochs, 10 steps each."""
    output = tmp_path_factory.mktemp('runs') / 'whole'
    train(small_folder, output, '--epochs', '3')
    return output


def test_killed_at_any_moment_and_resumed_ends_with_the_same_bits(small_folder, finished, tmp_path):
    """SIGKILL after each of several checkpoints, some in the middle of an epoch."""
    output = tmp_path / 'killed'
    kills = 0
    for wait in (0., 0.4, 0.1):
        process = start(small_folder, output, '--epochs', '3', '--checkpoint-every', '3')
        before = checkpoint_time(output)
        while process.poll() is None and checkpoint_time(output) == before:
            time.sleep(0.005)
        time.sleep(wait)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills >= 2
    train(small_folder, output, '--epochs', '3', '--checkpoint-every', '3')
    killed, whole = load_file(output / 'model.safetensors'), load_file(finished / 'model.safetensors')
    assert killed.keys() == whole.keys()
    assert all(torch.equal(killed[key], whole[key]) for key in whole)
    curves = [json.loads((folder / 'run.json').read_text())['curve'] for folder in (output, finished)]
    measures = [[(row['step'], row['train_loss'], row['test_error']) for row in curve] for curve in curves]
    assert measures[0] == measures[1]


def checkpoint_time(output):
    path = output / 'checkpoint.pt'
    return path.stat().st_mtime_ns if path.exists() else 0


def test_a_finished_run_leaves_a_model_that_timm_loads_and_evaluates_to_the_digit(small_folder, finished):
    run = json.loads((finished / 'run.json').read_text())
    assert {p.name for p in finished.iterdir()} == {
        '.lock', 'checkpoint.pt', 'config.json', 'curves.png', 'log.csv', 'model.safetensors', 'run.json'}
    assert len(run['curve']) == 3 and run['test_error'] == run['curve'][-1]['test_error']
    model = timm.create_model(f'local-dir:{finished}', pretrained=True).eval()
    assert sum(len(stage.blocks) for stage in model.stages) == 3
    mine = load_model('preact_resnet20', str(finished))
    images = open_images(str(small_folder), 'test', eval_transform(mine))
    for net in (model, mine):
        assert evaluate(net, images).error == pytest.approx(run['test_error'], abs=1e-9)


def content(folder):
    """Every file with the time of its last change."""
    return {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}


def test_a_finished_run_is_not_touched(small_folder, finished, monkeypatch):
    before = content(finished)
    monkeypatch.setattr(sys, 'argv', ['train.cifar', 'another', 'command'])
    for options in ((), ('--no-amp',)):
        result = CliRunner().invoke(app, arguments(small_folder, finished, '--epochs', '3', *options))
        error = json.loads(before['run.json'][0])['test_error']
        assert result.stdout == f'{finished} is finished: test error {error:.2f} % after 30 steps (run.json).\n'
        assert result.exit_code == 0 and content(finished) == before


def test_a_run_killed_before_its_result_was_written_is_completed_by_what_trained_it(
        small_folder, finished, tmp_path, monkeypatch):
    for name in ('checkpoint.pt', 'log.csv'):
        shutil.copy(finished / name, tmp_path / name)
    monkeypatch.setattr(sys, 'argv', ['train.cifar', 'another', 'command'])
    train(small_folder, tmp_path, '--epochs', '3')
    completed, whole = (json.loads((folder / 'run.json').read_text()) for folder in (tmp_path, finished))
    session, = completed['sessions']
    assert completed['command'] == session['command'] == whole['command'] != 'python -m train.cifar another command'
    assert completed['peak_memory_bytes'] == session['peak_memory_bytes']
    assert completed['weights_sha256'] == whole['weights_sha256'] and completed['curve'] == whole['curve']
    assert (tmp_path / 'curves.png').exists()


def test_a_run_of_two_processes_is_not_continued_by_one(small_folder, tmp_path):
    """It would change BatchNorm's groups from 16 to 32 images."""
    options = ['--iterations', '2000', '--checkpoint-every', '2', '--no-amp']
    process = subprocess.Popen(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2',
         '-m', 'train.cifar', *arguments(small_folder, tmp_path, *options)],
        cwd=ROOT, env=dict(os.environ, OMP_NUM_THREADS='1'), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None and not (tmp_path / 'checkpoint.pt').exists():
        time.sleep(0.05)
    process.terminate()  # torchrun ends its workers
    process.wait()
    before = read_checkpoint(tmp_path)
    sentence = refusal(small_folder, tmp_path, *options)
    assert '(processes 2 before and 1 now, bn_group 16 before and 32 now): continue it by `torchrun' in sentence
    assert f"`{before['sessions'][0]['command']}`" in sentence
    settings, recipe = before['settings'], Recipe(**before['recipe'])
    sets = [load_image_set(small_folder, split) for split in ('train', 'test')]
    with closing(Run(settings, recipe, *sets, tmp_path, torch.device('cpu'), allow_changes=True)) as run:
        run.advance()
        assert [(session['first_step'], session['processes'], session['bn_group']) for session in run.sessions] == [
            (0, 2, 16), (before['step'], 1, 32)]


def test_the_recorded_command_starts_as_many_processes_again(monkeypatch):
    assert find_launcher() == 'python -m train.cifar'
    monkeypatch.setenv('WORLD_SIZE', '2')
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '2')
    assert find_launcher() == 'torchrun --nproc-per-node 2 -m train.cifar'
    monkeypatch.setenv('WORLD_SIZE', '16')
    monkeypatch.setenv('LOCAL_WORLD_SIZE', '8')
    monkeypatch.setenv('GROUP_WORLD_SIZE', '2')
    assert find_launcher() == 'torchrun --nnodes 2 --nproc-per-node 8 -m train.cifar'


# Fine-tuning


def fine_tune(data, output, *options):
    return CliRunner().invoke(app, [
        'preact_resnet20', '--pretrained', '--recipe', 'modern', '--data', str(data), '--output', str(output),
        '--batch-size', '20', '--lr', '0.0001', *options], catch_exceptions=False)


def test_fine_tuning_starts_from_the_weights_of_the_name_and_their_normalisation(npz_folder, tmp_path):
    assert fine_tune(npz_folder, tmp_path, '--iterations', '2').exit_code == 0
    result = json.loads((tmp_path / 'run.json').read_text())
    cfg = json.loads((tmp_path / 'config.json').read_text())['pretrained_cfg']
    assert result['pretrained'] == 'preact_resnet20.cifar10' and result['test_error'] < 30
    assert cfg['mean'] == [0.4914, 0.4822, 0.4465] and cfg['std'] == [0.247, 0.2435, 0.2616]
    images = open_images(str(npz_folder), 'test', eval_transform(load_model('preact_resnet20', str(tmp_path))))
    assert evaluate(load_model('preact_resnet20', str(tmp_path)), images).error == pytest.approx(result['test_error'])


def test_fine_tuning_adapts_the_classifier_to_the_data(npz_folder, tmp_path):
    data = tmp_path / 'two'
    data.mkdir()
    for split in ('train', 'test'):
        images = load_image_set(npz_folder, split)
        np.savez(data / f'{split}.npz', images=images.images, labels=images.labels % 2, classes=np.array(['a', 'b']))
    assert fine_tune(data, tmp_path / 'run', '--iterations', '1').exit_code == 0
    tuned, published = load_model('preact_resnet20', str(tmp_path / 'run')), load_model('preact_resnet20')
    assert tuned.num_classes == 2
    torch.testing.assert_close(tuned.stem.conv.weight, published.stem.conv.weight, rtol=0, atol=1e-3)


def test_a_network_without_weights_is_refused_before_data_are_read(tmp_path):
    result = CliRunner().invoke(app, [
        'preact_resnet110', '--pretrained', '--recipe', 'modern', '--data', 'nobody/nothing', '--output',
        str(tmp_path / 'run')], catch_exceptions=False)
    assert result.exit_code == 2
    assert result.stderr.startswith('error: preact_resnet110.cifar10 has no published weights')
    assert result.stderr.count('\n') == 1 and not (tmp_path / 'run').exists()


def test_a_run_is_resumed_without_the_weights_that_it_began_with(small_folder, tmp_path):
    """These are published on the Internet; nothing fetches them here."""
    sets = [load_image_set(small_folder, split) for split in ('train', 'test')]
    settings = dict(model='preact_resnet20_pcv', model_kwargs={}, seed=0, amp=False, data=[s.sha256 for s in sets])
    recipe = choose_recipe('modern', batch_size=32, iterations=2)
    cut(Run(settings, recipe, *sets, tmp_path, torch.device('cpu')), 1)
    state = torch.load(tmp_path / 'checkpoint.pt', weights_only=True)
    state['settings']['pretrained'] = 'preact_resnet20_pcv.cifar10'
    torch.save(state, tmp_path / 'checkpoint.pt')
    result = CliRunner().invoke(app, [
        'preact_resnet20_pcv', '--pretrained', '--recipe', 'modern', '--data', str(small_folder), '--output',
        str(tmp_path), '--batch-size', '32', '--iterations', '2', '--no-amp'], catch_exceptions=False)
    assert result.exit_code == 0, result.output


def test_the_log_has_a_row_an_epoch(finished):
    lines = (finished / 'log.csv').read_text().splitlines()
    assert lines[0].startswith('epoch,step,lr,train_loss,test_error') and len(lines) == 4


def test_a_run_with_other_settings_is_not_resumed(small_folder, finished):
    assert f'--output {finished} holds another run (seed 0 before and 1 now): choose another folder.' in refusal(
        small_folder, finished, '--epochs', '3', '--seed', '1')


def test_a_run_on_other_data_is_not_resumed(small_folder, finished, tmp_path):
    for split, other in (('train', 'test'), ('test', 'train')):
        (tmp_path / f'{split}.npz').write_bytes((small_folder / f'{other}.npz').read_bytes())
    assert 'holds another run (training images ' in refusal(tmp_path, finished, '--epochs', '3')


def test_a_run_on_the_same_images_with_other_class_names_is_not_resumed(small_folder, finished, tmp_path):
    for split in ('train', 'test'):
        with np.load(small_folder / f'{split}.npz') as arrays:
            np.savez(tmp_path / f'{split}.npz', **dict(arrays, classes=np.array([f'class {i}' for i in range(10)])))
    assert 'holds another run (class names ' in refusal(tmp_path, finished, '--epochs', '3')


def test_a_file_that_is_no_checkpoint_is_not_resumed(small_folder, tmp_path):
    (tmp_path / 'checkpoint.pt').write_bytes(b'something else')
    assert 'is not a checkpoint of train.cifar' in refusal(small_folder, tmp_path, '--epochs', '3')
    torch.save(dict(settings={}, recipe={}, step=1), tmp_path / 'checkpoint.pt')
    assert 'is not a checkpoint of train.cifar' in refusal(small_folder, tmp_path, '--epochs', '3')


def test_a_diverged_run_stops_with_a_sentence(small_folder, tmp_path):
    assert 'the run diverged' in refusal(small_folder, tmp_path, '--iterations', '30', '--lr', '1e30')
    assert not (tmp_path / 'model.safetensors').exists()


def test_two_processes_compute_what_one_computes_with_groups_of_their_batch(small_folder, tmp_path):
    """torchrun with gloo, 2 x 16 images, against one process with BatchNorm over groups of 16, in float32.

    A small learning rate keeps ten steps from amplifying the rounding that differs between the two.
    """
    options = ['--epochs', '1', '--no-amp', '--bn-group', '16', '--lr', '0.01']
    one, two = tmp_path / 'one', tmp_path / 'two'
    train(small_folder, one, *options)
    subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2',
         '-m', 'train.cifar', *arguments(small_folder, two, *options)],
        cwd=ROOT, env=dict(os.environ, OMP_NUM_THREADS='1'), check=True, capture_output=True)
    losses = [
        [row['train_loss'] for row in json.loads((folder / 'run.json').read_text())['curve']] for folder in (one, two)]
    assert losses[0] == pytest.approx(losses[1], rel=5e-5)
    result = json.loads((two / 'run.json').read_text())
    assert result['command'].startswith('torchrun --nproc-per-node 2 -m train.cifar preact_resnet20 ')
    assert (result['processes'], result['sessions'][0]['bn_group']) == (2, 16)
    key = 'stages.0.blocks.0.residual.conv1.weight'
    weights = [load_file(folder / 'model.safetensors')[key] for folder in (one, two)]
    assert (weights[0] - weights[1]).norm() < 1e-3 * weights[0].norm()


def test_a_group_smaller_than_the_batch_changes_batchnorm(small_folder, tmp_path):
    losses = []
    for group in ('8', '32'):
        train(small_folder, tmp_path / group, '--iterations', '4', '--no-amp', '--bn-group', group)
        losses.append(json.loads((tmp_path / group / 'run.json').read_text())['train_loss'])
    assert losses[0] != losses[1]


def test_the_mean_image_is_kept_with_the_weights(small_folder, tmp_path):
    train(small_folder, tmp_path, '--iterations', '2', '--mean', 'pixel')
    with np.load(small_folder / 'train.npz') as arrays:
        expected = arrays['images'].mean(0) / 255
    kept = load_file(tmp_path / 'mean_image.safetensors')['mean_image'].numpy()
    assert np.allclose(kept, expected, atol=1e-6)


@pytest.mark.parametrize('options, message', [
    (['--batch-size', '0'], '--batch-size must be at least 1, got 0.'),
    (['--batch-size', '512'], 'batch size 512 does not fit 320 images'),
    (['--recipe', 'papre'], 'choose one of paper, torch, modern'),
    (['--epochs', '1', '--iterations', '1'], 'give one of them'),
    (['--model-kwargs', 'layers'], 'write KEY=VALUE'),
    (['--model-kwargs', 'colour=1'],
     'cannot be made with layers=[1, 1, 1], channels=[4, 8, 16], stem_chs=4, colour=1 (TypeError'),
    (['--epochs', '0.0001'], '0.0001 epochs are less than one step. Increase --epochs.'),
    (['--epochs', 'nan'], '--epochs must be above 0 and at most 1000000000, got nan.'),
    (['--epochs', '1e308'], '--epochs must be above 0 and at most 1000000000, got 1e+308.'),
    (['--lr', '1e300'], '--lr must be above 0 and at most 1e+30, got 1e+300.'),
    (['--translate', '2000'], '--translate must be at most 16, got 2000.'),
    (['--cutout', '100000000000000000000'], '--cutout must be at least 0 and at most 2147483647'),
    (['--model-kwargs', 'global_pool=None'], 'global_pool must not be empty'),
    (['--model-kwargs', 'drop_path_rate=NaN'], 'drop_path_rate must be at least 0 and below 1'),
    (['--model-kwargs', 'bottle_ratio=0.001', '--model-kwargs', 'kernels=[1, 3, 1]'], 'cannot be'),
    (['--epochs', 'inf'], '--epochs must be above 0 and at most 1000000000, got inf.'),
    (['--lr', 'nan'], '--lr must be above 0 and at most 1e+30, got nan.'),
    (['--seed', '-1'], '--seed must be at least 0 and at most 2147483647, got -1.'),
    (['--average', '-0.1'], '--average must be at least 0 and at most 1, got -0.1.'),
    (['--average', '5'], '--average must be at least 0 and at most 1, got 5.0.'),
    (['--label-smoothing', '-0.1'], '--label-smoothing must be at least 0 and at most 1, got -0.1.'),
    (['--label-smoothing', '1.5'], '--label-smoothing must be at least 0 and at most 1, got 1.5.'),
    (['--weight-decay', '-1'], '--weight-decay must be at least 0 and at most 1e+30, got -1.0.'),
    (['--warmup', '-1'], '--warmup must be at least 0, got -1.0.'),
    (['--mean', 'median'], "--mean must be one of pixel, channel, got 'median'."),
    (['--bn-group', '50'], '--bn-group must divide the batch of a process (32 images), got 50.'),
    (['--checkpoint-every', '-1'], '--checkpoint-every must be at least 0, got -1.'),
    (['--pretrained', '--mean', 'pixel'], "--mean must be 'channel' with --pretrained, got 'pixel'."),
    (['--pretrained'], 'the weights of preact_resnet20.cifar10 do not fit a network with '),
    *((['--model-kwargs', f'{name}=1'], f'{name} is not an argument of the network') for name in (
        'pretrained', 'checkpoint_path', 'scriptable', 'num_classes', 'in_chans', 'features_only', 'device')),
    (['--device', 'abacus'], '--device abacus is not there'),
])
def test_bad_options_end_with_a_sentence(small_folder, tmp_path, options, message):
    assert message in refusal(small_folder, tmp_path / 'out', *options)
    assert not (tmp_path / 'out' / 'log.csv').exists()


@pytest.mark.parametrize('name, value', [
    ('iterations', 1.5), ('iterations', 0), ('batch_size', 32.5), ('momentum', 1.), ('momentum', -0.1),
    ('milestones', (0.5, 1.5)), ('warmup_lr', 0.), ('translate', -1), ('cutout', 2.5), ('lr', float('inf')),
    ('schedule', 'cosine'), ('mean', 'median')])
def test_a_recipe_out_of_range_cannot_exist(name, value):
    with pytest.raises(ArgumentError, match=f'^{name} must be '):
        Recipe(**{name: value})


def test_an_unknown_name_suggests_the_nearest(small_folder, tmp_path):
    options = ['preact_resnet11', '--data', str(small_folder), '--output', str(tmp_path)]
    result = CliRunner().invoke(app, options, catch_exceptions=False)
    assert result.exit_code == 2 and 'did you mean preact_resnet1' in result.output


def test_an_output_folder_that_cannot_be_written_is_refused_before_training(small_folder, tmp_path):
    (tmp_path / 'file').write_text('in the way')
    assert str(tmp_path / 'file') in refusal(small_folder, tmp_path / 'file' / 'out')


def test_a_data_folder_without_a_split_is_refused(small_folder, tmp_path):
    (tmp_path / 'train.npz').write_bytes((small_folder / 'train.npz').read_bytes())
    assert 'test.npz' in refusal(tmp_path, tmp_path / 'out')
