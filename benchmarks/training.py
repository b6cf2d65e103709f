"""Training by train.cifar against timm's train.py, preact_resnet20 on 3,840 images.

    python -m benchmarks.training --data DIR --timm-scripts pytorch-image-models

`--timm-scripts` is a clone of huggingface/pytorch-image-models: timm's wheel holds no train.py.
"""
import itertools
import json
import re
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Dict

import numpy as np
import typer

from benchmarks.side_by_side import compare
from timm_preact.cli.options import PATH
from timm_preact.data import ImageSet, load_image_set
from timm_preact.errors import COUNT, one_sentence_errors
from timm_preact.scripts import find_script
from train.command import run_command

IMAGES, BATCH = {'train': 3840, 'test': 256}, 128


def write_npz(folder: Path, sets: Dict[str, ImageSet]) -> None:
    """Write images as train.cifar reads them."""
    for split, images in sets.items():
        np.savez(folder / f'{split}.npz', images=images.images, labels=images.labels, classes=np.array(images.classes))


def write_parquet(folder: Path, sets: Dict[str, ImageSet]) -> None:
    """Write images as train.py reads them, in the layout of uoft-cs/cifar10."""
    import datasets
    for split, images in sets.items():
        features = datasets.Features(img=datasets.Image(), label=datasets.ClassLabel(names=list(images.classes)))
        datasets.Dataset.from_dict(
            dict(img=list(images.images), label=images.labels.tolist()), features=features,
        ).to_parquet(folder / f'{split}-00000-of-00001.parquet')


@one_sentence_errors
def main(
        data: str = typer.Option(help='CIFAR-10 as train.cifar reads it.'),
        timm_scripts: Path = typer.Option(**PATH, help='Clone of huggingface/pytorch-image-models.'),
        rounds: Annotated[int, COUNT] = typer.Option(3, help='Measurements of each.'),
) -> None:
    """Train preact_resnet20 on 3,840 images: train.cifar against timm's train.py.

    Rates are of the second epoch, data loading counted and compilation not. train.py runs as it comes (float32,
    random-resized crop, flip, colour jitter), and as fast as its options make it here: without augmentation, in the
    bfloat16 autocast and channels-last memory that train.cifar has.
    """
    script = find_script('train.py', timm_scripts)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sets = {}
        for split, count in IMAGES.items():
            whole = load_image_set(data, split)
            sets[split] = ImageSet(whole.images[:count], whole.labels[:count], whole.classes)
        for kind, write in (('npz', write_npz), ('parquet', write_parquet)):
            (folder / kind).mkdir()
            write(folder / kind, sets)
        outputs = itertools.count()

        def train_ours(*options: str) -> float:
            output = folder / f'ours{next(outputs)}'
            run_command([
                sys.executable, '-m', 'train.cifar', 'preact_resnet20', '--data', str(folder / 'npz'), '--recipe',
                'modern', '--epochs', '2', '--output', str(output), *options])
            return json.loads((output / 'run.json').read_text())['images_per_second']

        def train_peer(*options: str) -> float:
            log = run_command([
                sys.executable, str(script), '--device-modules', 'timm_preact', '--device', 'cpu', '--model',
                'preact_resnet20', '--dataset', f'hfds/{folder / "parquet"}', '--train-split', 'train', '--val-split',
                'test', '--input-key', 'img', '--target-key', 'label', '--num-classes', '10', '--input-size', '3', '32',
                '32', '--batch-size', str(BATCH), '--epochs', '2', '--warmup-epochs', '0', '--workers', '2',
                '--log-interval', '10', '--output', str(folder / f'timm{next(outputs)}'), *options])
            return float(re.findall(r'Train: .*\(\s*[\d.]+s,\s*([\d.]+)/s\)', log)[-1])

        compare('python -m benchmarks.training', 'training', 'images/s', {
            'train.cifar --compile': lambda: train_ours('--compile'),
            'train.cifar': train_ours,
            "timm's train.py": train_peer,
            "timm's train.py --no-aug --amp --amp-dtype bfloat16 --channels-last": lambda: train_peer(
                '--no-aug', '--amp', '--amp-dtype', 'bfloat16', '--channels-last'),
        }, rounds, model='preact_resnet20', images=IMAGES['train'], batch_size=BATCH)


if __name__ == '__main__':
    typer.run(main)
