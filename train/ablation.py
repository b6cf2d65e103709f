"""What each change to the recipe `modern` gives, alone and together, on a small copy of CIFAR-10 that two cores can do.

    python -m train.ablation --data DIR --seeds 3 --together 2

The small copy: `preact_resnet20` on 10,000 of the training images at 16x16 (means of 2x2 pixels), for 20 epochs, which
is about as far from its own training images as 20 layers are after 60 epochs of the whole set. The error is that on
10,000 other training images: nothing here looks at a test image. Lengths in pixels are halved. Averages of the weights
are taken of every run, beside its last ones. One file a run goes to train/results/ablation, and what is there is not
run again; `python -m train.pages` makes the table of docs/training.md from them.
"""
import copy
import json
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import closing
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple

import torch
import typer

from timm_preact.data import ImageSet, load_image_set
from timm_preact.errors import UserError, one_sentence_errors
from timm_preact.files import write_json
from timm_preact.provenance import quote_command
from train.batches import Batches, error_on
from train.markdown import format_table
from train.places import ABLATION
from train.recipe import choose_recipe
from train.run import Run

__all__ = ['CHANGES', 'format_ablation', 'read_ablation', 'shrink']

MODEL, IMAGES, FEW, EPOCHS = 'preact_resnet20', 10_000, 1_000, 20
BASE = dict(recipe='modern', epochs=EPOCHS, translate=2)
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
}
MEMORIES = (0.02, 0.05)  # of an average: shares of the run


def shrink(images: ImageSet, which: slice) -> ImageSet:
    """Halve the sides of some images: each pixel the mean of four."""
    pixels = images.images[which]
    count, height, width, _ = pixels.shape
    means = pixels.reshape(count, height // 2, 2, width // 2, 2, 3).mean((2, 4))
    return ImageSet(means.round().astype('uint8'), images.labels[which], images.classes)


class Average:
    """Exponential average of a network's weights and statistics; it remembers a share of a run."""

    def __init__(self, model: torch.nn.Module, steps: float):
        self.model, self.step = copy.deepcopy(model), 1 / steps
        self.pairs = [(mine, theirs) for mine, theirs in zip(
            self.model.state_dict().values(), model.state_dict().values(), strict=True) if mine.is_floating_point()]

    @torch.no_grad()
    def update(self) -> None:
        """Go a step toward the network."""
        mine, theirs = zip(*self.pairs, strict=True)
        torch._foreach_lerp_(mine, theirs, self.step)


def locate(change: str, seed: int) -> Path:
    """Locate the file of a run."""
    return ABLATION / f'{change}.seed{seed}.json'


def train(change: str, seed: int, data: str, command: str) -> str:
    """Train a run of the small copy on one core and write its file; returns what to say of it."""
    torch.set_num_threads(1)
    whole = load_image_set(data, 'train')
    images = shrink(whole, slice(IMAGES))
    others, few = (shrink(whole, slice(-count, None)) for count in (IMAGES, FEW))
    settings = dict(model=MODEL, model_kwargs={}, seed=seed, amp=False, data=[images.sha256, others.sha256])
    recipe = choose_recipe(**{**BASE, **CHANGES[change][1]})
    with tempfile.TemporaryDirectory() as folder, closing(Run(
            settings, recipe, images, few, Path(folder), torch.device('cpu'))) as run:
        averages = {memory: Average(run.model, memory * run.total) for memory in MEMORIES}
        while run.state == 'running':
            run.advance()
            for average in averages.values():
                average.update()
        batches = Batches(others, recipe, run.train_batches.mean, run.train_batches.std, run.device)
        result = run.result(command, change=change, validation_error=error_on(run.model, batches), averaged={
            str(memory): error_on(average.model, batches) for memory, average in averages.items()})
    write_json(locate(change, seed), {key: value for key, value in result.items() if key != 'test_error'})
    return f"{change}, seed {seed}: {result['validation_error']:.2f} %, {result['train_seconds']:.0f} s"


def read_ablation() -> Dict[str, Dict[int, Dict[str, Any]]]:
    """Read the results: those of each change that has any, by seed."""
    results = [json.loads(path.read_text()) for path in sorted(ABLATION.glob('*.json'))]
    return {change: {r['seed']: r for r in results if r['change'] == change} for change in CHANGES
            if any(r['change'] == change for r in results)}


def format_ablation() -> str:
    """Format what each change gave: the mean error, and the mean of its difference from `modern` with equal seeds."""
    results = read_ablation()
    base = {seed: result['validation_error'] for seed, result in results['modern'].items()}

    def list_cells(what: str, errors: Dict[int, float]) -> Tuple[str, ...]:
        differences = [error - base[seed] for seed, error in errors.items() if seed in base]
        spread = f'{statistics.stdev(differences):.2f}' if len(differences) > 1 and errors != base else '-'
        return (what, f'{statistics.mean(errors.values()):.2f}',
                '-' if errors == base else f'{statistics.mean(differences):+.2f}', spread, str(len(errors)))

    def list_rows() -> Iterator[Tuple[str, ...]]:
        for change, runs in results.items():
            yield list_cells(CHANGES[change][0], {seed: run['validation_error'] for seed, run in runs.items()})
        for memory in MEMORIES:
            yield list_cells(f'weights averaged over {memory:.0%} of the run', {
                seed: run['averaged'][str(memory)] for seed, run in results['modern'].items()})

    headings = 'change', 'error, %', 'difference', 'its deviation', 'runs'
    return format_table('lrrrr', headings, list_rows())


@one_sentence_errors
def main(
        changes: Optional[List[str]] = typer.Argument(None, help=f'Of {", ".join(CHANGES)}; without any, all.'),
        data: str = typer.Option(help='CIFAR-10 as train.cifar reads it.'),
        seeds: int = typer.Option(3, help='Runs of each change.'),
        together: int = typer.Option(2, help='Processes, of one thread each.'),
) -> None:
    """Train what has no file yet, the first seed of every change first."""
    ABLATION.mkdir(parents=True, exist_ok=True)
    command = quote_command('python -m train.ablation')
    if unknown := set(changes or ()) - set(CHANGES):
        raise UserError(f'{", ".join(sorted(unknown))} is no change: choose of {", ".join(CHANGES)}.')
    missing = [(change, seed) for seed in range(seeds) for change in changes or CHANGES
               if not locate(change, seed).exists()]
    with ProcessPoolExecutor(together, get_context('spawn')) as pool:
        for ended in as_completed(pool.submit(train, *run, data, command) for run in missing):
            print(ended.result(), flush=True)


if __name__ == '__main__':
    typer.run(main)
