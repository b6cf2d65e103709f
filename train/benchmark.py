"""Speed against named peers, side by side in one run, alternating, medians of several rounds.

    python -m train.benchmark training --data DIR --timm-scripts pytorch-image-models
    python -m train.benchmark creation           # needs pip install 'timm-preact[benchmark]'
    python -m train.benchmark imports

Each prints a table and writes train/results/benchmark_<name>.json. `--timm-scripts` is a clone of
huggingface/pytorch-image-models: timm's wheel holds no train.py.
"""
import json
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Callable, Dict, List

import numpy as np
import timm
import torch
import typer
from rich.console import Console
from rich.table import Table

from timm_preact.data import ImageSet, load_image_set
from timm_preact.errors import UserError, one_sentence_errors
from timm_preact.files import write_atomically

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / 'results'
TRAIN_IMAGES, TEST_IMAGES, BATCH = 3840, 256, 128

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)


def side_by_side(name: str, unit: str, contestants: Dict[str, Callable[[], float]], rounds: int, **facts) -> None:
    """Run every contestant once a round, in turn; print and write the medians and their ratio to the first's.

    Args:
        name: Of the result file.
        unit: Of what a contestant returns; 'images/s' or 's'.
        contestants: What is measured, ours first.
        rounds: Measurements of each.
        facts: What else the result should say.
    """
    measured: Dict[str, List[float]] = {contestant: [] for contestant in contestants}
    for _ in range(rounds):
        for contestant, measure in contestants.items():
            measured[contestant].append(measure())
    medians = {contestant: statistics.median(values) for contestant, values in measured.items()}
    ours = next(iter(medians.values()))
    table = Table('', f'median of {rounds}, {unit}', 'all rounds', 'ours / this')
    for contestant, values in measured.items():
        table.add_row(
            contestant, f'{medians[contestant]:.3g}', ' '.join(f'{v:.3g}' for v in values),
            f'{ours / medians[contestant]:.2f}')
    Console(width=120).print(table)
    RESULTS.mkdir(exist_ok=True)
    write_atomically(RESULTS / f'benchmark_{name}.json', json.dumps(dict(
        command=' '.join(['python -m train.benchmark', *sys.argv[1:]]), unit=unit, rounds=measured, medians=medians,
        hardware=f'{platform.machine()} CPU, {os.cpu_count()} cores, {torch.get_num_threads()} threads',
        versions=dict(python=platform.python_version(), torch=torch.__version__, timm=timm.__version__), **facts,
    ), indent=1).encode())


def write_npz(folder: Path, sets: Dict[str, ImageSet]) -> None:
    for split, images in sets.items():
        np.savez(folder / f'{split}.npz', images=images.images, labels=images.labels, classes=np.array(images.classes))


def write_parquet(folder: Path, sets: Dict[str, ImageSet]) -> None:
    import datasets
    for split, images in sets.items():
        features = datasets.Features(img=datasets.Image(), label=datasets.ClassLabel(names=list(images.classes)))
        datasets.Dataset.from_dict(
            dict(img=list(images.images), label=images.labels.tolist()), features=features,
        ).to_parquet(folder / f'{split}-00000-of-00001.parquet')


@app.command()
@one_sentence_errors
def training(
        data: str = typer.Option(help='CIFAR-10 as train.cifar reads it.'),
        timm_scripts: Path = typer.Option(help='Clone of huggingface/pytorch-image-models.'),
        rounds: int = typer.Option(3, help='Measurements of each.'),
) -> None:
    """Train preact_resnet20 on 3,840 images: train.cifar against timm's train.py.

    Rates are of the second epoch, data loading counted and compilation not. train.py runs as it comes (float32,
    random-resized crop, flip, colour jitter), and as fast as its options make it here: without augmentation, in the
    bfloat16 autocast and channels-last memory that train.cifar has.
    """
    script = timm_scripts / 'train.py'
    if not script.is_file():
        raise UserError(f'{script} does not exist: clone huggingface/pytorch-image-models and pass its folder.')
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sets = {}
        for split, count in (('train', TRAIN_IMAGES), ('test', TEST_IMAGES)):
            whole = load_image_set(data, split)
            sets[split] = ImageSet(whole.images[:count], whole.labels[:count], whole.classes)
        for kind in ('npz', 'parquet'):
            (folder / kind).mkdir()
        write_npz(folder / 'npz', sets)
        write_parquet(folder / 'parquet', sets)
        outputs = iter(range(1000))

        def ours(*options: str) -> float:
            output = folder / f'ours{next(outputs)}'
            run([sys.executable, '-m', 'train.cifar', 'preact_resnet20', '--data', str(folder / 'npz'), '--recipe',
                 'modern', '--epochs', '2', '--output', str(output), *options])
            return json.loads((output / 'run.json').read_text())['images_per_second']

        def peer(*options: str) -> float:
            log = run([
                sys.executable, str(script), '--device-modules', 'timm_preact', '--device', 'cpu', '--model',
                'preact_resnet20', '--dataset', f'hfds/{folder / "parquet"}', '--train-split', 'train', '--val-split',
                'test', '--input-key', 'img', '--target-key', 'label', '--num-classes', '10', '--input-size', '3', '32',
                '32', '--batch-size', str(BATCH), '--epochs', '2', '--warmup-epochs', '0', '--workers', '2',
                '--log-interval', '10', '--output', str(folder / f'timm{next(outputs)}'), *options])
            return float(re.findall(r'Train: .*\(\s*[\d.]+s,\s*([\d.]+)/s\)', log)[-1])

        side_by_side('training', 'images/s', {
            'train.cifar --compile': lambda: ours('--compile'),
            'train.cifar': ours,
            "timm's train.py": peer,
            "timm's train.py --no-aug --amp --amp-dtype bfloat16 --channels-last": lambda: peer(
                '--no-aug', '--amp', '--amp-dtype', 'bfloat16', '--channels-last'),
        }, rounds, model='preact_resnet20', images=TRAIN_IMAGES, batch_size=BATCH)


def run(command: List[str]) -> str:
    environment = dict(os.environ, PYTHONPATH=str(ROOT))
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    if result.returncode:
        raise UserError(f'{" ".join(command[:3])} failed: {(result.stderr or result.stdout).strip()[-2000:]}')
    return result.stdout + result.stderr


@app.command()
@one_sentence_errors
def creation(rounds: int = typer.Option(7, help='Measurements of each.')) -> None:
    """Create preact_resnet1001, against pytorchcv's preresnet1001_cifar10 (the same network, on the CPU)."""
    try:
        from pytorchcv.model_provider import get_model
    except ImportError as e:
        raise UserError("the peer is missing: pip install 'timm-preact[benchmark]'.") from e
    import timm_preact  # noqa: F401

    def seconds(make: Callable[[], torch.nn.Module]) -> Callable[[], float]:
        def measure() -> float:
            start = time.perf_counter()
            make()
            return time.perf_counter() - start
        return measure

    side_by_side('creation', 's', {
        "timm.create_model('preact_resnet1001')": seconds(lambda: timm.create_model('preact_resnet1001')),
        "pytorchcv get_model('preresnet1001_cifar10')": seconds(lambda: get_model('preresnet1001_cifar10')),
    }, rounds, peer_version=version('pytorchcv'))


@app.command()
@one_sentence_errors
def imports(rounds: int = typer.Option(9, help='Measurements of each.')) -> None:
    """What timm_preact adds to importing timm, and what the command line adds to that."""

    def seconds(*command: str) -> Callable[[], float]:
        def measure() -> float:
            start = time.perf_counter()
            run([sys.executable, *command])
            return time.perf_counter() - start
        return measure

    def after_timm() -> float:
        return float(run([sys.executable, '-c', 'import time, timm; start = time.perf_counter(); import timm_preact; '
                                                'print(time.perf_counter() - start)']))

    side_by_side('imports', 's', {
        'import timm_preact, after timm': after_timm,
        'import timm': seconds('-c', 'import timm'),
        'timm-preact --help': seconds('-m', 'timm_preact', '--help'),
    }, rounds)


if __name__ == '__main__':
    app()
