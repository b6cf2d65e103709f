"""timm's own scripts with our names, on real images in ImageNet's layout: TIMM_SCRIPTS=CLONE pytest -m slow.

Everything here starts the real train.py, validate.py and so on in a process of its own.
"""
import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
from PIL import Image

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / 'train' / 'recipes' / 'imagenet_preact_resnet200_scale_aspect.yaml'
WORKER = ROOT / 'train' / 'imagenet_worker.sh'
CPU = ['--device', 'cpu', '--workers', '1']
# The recipe with sizes changed: images of 64x64, a batch and a time for 400 of them
NET = ['--model', 'preact_resnet18', '--num-classes', '10', '--img-size', '64']
SMALL = ['--config', RECIPE, *NET, *CPU, '--scale', '0.5', '1', '--batch-size', '40', '--lr', '0.02', '--epochs', '8',
         '--decay-epochs', '3']
QUICK = ['--device', 'cpu', '--bench', 'inference', '--num-bench-iter', '10', '--batch-size', '8']
CPU_DDP = ['--device-modules', 'timm_preact', 'cpu_ddp']

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not os.environ.get('TIMM_SCRIPTS'), reason='TIMM_SCRIPTS names no clone of timm'),
]


@pytest.fixture(scope='module')
def images(sample, tmp_path_factory):
    """The 500 real images, enlarged: train/CLASS/*.png with 40 a class, validation/CLASS/*.png with 10."""
    root = tmp_path_factory.mktemp('images')
    for i, (image, label) in enumerate(zip(sample.images, sample.labels, strict=True)):
        folder = root / ('train' if i % 50 < 40 else 'validation') / sample.classes[label]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).resize((96, 96), Image.BICUBIC).save(folder / f'{i}.png')
    return root


def command(script, *args, processes=None, launcher=()):
    """`python SCRIPT`, or as torchrun or `python -m timm_preact run` start it."""
    if processes:
        launcher = ['-m', 'torch.distributed.run', '--nproc-per-node', str(processes), *launcher]
    return [str(part) for part in (sys.executable, *launcher, script, *args)]


def environment():
    return dict(os.environ, PYTHONPATH=f'{ROOT / "tests" / "support"}', OMP_NUM_THREADS='1',
                TORCH_DISABLE_SHARE_RDZV_TCP_STORE='1')


def run(*args, cwd=None, **kwargs):
    done = subprocess.run(command(*args, **kwargs), capture_output=True, text=True, env=environment(), cwd=cwd)
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    return done.stdout + done.stderr


def train(output, *args, **kwargs):
    """train.py as it comes; the losses and accuracies of every epoch."""
    script = Path(os.environ['TIMM_SCRIPTS']) / 'train.py'
    run(script, '--output', output, '--experiment', 'run', *args, **kwargs)
    return summary(output)


def summary(output):
    with open(output / 'run' / 'summary.csv') as file:
        rows = [row for row in csv.DictReader(file) if row['epoch'] != 'epoch']  # resumed, train.py writes it again
    return [{key: float(value) for key, value in row.items()} for row in rows]


def ours(script, *args, **kwargs):
    """timm-preact run SCRIPT."""
    return run('run', script, *args, launcher=('-m', 'timm_preact'), **kwargs)


@pytest.fixture(scope='module')
def trained(images, tmp_path_factory):
    output = tmp_path_factory.mktemp('trained')
    return output, train(output, *SMALL, '--data-dir', images)


def validate(images, *args, launcher=ours):
    output = launcher('validate.py', '--data-dir', images, *CPU, *args)
    return json.loads(output.split('--result\n')[1].split('\n}')[0] + '}')


def test_the_recipe_learns(images, trained):
    output, epochs = trained
    assert len(epochs) == 8 and epochs[-1]['train_loss'] < epochs[0]['train_loss'] - 0.3
    checkpoint = output / 'run' / 'last.pth.tar'
    assert validate(images, *NET, '--split', 'train', '--checkpoint', checkpoint)['top1'] > 30  # chance: 10


def test_two_processes_learn_as_one_does(images, trained, tmp_path):
    """The same global batch; BatchNorm sees half of it in each."""
    epochs = train(tmp_path, *SMALL, '--data-dir', images, '--batch-size', '20', *CPU_DDP, processes=2)
    assert abs(epochs[-1]['train_loss'] - trained[1][-1]['train_loss']) < 0.25


@pytest.mark.parametrize('args', [
    ('--model-ema', '--model-ema-decay', '0.9'), ('--torchcompile',), ('--grad-checkpointing',),
    ('--amp', '--amp-dtype', 'bfloat16'), ('--channels-last',)], ids=lambda args: args[0][2:])
def test_an_option_of_train_py_runs_an_epoch(args, images, tmp_path):
    epochs = train(
        tmp_path, '--device-modules', 'timm_preact', *NET, *CPU, '--batch-size', '40', '--lr', '0.02', '--epochs', '1',
        '--warmup-epochs', '0', '--data-dir', images, *args)
    assert len(epochs) == 1 and np.isfinite(epochs[0]['eval_loss'])


def worker(output, images, *args, launcher=()):
    """train/imagenet_worker.sh, which resumes where it can."""
    arguments = [*launcher, WORKER, output, 'run', *SMALL, '--epochs', '4', '--data-dir', images, *args]
    if launcher:
        arguments = ['-m', 'torch.distributed.run', *arguments]
    return subprocess.Popen(
        list(map(str, [sys.executable, *arguments] if launcher else arguments)), stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
        env=dict(environment(), PATH=f"{Path(sys.executable).parent}:{os.environ['PATH']}"))


def wait_for_epoch(output, epoch, seconds=200):
    file = output / 'run' / f'checkpoint-{epoch}.pth.tar'
    for _ in range(seconds * 10):
        if file.exists():
            return
        time.sleep(0.1)
    raise AssertionError(f'no {file} in {seconds} s')


def train_py_processes(output):
    """Process numbers of the train.py that write to `output`, loaders' workers not counted."""
    table = subprocess.run(['ps', '-eo', 'pid,ppid,args', '-ww'], capture_output=True, text=True).stdout
    rows = (line.split(None, 2) for line in table.splitlines()[1:])
    found = {int(pid): int(parent) for pid, parent, line in rows if f'run train.py --output {output}' in line}
    return [pid for pid, parent in found.items() if parent not in found]


def test_a_killed_training_goes_on(images, tmp_path):
    first = worker(tmp_path, images)
    wait_for_epoch(tmp_path, 1)
    os.killpg(first.pid, signal.SIGKILL)
    first.communicate()
    assert [row['epoch'] for row in summary(tmp_path)][:2] == [0, 1]
    second = worker(tmp_path, images)
    log, _ = second.communicate(timeout=300)
    assert second.returncode == 0, log
    assert re.search(r"Loaded checkpoint .*last.pth.tar' \(epoch [12]\)", log)
    assert summary(tmp_path)[-1]['epoch'] == 3


def test_a_worker_killed_under_torchrun_comes_back(images, tmp_path):
    launched = worker(tmp_path, images, '--batch-size', '20', *CPU_DDP, launcher=[
        '--nproc-per-node', '2', '--max-restarts', '1', '--rdzv-backend', 'c10d', '--rdzv-endpoint', 'localhost:0',
        '--no-python'])
    wait_for_epoch(tmp_path, 1)
    os.kill(train_py_processes(tmp_path)[1], signal.SIGKILL)
    log, _ = launched.communicate(timeout=300)
    assert launched.returncode == 0, log
    assert 'Loaded checkpoint' in log and summary(tmp_path)[-1]['epoch'] == 3


def test_two_nodes_meet_and_train(images, tmp_path):
    """Two torchruns of one process each, as on two machines, with the worker and a rendezvous on this one."""
    nodes = [worker(tmp_path, images, '--batch-size', '20', *CPU_DDP, launcher=[
        '--nnodes', '2', '--nproc-per-node', '1', '--rdzv-id', 'test', '--rdzv-backend', 'c10d', '--rdzv-endpoint',
        'localhost:29431', '--no-python']) for _ in range(2)]
    logs = [node.communicate(timeout=300)[0] for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], logs
    assert {rank for log in logs for rank in re.findall(r'Process (\d), total 2', log)} == {'0', '1'}
    assert summary(tmp_path)[-1]['epoch'] == 3


def test_checkpoints_average_clean_and_convert(images, trained, tmp_path):
    checkpoints = trained[0] / 'run'
    ours('avg_checkpoints.py', '--input', checkpoints, '--output', tmp_path / 'average.pth', '-n', '2')
    ours('clean_checkpoint.py', '--checkpoint', checkpoints / 'last.pth.tar', '--output', tmp_path / 'clean.pth',
         '--no-hash', cwd=tmp_path)
    for file in (tmp_path / 'average.pth', tmp_path / 'clean.pth', checkpoints / 'last.pth.tar'):
        folder = tmp_path / f'{file.stem}-converted'
        run('convert', file, '--name', 'preact_resnet18.mine', '--license', 'mit', '--to', folder,
            launcher=('-m', 'timm_preact'))
        assert timm.create_model(f'local-dir:{folder}', pretrained=True).num_classes == 10


@pytest.mark.parametrize('size, crop', [(224, 0.875), (320, 1.0)])
def test_validate_py_and_evaluate_agree_to_the_last_digit(size, crop, images, trained):
    """The paper's two protocols."""
    checkpoint = trained[0] / 'run' / 'last.pth.tar'
    options = ['--model', 'preact_resnet18', '--num-classes', '10', '--img-size', size, '--crop-pct', crop]
    theirs = validate(images, *options, '--checkpoint', checkpoint, '--batch-size', '50')
    output = run('evaluate', *options, '--data', images, '--split', 'validation', '--weights', checkpoint, '--json',
                 launcher=('-m', 'timm_preact'))
    mine = json.loads(output[output.index('{'):output.rindex('}') + 1])
    assert (theirs['top1'], theirs['top5'], theirs['img_size']) == (mine['top1'], mine['top5'], size)


def test_evaluate_numbers_classes_as_train_py_does(images, trained, tmp_path):
    """timm sorts 10 after 9, Python before 2."""
    for split in ('train', 'validation'):
        (tmp_path / split).mkdir()
        for i, folder in enumerate(sorted((images / split).iterdir())):
            (tmp_path / split / str(i + 1)).symlink_to(folder)
    checkpoint = trained[0] / 'run' / 'last.pth.tar'
    options = [*NET, '--crop-pct', '1.0']
    theirs = validate(tmp_path, *options, '--checkpoint', checkpoint, '--split', 'train')
    output = run('evaluate', *options, '--data', tmp_path, '--split', 'train', '--weights', checkpoint, '--json',
                 launcher=('-m', 'timm_preact'))
    assert json.loads(output[output.index('{'):output.rindex('}') + 1])['top1'] == theirs['top1'] > 30


def test_train_py_reads_parquet(parquet_folder, tmp_path):
    """hfds/ takes a folder of the Hub's layout, and streams it as hfids/ (1.0.29.dev0 cannot beside datasets 5)."""
    recipe = ROOT / 'train' / 'recipes' / 'cifar_timm.yaml'
    common = ['--config', recipe, '--model', 'preact_resnet20', '--batch-size', '32', '--epochs', '2', *CPU]
    folder = tmp_path / 'parquet'  # timm makes a data set's name lower case
    folder.symlink_to(parquet_folder)
    whole = train(tmp_path / 'whole', *common, '--dataset', f'hfds/{folder}')
    assert len(whole) == 2 and whole[1]['train_loss'] < 2.5
    ours('train.py', *common, '--dataset', f'hfids/{folder}', '--train-num-samples', '320', '--val-num-samples', '100',
         '--output', tmp_path / 'streamed', '--experiment', 'run')
    assert len(summary(tmp_path / 'streamed')) == 2


def test_train_py_reads_webdataset_shards(images, tmp_path):
    wds = pytest.importorskip('webdataset')
    counts = {}
    for split in ('train', 'validation'):
        files = sorted((images / split).rglob('*.png'))
        names = sorted({file.parent.name for file in files})
        for shard in range(2):
            with wds.TarWriter(str(tmp_path / f'{split}-{shard}.tar')) as tar:
                for file in files[shard::2]:
                    tar.write({'__key__': file.stem, 'png': file.read_bytes(), 'cls': names.index(file.parent.name)})
        counts[split] = len(files)
    (tmp_path / '_info.json').write_text(json.dumps(dict(splits={
        split: dict(name=split, num_samples=count, filenames=[f'{split}-{shard}.tar' for shard in range(2)],
                    shard_lengths=[len(range(shard, count, 2)) for shard in range(2)])
        for split, count in counts.items()})))
    epochs = train(tmp_path, *SMALL, '--data-dir', tmp_path, '--dataset', 'wds/', '--epochs', '3', '--batch-size', '20',
                   *CPU_DDP, processes=2)
    assert epochs[-1]['train_loss'] < epochs[0]['train_loss']


def test_finetuning_starts_from_the_weights_that_ship(images, tmp_path):
    """10 to 4 classes: three epochs are better than chance by far, since only the head is new."""
    for split in ('train', 'validation'):
        (tmp_path / split).mkdir()
        for folder in sorted((images / split).iterdir())[:4]:
            (tmp_path / split / folder.name).symlink_to(folder)
    recipe = ROOT / 'train' / 'recipes' / 'finetune.yaml'
    epochs = train(tmp_path, '--config', recipe, '--model', 'preact_resnet20', '--num-classes', '4', '--data-dir',
                   tmp_path, '--batch-size', '16', '--epochs', '3', *CPU)
    assert epochs[-1]['eval_top1'] > 60


def test_scripts_without_a_plug_in_option_know_our_names(images, tmp_path):
    model = ['--model', 'preact_resnet20']
    result = validate(images, *model, '--pretrained')
    assert result['top1'] > 80
    ours('inference.py', *model, '--pretrained', '--data-dir', images / 'validation', *CPU, '--topk', '1',
         '--results-dir', tmp_path, '--results-file', 'guesses', '--results-format', 'csv')
    assert len((tmp_path / 'guesses.csv').read_text().splitlines()) == 101
    assert 'infer_samples_per_sec' in ours('benchmark.py', *model, *QUICK).split('--result\n')[1]


def test_bulk_runner_starts_every_model_with_our_names(tmp_path):
    results = tmp_path / 'results.csv'
    ours('bulk_runner.py', '--model-list', 'preact_resnet20_*', '--results-file', results, 'benchmark.py', *QUICK)
    with open(results) as file:
        assert [row['model'] for row in csv.DictReader(file)] == ['preact_resnet20_pcv']


def test_a_script_runs_under_torchrun(images):
    result = validate(images, '--model', 'preact_resnet20', '--pretrained', launcher=lambda *args: run(
        'run', *args, processes=1, launcher=('-m', 'timm_preact')))
    assert result['top1'] > 80


def test_onnx_export_knows_our_names(tmp_path):
    pytest.importorskip('onnx')
    ours('onnx_export.py', '--model', 'preact_resnet20', '--img-size', '32', tmp_path / 'net.onnx')
    assert (tmp_path / 'net.onnx').stat().st_size > 100_000
