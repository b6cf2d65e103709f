"""All that a card can say of the package, in under seven minutes, the most telling first.

    python -m benchmarks.gpu && python -m train.pages
    python -m benchmarks.gpu --to rehearsal --small     # the same on a CPU, where only the card would be new

Each section is a process of its own with a time limit of its own, so that none takes another's time or device down with
it, and writes its results as it goes: what is cut off keeps what it had. Peers are measured where they are installed.
"""
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np
import torch
import typer

from benchmarks.tables import format_gpu
from timm_preact.benchmark import (
    PACKAGES,
    Setting,
    benchmark,
    images_per_second,
    seconds_per_call,
    select_installed,
    synchronize,
)
from timm_preact.cli.options import PATH
from timm_preact.data import ImageSet, load_sample
from timm_preact.errors import POSITIVE, UserError, check_device, one_sentence_errors
from timm_preact.files import write_json
from train import places, replicas
from train.command import record_command
from train.group import Group, crews_of
from train.recipe import choose_recipe
from train.run import Run

BATCH, GROUP = 128, 64
TIMES_OVER = 125  # the sample's 400 training images, so that an epoch is as long as CIFAR's


class Scale(NamedTuple):
    """How large everything is: as it is used, or as small as shows that it runs."""
    batch: int
    steps: int
    rounds: int


FULL = Scale(BATCH, 40, 3)
SMALL = Scale(4, 1, 1)


class Crew(NamedTuple):
    """Who is measured in the setting of the paper's tables, and what it should reach on an H100, images/s together."""
    model: str
    replicas: int
    goal: Optional[int] = None
    by_modules: bool = False


CREWS = {
    '110 layers, five seeds': Crew('preact_resnet110', 5, 85_000),
    '110 layers, alone': Crew('preact_resnet110', 1, 45_000),
    "110 layers, alone, PyTorch's modules in a CUDA graph": Crew('preact_resnet110', 1, by_modules=True),
    '164 layers, five seeds': Crew('preact_resnet164', 5, 40_000),
    '1001 layers, alone': Crew('preact_resnet1001', 1, 7_000),
}
PLACED = ('preact_resnet110_orig', 'preact_resnet110_bn_after_add', 'preact_resnet110_relu_before_add',
          'preact_resnet110_relu_only', 'preact_resnet110_orig_excl_gate', 'preact_resnet110_orig_conv_shortcut',
          'preact_resnet110_orig_dropout_shortcut', 'preact_resnet110_1layer')
IMAGENET = ('preact_resnet50', 'preact_resnet152', 'preact_resnet200')
CIFAR = ('preact_resnet110', 'preact_resnet164')


def image_sets(size: int) -> Tuple[ImageSet, ImageSet]:
    """400 real images many times over, and 100 others."""
    sample = load_sample()
    test = np.arange(500) % 5 == 0
    images, labels = sample.images[~test, :size, :size], sample.labels[~test]
    return (ImageSet(np.tile(images, (TIMES_OVER, 1, 1, 1)), np.tile(labels, TIMES_OVER), sample.classes),
            ImageSet(sample.images[test, :size, :size].copy(), sample.labels[test], sample.classes))


class Measuring:
    """Opens crews, and measures their steps."""

    def __init__(self, scale: Scale, device: torch.device, folder: Path):
        self.scale, self.device, self.folder = scale, device, folder
        self.sets = image_sets(8 if scale is SMALL else 32)

    def runs(self, crew: Crew, layers: Optional[List[int]] = None) -> List[Run]:
        recipe = choose_recipe('paper', batch_size=self.scale.batch, bn_group=self.scale.batch * GROUP // BATCH)
        kwargs = {} if layers is None else dict(layers=layers)
        if self.scale is SMALL:
            kwargs = dict(layers=[1, 1], channels=[16, 32] if '110' in crew.model else [64, 128])
        runs = []
        for seed in range(crew.replicas):
            settings = dict(model=crew.model, model_kwargs=kwargs, seed=seed, amp=self.device.type == 'cuda',
                            data=[images.sha256 for images in self.sets])
            runs.append(Run(settings, recipe, *self.sets, Path(tempfile.mkdtemp(dir=self.folder)), self.device))
            runs[-1].joins = not crew.by_modules
        return runs

    def open(self, crew: Crew) -> Tuple[Callable[[], None], List[Run], float]:
        """A step, whose runs it is of, and the seconds until the first one was done: compilation and capture."""
        start = time.perf_counter()
        runs = self.runs(crew)
        member, = crews_of(runs)
        if not crew.by_modules and not isinstance(member, Group):
            raise UserError(f'{crew.model} does not train as replicas here.')
        steps = 5 if crew.by_modules and self.device.type == 'cuda' else 1  # then it is captured
        for _ in range(steps):
            member.advance()
        synchronize(self.device)
        return member.advance, runs, time.perf_counter() - start


def tests(scale: Scale, device: torch.device) -> Iterator[Tuple[str, Any]]:
    """Is every path right on this card? The newest first."""
    which = {'replicas': ['tests/test_gpu.py', '-m', 'gpu', '-k', 'replica'],
             'all else': ['tests/test_gpu.py', '-m', 'gpu', '-k', 'not replica']}
    if device.type == 'cpu':
        which = {'replicas': ['tests/train/test_replicas.py', '-k', 'planned']}
    for name, arguments in which.items():
        done = subprocess.run([sys.executable, '-m', 'pytest', '-q', '--maxfail=20', '--durations=8', *arguments,
                               '-p', 'no:cacheprovider'], cwd=places.ROOT, capture_output=True, text=True)
        lines = done.stdout.strip().splitlines()
        yield name, lines[-1] if lines else done.stderr[-500:]
        yield f'{name}: failed', [line for line in lines if line.startswith(('FAILED', 'ERROR'))]
        yield f'{name}: output', done.stdout[-8000:]


def cifar(scale: Scale, device: torch.device, crews: Dict[str, Crew] = CREWS) -> Iterator[Tuple[str, Any]]:
    """Images/s in the paper's setting, augmentation and the look at the loss included: each by itself, then in turn."""
    with tempfile.TemporaryDirectory() as folder:
        measuring = Measuring(scale, device, Path(folder))
        for name, crew in crews.items():
            if device.type == 'cuda':
                torch.cuda.empty_cache()
                torch.cuda.reset_peak_memory_stats(device)
            try:
                step, runs, opened = measuring.open(crew)
            except Exception as e:  # the next crew may run all the same
                yield name, dict(error=f'{type(e).__name__}: {e}'[:1000])
                continue
            images = crew.replicas * scale.batch
            rates = [images_per_second(step, images, device, scale.steps) for _ in range(scale.rounds)]
            yield name, dict(
                images_per_second=statistics.median(rates), rounds=rates, goal=crew.goal, seconds_to_open=opened,
                losses=[run.mean_loss(run.step) for run in runs],
                memory=torch.cuda.max_memory_allocated(device) if device.type == 'cuda' else None)
            if device.type == 'cuda' and not crew.by_modules:
                yield f'{name}: kernels', kernel_times(step)
            part(runs)


def part(runs: List[Run]) -> None:
    if runs[0].group is not None:
        runs[0].group.part()
    for run in runs:
        run.close()


def kernel_times(step: Callable[[], None]) -> Dict[str, Dict[str, float]]:
    """Of a step on a GPU: launches and microseconds of each kernel."""
    from torch.profiler import ProfilerActivity, profile
    with profile(activities=[ProfilerActivity.CUDA]) as found:
        step()
        torch.cuda.synchronize()
    return {event.key: dict(launches=event.count, microseconds=event.device_time_total)
            for event in sorted(found.key_averages(), key=lambda e: -e.device_time_total)[:16]}


def placements(scale: Scale, device: torch.device) -> Iterator[Tuple[str, Any]]:
    """The other rows of the tables, five seeds each."""
    yield from cifar(scale, device, {name: Crew(name, 2 if scale is SMALL else 5) for name in PLACED})


def tilings(scale: Scale, device: torch.device) -> Iterator[Tuple[str, Any]]:
    """Microseconds of each convolution of 110 layers and five seeds by how it is cut: what the tables should say."""
    with tempfile.TemporaryDirectory() as folder:
        runs = Measuring(scale, device, Path(folder)).runs(Crew('preact_resnet110', 1 if scale is SMALL else 5),
                                                           layers=[2, 2, 2])
        for channels in (16, 32, 64)[:1 if scale is SMALL else 3]:
            nets = {}
            for cut in cuts(channels)[:2 if scale is SMALL else None]:
                for table in (replicas.FORWARD, replicas.BACKWARD, replicas.WEIGHT):
                    table[channels] = cut
                nets[cut] = convolutions(replicas.Replicas(
                    [run.model for run in runs], runs[0].recipe, runs[0].train_batches, runs[0].test_batches, device,
                    torch.bfloat16 if device.type == 'cuda' else torch.float32), channels)
            if device.type == 'cuda':
                replicas.blocks.compile_side_by_side([launch for found in nets.values() for launch in found])
            for cut, launches in nets.items():
                yield f'{channels}: {tuple(cut)}', {
                    launch.kernel.__name__: microseconds(launch, device) for launch in launches}
        part(runs)


def cuts(channels: int) -> List[replicas.Tiling]:
    shapes = [(1, 1)] if channels == 64 else [(2, 2), (1, 2)]
    return [replicas.Tiling(*shape, rows, warps, stages)
            for shape in shapes for rows in (64, 128) for warps in (4, 8) for stages in (2, 3)]


def convolutions(net: replicas.Replicas, channels: int) -> List[replicas.Launch]:
    """Forward, input's gradient and weight's gradient of a unit's second convolution."""
    found = {launch.kernel.__name__: launch for launch in net.launches
             if launch.constants.get('CI') == launch.constants.get('CO') == channels
             and launch.constants.get('KS') == 3 and 'reduce' not in launch.kernel.__name__}
    return list(found.values())


def microseconds(launch: replicas.Launch, device: torch.device) -> Optional[float]:
    """Of a kernel; None where it does not fit the card."""
    try:
        return 1e6 * seconds_per_call(launch, device, 1 if device.type == 'cpu' else 50, warm_up=1)
    except Exception as e:  # Triton's errors share no class
        print(f'    {launch.kernel.__name__}: {type(e).__name__}: {e}'[:200])
        return None


def imagenet(scale: Scale, device: torch.device, task: str, names: Tuple[str, ...], batch: int,
             **options: Any) -> Iterator[Tuple[str, Any]]:
    """`timm_preact.benchmark`'s contestants, in turn."""
    against = select_installed(list(PACKAGES))
    dtype = torch.bfloat16 if device.type == 'cuda' else torch.float32
    if scale is SMALL:
        names, batch = names[:1], min(batch, 2)
    for name in names:
        setting = Setting(name, task, dtype, batch)
        yield f'{name}, {task}, batch {batch}', benchmark(setting, device, against, scale.rounds, **options)


def training(scale: Scale, device: torch.device) -> Iterator[Tuple[str, Any]]:
    return imagenet(scale, device, 'training', IMAGENET, 128)


def inference(scale: Scale, device: torch.device) -> Iterator[Tuple[str, Any]]:
    for batch, names in ((256, IMAGENET), (1, IMAGENET[:1]), (256, CIFAR), (1, CIFAR)):
        yield from imagenet(scale, device, 'inference', names, batch, graphs=device.type == 'cuda')


SECTIONS: Dict[str, Tuple[Callable[..., Iterator[Tuple[str, Any]]], int]] = {
    'tests': (tests, 100), 'cifar': (cifar, 120), 'training': (training, 60), 'inference': (inference, 50),
    'tilings': (tilings, 45), 'placements': (placements, 40)}
REPLICAS = ('cifar', 'tilings', 'placements')  # whose kernels a CPU interprets


@one_sentence_errors
def main(
        to: Path = typer.Option(
            places.BENCHMARKS / 'gpu', **PATH, help='Folder of the results, a JSON file a section.'),
        sections: str = typer.Option(','.join(SECTIONS), help='Which, in what order.'),
        small: bool = typer.Option(False, '--small', help='A rehearsal of everything on a CPU.'),
        limit: Annotated[float, POSITIVE] = typer.Option(1., help="Multiplies each section's time limit."),
        only: Optional[str] = typer.Option(None, hidden=True, help='The section that this process is.'),
) -> None:
    """Measure a card."""
    device = check_device('cpu' if small else 'cuda')
    scale = SMALL if small else FULL
    to.mkdir(parents=True, exist_ok=True)
    if only is not None:
        return measure(only, scale, device, to)
    for name in sections.split(','):
        if name not in SECTIONS:
            raise UserError(f'--sections {name} is not known: choose from {", ".join(SECTIONS)}.')
    for name in sections.split(','):
        seconds = SECTIONS[name][1] * limit * (10 if small else 1)
        print(f'{name}, at most {seconds:.0f} s', flush=True)
        arguments = ['--to', str(to), '--only', name, *['--small'] * small]
        start = time.monotonic()
        try:
            subprocess.run([sys.executable, '-m', 'benchmarks.gpu', *arguments], cwd=places.ROOT, timeout=seconds,
                           env=dict(os.environ, **({'TRITON_INTERPRET': '1'} if small and name in REPLICAS else {})))
        except subprocess.TimeoutExpired:
            print(f'{name}: cut off')
        print(f'{name}: {time.monotonic() - start:.0f} s', flush=True)
    print(format_gpu(to))


def measure(name: str, scale: Scale, device: torch.device, to: Path) -> None:
    """Run a section, and write what it has after each step of it."""
    start, results = time.monotonic(), {}
    for key, value in SECTIONS[name][0](scale, device):
        results[key] = value
        print(f'  {key}: {brief(value)}', flush=True)
        seconds = round(time.monotonic() - start, 1)
        origin = record_command('python -m benchmarks.gpu', device)
        write_json(to / f'{name}.json', dict(origin, seconds=seconds, results=results))


def brief(value: Any) -> str:
    """A line of a result."""
    if isinstance(value, dict) and 'contestants' in value:
        return ', '.join(f"{name} {found['images_per_second']:,.0f}" for name, found in value['contestants'].items())
    if isinstance(value, dict) and 'images_per_second' in value:
        goal = f" of {value['goal']:,}" if value.get('goal') else ''
        return f"{value['images_per_second']:,.0f}{goal} images/s, open after {value['seconds_to_open']:.0f} s"
    return str(value)[:300]


if __name__ == '__main__':
    typer.run(main)
