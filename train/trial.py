"""The ImageNet recipe on a small real set, by timm's own train.py: does it learn, in one process and in two?

    python -m train.trial --data data/cifar100 --timm-scripts pytorch-image-models

Writes train/results/imagenet_trial.json, which train/recipes/README.md shows. Some five minutes on 2 cores.
"""
import csv
import json
import sys
import tempfile
from pathlib import Path
from typing import Any, Dict, List

import torch
import typer
from PIL import Image

from timm_preact.cli.options import PATH
from timm_preact.data import ImageSet, load_image_set
from timm_preact.errors import UserError, one_sentence_errors
from timm_preact.files import write_json
from timm_preact.scripts import find_script, version_of
from train.command import record_command, run_command
from train.places import RECIPES, RESULTS, ROOT, TESTS

CLASSES, SIZE = 20, 96  # the first classes, their images enlarged to 96x96
IMAGES = {'train': 100, 'validation': 50}  # of a class
SCALE_ASPECT = [
    '--config', str(RECIPES / 'imagenet_preact_resnet200_scale_aspect.yaml'), '--model', 'preact_resnet18',
    '--img-size', '64', '--scale', '0.5', '1.0', '--epochs', '8', '--decay-epochs', '3']
FINETUNE = ['--config', str(RECIPES / 'finetune.yaml'), '--model', 'preact_resnet20', '--epochs', '10']
# name -> (processes, arguments of train.py)
RUNS = {
    'scale_aspect, one process': (1, [*SCALE_ASPECT, '--batch-size', '64']),
    'scale_aspect, two processes': (2, [*SCALE_ASPECT, '--batch-size', '32']),
    'finetune from preact_resnet20.cifar10': (1, FINETUNE),
}


def write_folder(images: ImageSet, folder: Path, count: int) -> None:
    """ImageNet's layout, folder/CLASS/*.png: the first `count` images of each class, enlarged to 96x96."""
    for label, name in enumerate(images.classes):
        (folder / name).mkdir(parents=True)
        for i in (images.labels == label).nonzero()[0][:count]:
            Image.fromarray(images.images[i]).resize((SIZE, SIZE), Image.BICUBIC).save(folder / name / f'{i}.png')


def first_classes(images: ImageSet) -> ImageSet:
    keep = images.labels < CLASSES
    return ImageSet(images.images[keep], images.labels[keep], images.classes[:CLASSES])


def train(processes: int, arguments: List[str], scripts: Path, data: Path, output: Path) -> Dict[str, Any]:
    """A training by the unmodified train.py: losses, accuracies, and the last accuracy on the training images."""
    common = ['--num-classes', str(CLASSES), '--data-dir', str(data), '--device', 'cpu', '--workers', '1']
    launcher, modules = [sys.executable], []
    if processes > 1:
        launcher += ['-m', 'torch.distributed.run', '--nproc-per-node', str(processes)]
        modules = ['--device-modules', 'timm_preact', 'cpu_ddp']
    run_command([*launcher, str(find_script('train.py', scripts)), *arguments, *common, *modules, '--output',
                 str(output), '--experiment', 'run'], TESTS / 'support')
    model = arguments[arguments.index('--model'):][:2]
    size = arguments[arguments.index('--img-size'):][:2] if '--img-size' in arguments else []
    tested = run_command([
        sys.executable, '-m', 'timm_preact', 'run', '--timm-scripts', str(scripts), 'validate.py', *model, *size,
        *common, '--split', 'train', '--checkpoint', str(output / 'run' / 'last.pth.tar')])
    with open(output / 'run' / 'summary.csv') as file:
        epochs = [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]
    return dict(
        processes=processes, arguments=[a.replace(f'{ROOT}/', '') for a in arguments], epochs=epochs,
        train_top1=json.loads(tested.split('--result\n')[1].split('\n}')[0] + '}')['top1'])


@one_sentence_errors
def main(
        data: str = typer.Option(help='CIFAR-100 as train.cifar reads it.'),
        timm_scripts: Path = typer.Option(**PATH, help='Clone of huggingface/pytorch-image-models.'),
) -> None:
    """Train by the recipes with sizes changed, on 20 classes of 100 images."""
    scripts = timm_scripts.resolve()
    find_script('train.py', scripts)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for split, count in IMAGES.items():
            images = load_image_set(data, 'train' if split == 'train' else 'test')
            if len(images.classes) < CLASSES:
                raise UserError(f'{data} has {len(images.classes)} classes, {CLASSES} are needed: name CIFAR-100.')
            write_folder(first_classes(images), folder / 'images' / split, count)
        runs = {}
        for i, (name, (processes, arguments)) in enumerate(RUNS.items()):
            runs[name] = train(processes, arguments, scripts, folder / 'images', folder / str(i))
            last = runs[name]['epochs'][-1]
            print(f"{name}: loss {last['train_loss']:.2f}, validation top-1 {last['eval_top1']:.1f}, training top-1 "
                  f"{runs[name]['train_top1']:.1f}")
    write_json(RESULTS / 'imagenet_trial.json', dict(
        record_command('python -m train.trial', torch.device('cpu'), seed=42), runs=runs,
        timm_scripts=version_of(scripts)))


if __name__ == '__main__':
    typer.run(main)
