"""Training steps of train.run, alone and several at once, against the plain PyTorch loop that everyone writes.

    python -m benchmarks.steps --data DIR --model preact_resnet110 --together 5
"""
import multiprocessing
import statistics
import tempfile
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Callable, Dict, Iterable, Iterator, List, Tuple

import torch
import torch.nn.functional as F
import typer

from benchmarks.side_by_side import compare
from timm_preact.benchmark import images_per_second, seconds_per_call
from timm_preact.data import ImageSet, load_image_set
from timm_preact.errors import COUNT, NOT_NEGATIVE, one_sentence_errors
from train.batches import EpochPlan, error_on
from train.recipe import RECIPES, Recipe, lr_at, parameter_groups
from train.run import Run, local_device, peak_memory

BATCH = 128
WARM_UP = 8  # steps before a clock runs: compilation, cuDNN's choice, the capture


def train_plainly(model: torch.nn.Module, batches: Iterable[Tuple[torch.Tensor, torch.Tensor]], recipe: Recipe,
               total: int, amp: bool) -> Iterator[torch.Tensor]:
    """Train by the loop that everyone writes: kernel by kernel, PyTorch's SGD as it comes.

    Args:
        model: In training mode, on the device of the batches.
        batches: Images (B, 3, H, W) and labels (B,), augmented beforehand, which is a gift to this loop.
        recipe: Of the optimizer and the loss.
        total: Steps of the whole run, for the schedule.
        amp: bfloat16 autocast.

    Yields:
        The loss of each step.
    """
    optimizer = torch.optim.SGD(
        parameter_groups(model, recipe), lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov)
    for step, (x, y) in enumerate(batches):
        for group in optimizer.param_groups:
            group['lr'] = lr_at(recipe, step, total)
        with torch.autocast(x.device.type, torch.bfloat16) if amp else nullcontext():
            loss = F.cross_entropy(model(x), y, label_smoothing=recipe.label_smoothing)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        yield loss.detach()


def open_runs(model: str, seeds: Iterable[int], sets: List[ImageSet], folder: Path, device: torch.device,
              **options: bool) -> List[Run]:
    """Open fresh runs of the paper's recipe, BatchNorm over the whole batch."""
    hashes = [images.sha256 for images in sets]
    return [Run(dict(model=model, model_kwargs={}, seed=seed, amp=True, data=hashes), RECIPES['paper'], *sets,
                Path(tempfile.mkdtemp(dir=folder)), device, **options) for seed in seeds]


def evaluate(run: Run) -> None:
    """Evaluate a run on its test images, on its own stream."""
    with run.on_stream():
        error_on(run.model, run.test_batches)


def step_all(runs: List[Run]) -> None:
    """Take a step of each run, on its own stream."""
    for run in runs:
        with run.on_stream():
            run.train_step()


def measure_process(model: str, seed: int, data: str, folder: Path, device: str, steps: int, warm_up: int) -> float:
    """Measure images/s of one of several processes that train on a device at once, each as long as the others."""
    sets = [load_image_set(data, split) for split in ('train', 'test')]
    runs = open_runs(model, [seed], sets, folder, torch.device(device))
    step = partial(step_all, runs)
    for _ in range(warm_up):
        step()
    BARRIER.wait()
    return images_per_second(step, BATCH, runs[0].device, steps, warm_up)


def share_barrier(barrier: Any) -> None:
    """Have every process begin to measure when the last has warmed up."""
    global BARRIER
    BARRIER = barrier


@one_sentence_errors
def main(
        data: str = typer.Option(help='CIFAR-10 as train.cifar reads it.'),
        model: str = typer.Option('preact_resnet110', help='Registered name.'),
        device: str = typer.Option('cuda' if torch.cuda.is_available() else 'cpu', help='Where to train.'),
        together: Annotated[int, COUNT] = typer.Option(5, help='Runs at once.'),
        steps: Annotated[int, COUNT] = typer.Option(200, help='Steps of a measurement.'),
        warm_up: Annotated[int, NOT_NEGATIVE] = typer.Option(WARM_UP, help='Steps before each.'),
        rounds: Annotated[int, COUNT] = typer.Option(3, help='Measurements of each.'),
        compile_model: bool = typer.Option(False, '--compile', help='Measure the compiled network too.'),
) -> None:
    """Measure steps of batch 128 by train.run, alone, together and compiled, and by a plain PyTorch loop.

    The plain loop gets its batch augmented and on the device. Rates are of all runs together, of steps alone.
    Last, it prints what they and the evaluations, measured too, make of one run of the paper's 64,000 steps.
    """
    where = local_device(device)
    sets = [load_image_set(data, split) for split in ('train', 'test')]
    memory: Dict[str, int] = {}
    evaluation: List[float] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)

        def note_memory(name: str, measure: Callable[[], float]) -> Callable[[], float]:
            def measure_with_memory() -> float:
                if where.type == 'cuda':
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats(where)
                rate = measure()
                if where.type == 'cuda':
                    memory[name] = peak_memory(where)
                return rate
            return measure_with_memory

        def measure_ours(count: int = 1, **options: bool) -> float:
            runs = open_runs(model, range(count), sets, folder, where, **options)
            rate = images_per_second(partial(step_all, runs), count * BATCH, where, steps, warm_up)
            evaluation.append(seconds_per_call(partial(evaluate, runs[0]), where, calls=1))
            for run in runs:
                run.close()
            return rate

        def measure_plain(amp: bool) -> float:
            run, = open_runs(model, [0], sets, folder, where)
            plan = EpochPlan.make(run.recipe, 0, 0, sets[0].images.shape, where)
            batch = run.train_batches.train(plan, run.places)
            loop = train_plainly(run.model, iter(lambda: batch, None), run.recipe, run.total, amp)
            run.close()
            return images_per_second(partial(next, loop), BATCH, where, steps, warm_up)

        def measure_processes(count: int) -> float:
            spawn = multiprocessing.get_context('spawn')
            with ProcessPoolExecutor(count, spawn, share_barrier, [spawn.Barrier(count, timeout=600)]) as pool:
                rates = [pool.submit(measure_process, model, seed, data, folder, device, steps, warm_up)
                         for seed in range(count)]
                return sum(rate.result() for rate in rates)

        contestants = {'train.run': measure_ours}
        if compile_model:
            contestants['train.run, compiled'] = lambda: measure_ours(compile_model=True)
        if where.type == 'cuda':
            contestants['train.run, no capture'] = lambda: measure_ours(capture=False)
        contestants.update({
            'plain loop, bfloat16': lambda: measure_plain(amp=True),
            'plain loop, float32': lambda: measure_plain(amp=False),
            f'train.run, {together} runs together': lambda: measure_ours(together),
        })
        contestants = {name: note_memory(name, measure) for name, measure in contestants.items()}
        contestants[f'train.run, {together} processes'] = lambda: measure_processes(together)
        paper = RECIPES['paper']
        medians = compare(
            'python -m benchmarks.steps', f'steps_{model}_{where.type}', 'images/s', contestants, rounds, where,
            model=model, batch_size=BATCH, steps=steps, peak_memory_bytes=memory, evaluation_seconds=evaluation)
        epochs = paper.iterations // (len(sets[0].labels) // BATCH)
        minutes = (paper.iterations * BATCH / medians['train.run'] + epochs * statistics.median(evaluation)) / 60
        print(f'{paper.iterations} steps and {epochs} evaluations of one run: {minutes:.1f} minutes at these rates')


if __name__ == '__main__':
    typer.run(main)
