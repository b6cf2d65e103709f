"""Speed against named peers, side by side in one run, alternating, medians of several rounds.

    python -m train.benchmark training --data DIR --timm-scripts pytorch-image-models
    python -m train.benchmark steps --data DIR --model preact_resnet110 --together 5
    python -m train.benchmark imagenet           # needs pip install 'timm-preact[benchmark]'
    python -m train.benchmark creation           # needs pip install 'timm-preact[benchmark]'
    python -m train.benchmark imports
    python -m train.benchmark compilation
    python -m train.benchmark report

Each prints a table and writes train/results/benchmark_<name>.json. Networks beside other people's on one machine are
`timm-preact benchmark`; report writes the tables of both, and of train.growth and train.quantization, into
benchmarks/README.md and the README. `--timm-scripts` is a clone of
huggingface/pytorch-image-models: timm's wheel holds no train.py.
"""
import json
import multiprocessing
import os
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any, Callable, Dict, Iterable, Iterator, List, Tuple

import numpy as np
import timm
import timm.optim
import torch
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.table import Table

from timm_preact.benchmark import alternate, fastest_peer, hardware, markdown
from timm_preact.data import ImageSet, load_image_set
from timm_preact.errors import UserError, check_name, one_sentence_errors
from timm_preact.files import write_atomically
from train import gpu, pages
from train.batches import EpochPlan, error_on
from train.recipe import RECIPES, Recipe, lr_at, parameter_groups
from train.run import Run, local_device, peak_memory

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / 'results'
BENCHMARKS = ROOT / 'benchmarks'
SHOWN = ('preact_resnet110_pcv', 'preact_resnet164_pcv', 'preact_resnet152')  # in the README
TRAIN_IMAGES, TEST_IMAGES, BATCH = 3840, 256, 128
WARM_UP = 8  # steps before a clock runs: compilation, cuDNN's choice, the capture

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False, help=__doc__)


def side_by_side(name: str, unit: str, contestants: Dict[str, Callable[[], float]], rounds: int,
                 **facts) -> Dict[str, float]:
    """Run every contestant once a round, in turn; print, write and return the medians, and print their ratios.

    Args:
        name: Of the result file.
        unit: Of what a contestant returns; 'images/s' or 's'.
        contestants: What is measured, ours first.
        rounds: Measurements of each.
        facts: What else the result should say.
    """
    measured = alternate(contestants, rounds)
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
        versions=dict(python=platform.python_version(), torch=torch.__version__, timm=timm.__version__),
        **dict(dict(hardware=hardware(torch.device('cpu'))), **facts),
    ), indent=1).encode())
    return medians


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
            output_of([
                sys.executable, '-m', 'train.cifar', 'preact_resnet20', '--data', str(folder / 'npz'), '--recipe',
                'modern', '--epochs', '2', '--output', str(output), *options])
            return json.loads((output / 'run.json').read_text())['images_per_second']

        def peer(*options: str) -> float:
            log = output_of([
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


def output_of(command: List[str], *modules: Path, **variables: str) -> str:
    """What a command prints, run in the repository, where it can import from the folders `modules` too.

    Args:
        command: Program and arguments.
        modules: Folders.
        variables: More of its environment.
    """
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, (ROOT, *modules))), **variables)
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    if result.returncode:
        raise UserError(f'{" ".join(command[:3])} failed: {(result.stderr or result.stdout).strip()[-2000:]}')
    return result.stdout + result.stderr


def plain_loop(model: torch.nn.Module, batches: Iterable[Tuple[torch.Tensor, torch.Tensor]], recipe: Recipe,
               total: int, amp: bool) -> Iterator[torch.Tensor]:
    """The loop that everyone writes: kernel by kernel, PyTorch's SGD as it comes.

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


def images_per_second(step: Callable[[], Any], images: int, steps: int, device: torch.device,
                      warm_up: int = WARM_UP) -> float:
    """Of `steps` calls that train on `images` images each, after `warm_up` others."""
    for _ in range(warm_up):
        step()
    synchronize(device)
    start = time.perf_counter()
    for _ in range(steps):
        step()
    synchronize(device)
    return images * steps / (time.perf_counter() - start)


def synchronize(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def open_runs(model: str, seeds: Iterable[int], sets: List[ImageSet], folder: Path, device: torch.device,
              **options: bool) -> List[Run]:
    """Fresh runs of the paper's recipe, BatchNorm over the whole batch."""
    hashes = [images.sha256 for images in sets]
    return [Run(dict(model=model, model_kwargs={}, seed=seed, amp=True, data=hashes), RECIPES['paper'], *sets,
                Path(tempfile.mkdtemp(dir=folder)), device, **options) for seed in seeds]


def seconds_of_evaluation(run: Run) -> float:
    start = time.perf_counter()
    with run.on_stream():
        error_on(run.model, run.test_batches)
    return time.perf_counter() - start


def step_all(runs: List[Run]) -> None:
    for run in runs:
        with run.on_stream():
            run.train_step()


def rate_in_process(model: str, seed: int, data: str, folder: Path, device: str, steps: int, warm_up: int) -> float:
    """Images/s of one of several processes that train on a device at once, each as long as the others."""
    sets = [load_image_set(data, split) for split in ('train', 'test')]
    runs = open_runs(model, [seed], sets, folder, torch.device(device))
    images_per_second(lambda: step_all(runs), BATCH, 0, runs[0].device, warm_up)
    BARRIER.wait()
    return images_per_second(lambda: step_all(runs), BATCH, steps, runs[0].device, warm_up)


def share_barrier(barrier: Any) -> None:
    """Every process begins to measure when the last has warmed up."""
    global BARRIER
    BARRIER = barrier


@app.command('steps')
@one_sentence_errors
def measure_steps(
        data: str = typer.Option(help='CIFAR-10 as train.cifar reads it.'),
        model: str = typer.Option('preact_resnet110', help='Registered name.'),
        device: str = typer.Option('cuda' if torch.cuda.is_available() else 'cpu', help='Where to train.'),
        together: int = typer.Option(5, help='Runs at once.'),
        steps: int = typer.Option(200, help='Steps of a measurement.'),
        warm_up: int = typer.Option(WARM_UP, help='Steps before each.'),
        rounds: int = typer.Option(3, help='Measurements of each.'),
        compile_model: bool = typer.Option(False, '--compile', help='Measure the compiled network too.'),
) -> None:
    """Training steps of batch 128 by train.run, alone, together and compiled, against a plain PyTorch loop.

    The plain loop gets its batch augmented and on the device. Rates are of all runs together, of steps alone.
    Last, it prints what they and the evaluations, measured too, make of one run of the paper's 64,000 steps.
    """
    where = local_device(device)
    sets = [load_image_set(data, split) for split in ('train', 'test')]
    memory: Dict[str, int] = {}
    evaluation: List[float] = []
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)

        def measured(name: str, measure: Callable[[], float]) -> Callable[[], float]:
            def measure_with_memory() -> float:
                if where.type == 'cuda':
                    torch.cuda.empty_cache()
                    torch.cuda.reset_peak_memory_stats(where)
                rate = measure()
                if where.type == 'cuda':
                    memory[name] = peak_memory(where)
                return rate
            return measure_with_memory

        def ours(count: int = 1, **options: bool) -> float:
            runs = open_runs(model, range(count), sets, folder, where, **options)
            rate = images_per_second(lambda: step_all(runs), count * BATCH, steps, where, warm_up)
            evaluation.append(seconds_of_evaluation(runs[0]))
            for run in runs:
                run.close()
            return rate

        def plain(amp: bool) -> float:
            run, = open_runs(model, [0], sets, folder, where)
            plan = EpochPlan.draw(0, 0, len(sets[0].labels), where)
            batch = run.train_batches.train(plan, run.places)
            loop = plain_loop(run.model, iter(lambda: batch, None), run.recipe, run.total, amp)
            run.close()
            return images_per_second(lambda: next(loop), BATCH, steps, where, warm_up)

        def processes(count: int) -> float:
            spawn = multiprocessing.get_context('spawn')
            with ProcessPoolExecutor(count, spawn, share_barrier, [spawn.Barrier(count, timeout=600)]) as pool:
                rates = [pool.submit(rate_in_process, model, seed, data, folder, device, steps, warm_up)
                         for seed in range(count)]
                return sum(rate.result() for rate in rates)

        contestants = {'train.run': ours}
        if compile_model:
            contestants['train.run, compiled'] = lambda: ours(compile_model=True)
        if where.type == 'cuda':
            contestants['train.run, no capture'] = lambda: ours(capture=False)
        contestants.update({
            'plain loop, bfloat16': lambda: plain(amp=True),
            'plain loop, float32': lambda: plain(amp=False),
            f'train.run, {together} runs together': lambda: ours(together),
        })
        contestants = {name: measured(name, measure) for name, measure in contestants.items()}
        contestants[f'train.run, {together} processes'] = lambda: processes(together)
        paper = RECIPES['paper']
        medians = side_by_side(
            f'steps_{model}_{where.type}', 'images/s', contestants, rounds, model=model, batch_size=BATCH, steps=steps,
            hardware=hardware(where), peak_memory_bytes=memory, evaluation_seconds=evaluation)
        epochs = paper.iterations // (len(sets[0].labels) // BATCH)
        minutes = (paper.iterations * BATCH / medians['train.run'] + epochs * statistics.median(evaluation)) / 60
        print(f'{paper.iterations} steps and {epochs} evaluations of one run: {minutes:.1f} minutes at these rates')


@app.command('imagenet')
@one_sentence_errors
def measure_imagenet(
        models: List[str] = typer.Option(
            ['preact_resnet152', 'preact_resnet200', 'resnetv2_152', 'pytorchcv:preresnet152b',
             'pytorchcv:preresnet200b'],
            '--model', help="timm's or our name, or pytorchcv:NAME; ours first."),
        batch_size: int = typer.Option(128, help='Images a step.'),
        image_size: int = typer.Option(224, help='Pixels a side.'),
        device: str = typer.Option('cuda' if torch.cuda.is_available() else 'cpu', help='Where to train.'),
        steps: int = typer.Option(20, help='Steps of a measurement.'),
        rounds: int = typer.Option(3, help='Measurements of each.'),
) -> None:
    """Training steps at ImageNet's size as train.py takes them: SGD, --amp --amp-dtype bfloat16 --channels-last.

    On one batch of noise that lies on the device: of the network and the optimizer alone, no image is read.
    """
    where = local_device(device)
    if where.type == 'cuda':
        torch.backends.cudnn.benchmark = True
    memory: Dict[str, int] = {}

    def rate(name: str) -> float:
        torch.manual_seed(0)
        model = made(name).to(where, memory_format=torch.channels_last).train()
        optimizer = timm.optim.create_optimizer_v2(model, 'sgd', lr=0.01, weight_decay=1e-4)
        x = torch.randn(batch_size, 3, image_size, image_size, device=where).to(memory_format=torch.channels_last)
        y = torch.randint(1000, (batch_size,), device=where)

        def step() -> None:
            with torch.autocast(where.type, torch.bfloat16):
                loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        if where.type == 'cuda':
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(where)
        measured = images_per_second(step, batch_size, steps, where)
        memory[name] = peak_memory(where)
        return measured

    side_by_side(
        f'imagenet_{where.type}', 'images/s', {name: partial(rate, name) for name in models}, rounds,
        hardware=hardware(where), batch_size=batch_size, image_size=image_size, steps=steps, peak_memory_bytes=memory)
    for name, used in memory.items():
        print(f'{name}: {used / 2 ** 30:.1f} GiB at most')


def made(name: str) -> torch.nn.Module:
    """An untrained network of timm, ours, or of pytorchcv where the name says so."""
    if not name.startswith('pytorchcv:'):
        return timm.create_model(check_name(name))
    from pytorchcv.model_provider import get_model
    return get_model(name.split(':')[1])


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
            output_of([sys.executable, *command])
            return time.perf_counter() - start
        return measure

    def after_timm() -> float:
        return float(output_of([
            sys.executable, '-c', 'import time, timm; start = time.perf_counter(); import timm_preact; '
            'print(time.perf_counter() - start)']))

    side_by_side('imports', 's', {
        'import timm_preact, after timm': after_timm,
        'import timm': seconds('-c', 'import timm'),
        'timm-preact --help': seconds('-m', 'timm_preact', '--help'),
    }, rounds)


# One measurement, in a process of its own: seconds of the first call, the second, and the median of later ones
COMPILED = '''
import statistics, sys, time, timm, torch, timm_preact
name, how, training = sys.argv[1], sys.argv[2], sys.argv[3] == 'training'
net = timm.create_model(name, compile_units=how == 'units').to(memory_format=torch.channels_last).train(training)
net = torch.compile(net) if how == 'whole' else net
x, y = torch.randn(16, 3, 32, 32).to(memory_format=torch.channels_last), torch.arange(16) % 10
seconds = []
for _ in range(12):
    start = time.perf_counter()
    with torch.set_grad_enabled(training):
        logits = net(x)
    if training:
        torch.nn.functional.cross_entropy(logits, y).backward()
    seconds.append(time.perf_counter() - start)
print('seconds', seconds[0], seconds[1], statistics.median(seconds[2:]))
'''


@app.command()
@one_sentence_errors
def compilation(rounds: int = typer.Option(3, help='Measurements of each.')) -> None:
    """Compile by unit (compile_units=True) against the whole network, and not at all: first and later steps.

    Training steps of preact_resnet164 and forward passes of preact_resnet1001, which is compiled by unit alone; batch
    16, PyTorch's cache of compiled code empty before each.
    """
    def seconds(place: int, *arguments: str) -> Callable[[], float]:
        def measure() -> float:
            if (arguments, place) not in measured:  # one process gives the first step and the later ones
                with tempfile.TemporaryDirectory() as folder:
                    output = output_of([sys.executable, '-c', COMPILED, *arguments], TORCHINDUCTOR_CACHE_DIR=folder)
                values = re.search('^seconds (.*)$', output, re.MULTILINE)[1].split()
                measured.update({(arguments, i): float(value) for i, value in enumerate(values)})
            return measured.pop((arguments, place))
        return measure

    measured: Dict[Tuple, float] = {}
    contestants = {}
    for name, training, hows in (('preact_resnet164', 'training', ('units', 'whole', 'none')),
                                 ('preact_resnet1001', 'inference', ('units', 'none'))):
        for how in hows:
            for place, what in enumerate(('first call', 'second call', 'later calls')):
                contestants[f'{name}, {training}, {how}: {what}'] = seconds(place, name, how, training)
    side_by_side('compilation', 's', contestants, rounds, batch_size=16)


# One measurement, in a process of its own: seconds, and the most memory that the process ever had
PROPAGATED = '''
import resource, sys, time, timm, torch, timm_preact
from timm_preact.data import load_sample
from timm_preact.evaluation import Images, eval_transform
from timm_preact.propagation import measure
model = timm.create_model('preact_resnet1001').train()
x, y = Images(load_sample(), eval_transform(model)).spread(32)
start = time.perf_counter()
if sys.argv[1] == 'measure':
    measure(model, x, y)
else:
    torch.nn.functional.cross_entropy(model(x), y).backward()
print('measured', time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
'''


@app.command()
@one_sentence_errors
def propagation(rounds: int = typer.Option(3, help='Measurements of each.')) -> None:
    """timm_preact.propagation.measure of preact_resnet1001 at batch 32, beside the gradients of one training step."""
    def seconds(contestant: str, argument: str) -> Callable[[], float]:
        def measure() -> float:
            output = output_of([sys.executable, '-c', PROPAGATED, argument])
            elapsed, memory = re.search('^measured (.*) (.*)$', output, re.MULTILINE).groups()
            peaks[contestant] = max(peaks.get(contestant, 0), int(memory))
            return float(elapsed)
        return measure

    peaks: Dict[str, int] = {}
    contestants = {'propagation.measure': 'measure', 'forward and backward': 'step'}
    side_by_side('propagation', 's', {name: seconds(name, argument) for name, argument in contestants.items()}, rounds,
                 model='preact_resnet1001', batch_size=32, peak_memory_bytes=peaks)


def speed_table(read: Callable[[str], Dict[str, Any]]) -> str:
    """Ours against the fastest peer, of the networks that the README shows."""
    lines = ['| | ours, images/s | fastest peer | speed | memory |', '|---|--:|--:|--:|--:|']
    for name in ('cifar_inference', 'imagenet_inference', 'cifar_training', 'imagenet_training'):
        for run in read(name)['runs']:
            setting, ours = run['setting'], next(iter(run['contestants']))
            if setting['name'] not in SHOWN:
                continue
            row, peer = run['contestants'][ours], fastest_peer(run)
            theirs = run['contestants'][peer]
            rates = row['images_per_second'], theirs['images_per_second']
            memory = f"{row['memory'] / theirs['memory']:.2f}" if row['memory'] else '-'
            what = f"`{setting['name']}` {setting['task']}, {setting['dtype']}, batch {setting['batch_size']}"
            lines.append(
                f"| {what}: `{ours}` | {rates[0]:,.1f} | {peer}: {rates[1]:,.1f} | {rates[0] / rates[1]:.2f} | "
                f"{memory} |")
    return '\n'.join(lines)


def compilation_table(result: Dict[str, Any]) -> str:
    lines = ['| | first call, s | second | later |', '|---|--:|--:|--:|']
    medians = result['medians']
    for name in dict.fromkeys(key.partition(':')[0] for key in medians):
        values = ' | '.join(f"{medians[f'{name}: {what} call{s}']:.3g}" for what, s in (
            ('first', ''), ('second', ''), ('later', 's')))
        lines.append(f'| {name} | {values} |')
    return '\n'.join(lines)


def int8_table(result: Dict[str, Any]) -> str:
    lines = ['| | float32 | bfloat16 | int8 |', '|---|--:|--:|--:|']
    for what, values in (('error, %', result['error']), *(
            (f'ms an image in onnxruntime, {batch}', times) for batch, times in
            result['milliseconds_per_image'].items()), ('bytes of the file', result['bytes'])):
        lines.append(f"| {what} | {' | '.join(format_of(values.get(t)) for t in ('float32', 'bfloat16', 'int8'))} |")
    return '\n'.join(lines)


def format_of(value: Any) -> str:
    return '-' if value is None else f'{value:,}' if isinstance(value, int) else f'{value:.2f}'


def growth_table(result: Dict[str, Any]) -> str:
    lines = ['| | units | 1,000 layers | intercept | R^2 |', '|---|---|--:|--:|--:|']
    for family, quantities in result['families'].items():
        for quantity, measured in quantities.items():
            factor, unit = {'s': (1e3, 'ms'), 'b': (2 ** -20, 'MiB')}[measured['unit'][0]]
            fit = measured['line']
            lines.append(
                f"| {quantity.replace('_', ' ')}, {unit}{measured['unit'].partition(' ')[1]}"
                f"{measured['unit'].partition(' ')[2]} | {family} | {1000 * factor * fit['slope']:.1f} | "
                f"{factor * fit['intercept']:.1f} | {fit['r2']:.4f} |")
    return '\n'.join(lines)


def filled(text: str) -> str:
    """`text` with every table between <!-- NAME --> and <!-- /NAME --> made from its result file."""
    def read(name: str) -> Dict[str, Any]:
        folder = RESULTS if name.startswith('benchmark_') else BENCHMARKS
        return json.loads((folder / f'{name}.json').read_text())

    def table(name: str) -> str:
        return TABLES[name](read(name))

    return pages.filled(text, {
        **{name: partial(table, name) for name in TABLES}, 'speed': partial(speed_table, read),
        'gpu': partial(gpu.tables, BENCHMARKS / 'gpu')})


TABLES = dict(
    benchmark_compilation=compilation_table, int8_preact_resnet20=int8_table, growth=growth_table,
    **dict.fromkeys(('cifar_inference', 'imagenet_inference', 'cifar_training', 'settled_training',
                     'imagenet_training', 'preact_resnet1001_training', 'gpu_inference', 'gpu_training'), markdown))


@app.command()
@one_sentence_errors
def report() -> None:
    """Write the tables of benchmarks/README.md and of the README from the result files."""
    for path in (BENCHMARKS / 'README.md', ROOT / 'README.md'):
        write_atomically(path, filled(path.read_text()).encode())


if __name__ == '__main__':
    app()
