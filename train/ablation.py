"""What each change to the recipe `modern` gives, alone and together, on a small copy of CIFAR-10 that two cores can do.

    python -m train.ablation --data DIR --images 10000 --epochs 20
    python -m train.ablation --data DIR --images 5000 --epochs 40
    python -m train.ablation modern rate-up --data DIR --images 40000 --epochs 8

The small copy: `preact_resnet20` on some of the training images at 16x16 (means of 2x2 pixels). The error is that on
10,000 other training images: nothing here looks at a test image. Lengths in pixels are halved. The fewer images are
seen the more often, the closer the network fits them, as in a long run. Averages of the weights, timm's, are taken of
every run, beside its last ones. One file a run goes to train/results/ablation, and what is there is not run again;
`python -m train.pages` makes the table of docs/cifar.md from them.
"""
import json
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any, Dict, List, Optional, Tuple

import torch
import typer
from timm.utils import ModelEmaV3

from timm_preact.data import ImageSet, load_image_set
from timm_preact.errors import COUNT, UserError, one_sentence_errors
from timm_preact.files import write_json
from timm_preact.provenance import quote_command
from train.batches import Batches, error_on
from train.markdown import format_table
from train.places import ABLATION
from train.recipe import average_decay, choose_recipe
from train.run import Run

__all__ = ['CHANGES', 'format_ablation', 'read_ablation', 'shrink']

MODEL, OTHERS, FEW = 'preact_resnet20', 10_000, 1_000
BASE = dict(recipe='modern', translate=2)
CHANGES: Dict[str, Tuple[str, Dict[str, Any]]] = {
    'modern': ('`modern` as it is', {}),
    'smoothing': ('label smoothing 0.1', dict(label_smoothing=0.1)),
    'alternate': ('alternating flips', dict(alternate_flips=True)),
    'spare': ('no decay of BatchNorm and biases', dict(decay_all=False)),
    'decay-up': ('weight decay 0.001', dict(weight_decay=1e-3)),
    'decay-down': ('weight decay 0.0002', dict(weight_decay=2e-4)),
    'cutout': ('cutout of 8 pixels', dict(cutout=4)),
    'translate': ('translations of 6 pixels', dict(translate=3)),
    'translate-less': ('translations of 2 pixels', dict(translate=1)),
    'rate-up': ('peak rate 0.4', dict(lr=0.4)),
    'rate-max': ('peak rate 0.8', dict(lr=0.8)),
    'rate-down': ('peak rate 0.1', dict(lr=0.1)),
    'warmup': ('warm-up over 30 % of the run', dict(warmup=0.3)),
    'groups': ('statistics over 32 images', dict(bn_group=32)),
    'batch': ('batches of 64, peak rate 0.1', dict(batch_size=64, lr=0.1)),
    'rate-alternate': ('peak rate 0.4 and alternating flips', dict(lr=0.4, alternate_flips=True)),
}
MEMORIES = (0.02, 0.05)  # of an average: shares of the run


def shrink(images: ImageSet, which: slice) -> ImageSet:
    """Halve the sides of some images: each pixel the mean of four."""
    pixels = images.images[which]
    count, height, width, _ = pixels.shape
    means = pixels.reshape(count, height // 2, 2, width // 2, 2, 3).mean((2, 4))
    return ImageSet(means.round().astype('uint8'), images.labels[which], images.classes)


def locate(change: str, epochs: int, seed: int) -> Path:
    """Locate the file of a run."""
    return ABLATION / f'{change}.{epochs}epochs.seed{seed}.json'


def train(change: str, epochs: int, seed: int, data: str, count: int, command: str) -> str:
    """Train a run of the small copy on one core and write its file; returns what to say of it."""
    torch.set_num_threads(1)
    whole = load_image_set(data, 'train')
    images = shrink(whole, slice(count))
    others, few = (shrink(whole, slice(-some, None)) for some in (OTHERS, FEW))
    settings = dict(model=MODEL, model_kwargs={}, seed=seed, amp=False, data=[images.sha256, others.sha256])
    recipe = choose_recipe(**{**BASE, 'epochs': epochs, **CHANGES[change][1]})
    with tempfile.TemporaryDirectory() as folder, closing(Run(
            settings, recipe, images, few, Path(folder), torch.device('cpu'), command=command)) as run:
        averages = {memory: ModelEmaV3(run.model, average_decay(replace(recipe, average=memory), run.total))
                    for memory in MEMORIES}
        while run.state == 'running':
            run.advance()
            for average in averages.values():
                average.update(run.model)
        batches = Batches(others, recipe, run.train_batches.mean, run.train_batches.std, run.device)
        result = run.result(change=change, validation_error=error_on(run.kept, batches), averaged={
            str(memory): error_on(average.module, batches) for memory, average in averages.items()})
    write_json(locate(change, epochs, seed), {key: value for key, value in result.items() if key != 'test_error'})
    return f"{change}, seed {seed}: {result['validation_error']:.2f} %, {result['train_seconds']:.0f} s"


def read_ablation() -> Dict[int, Dict[str, Dict[int, Dict[str, Any]]]]:
    """Read the results: by how often images were seen, by change, by seed."""
    found: Dict[int, Dict[str, Dict[int, Dict[str, Any]]]] = {}
    for path in sorted(ABLATION.glob('*.json')):
        result = json.loads(path.read_text())
        found.setdefault(result['recipe']['epochs'], {}).setdefault(result['change'], {})[result['seed']] = result
    return dict(sorted(found.items()))


def format_difference(errors: Dict[int, float], base: Dict[int, float]) -> str:
    """Format the mean of the differences between runs of equal seeds, their standard deviation, and how many."""
    differences = [error - base[seed] for seed, error in errors.items() if seed in base]
    if not differences:
        return '-'
    spread = f' ± {statistics.stdev(differences):.2f}' if len(differences) > 1 else ''
    return f'{statistics.mean(differences):+.2f}{spread} ({len(differences)})'


def format_ablation() -> str:
    """Format what each change gave: the error of `modern`, and the differences from it, by how often images were seen.

    Behind each number stands of how many runs it is.
    """
    results = read_ablation()
    bases = {epochs: {seed: result['validation_error'] for seed, result in runs['modern'].items()}
             for epochs, runs in results.items()}
    rows = {CHANGES['modern'][0]: [
        f'{statistics.mean(base.values()):.2f} ({len(base)})' for base in bases.values()]}
    for change in [change for change in CHANGES if change != 'modern']:
        rows[CHANGES[change][0]] = [format_difference({
            seed: result['validation_error'] for seed, result in runs.get(change, {}).items()}, bases[epochs])
            for epochs, runs in results.items()]
    for change in ('modern', 'rate-up', 'rate-alternate'):
        others = '' if change == 'modern' else f', {CHANGES[change][0]}'
        for memory in MEMORIES:
            rows[f'weights averaged over {memory:.0%} of the run{others}'] = [format_difference({
                seed: result['averaged'][str(memory)] for seed, result in runs.get(change, {}).items()}, bases[epochs])
                for epochs, runs in results.items()]
    headings = [f'{epochs} epochs' for epochs in results]
    return format_table('l' + 'r' * len(results), ('error on other images, %', *headings), (
        (what, *cells) for what, cells in rows.items()))


@one_sentence_errors
def main(
        changes: Optional[List[str]] = typer.Argument(None, help=f'Of {", ".join(CHANGES)}; without any, all.'),
        data: str = typer.Option(help='CIFAR-10 as train.cifar reads it.'),
        images: Annotated[int, COUNT] = typer.Option(10_000, help='How many of the training images.'),
        epochs: Annotated[int, COUNT] = typer.Option(20, help='How often each is seen.'),
        seeds: Annotated[int, COUNT] = typer.Option(3, help='Runs of each change.'),
        together: Annotated[int, COUNT] = typer.Option(2, help='Processes, of one thread each.'),
) -> None:
    """Train what has no file yet, the first seed of every change first."""
    ABLATION.mkdir(parents=True, exist_ok=True)
    command = quote_command('python -m train.ablation')
    if unknown := set(changes or ()) - set(CHANGES):
        raise UserError(f'{", ".join(sorted(unknown))} is no change: choose of {", ".join(CHANGES)}.')
    missing = [(change, epochs, seed) for seed in range(seeds) for change in changes or CHANGES
               if not locate(change, epochs, seed).exists()]
    with ProcessPoolExecutor(together, get_context('spawn')) as pool:
        for ended in as_completed(pool.submit(train, *run, data, images, command) for run in missing):
            print(ended.result(), flush=True)


if __name__ == '__main__':
    typer.run(main)
