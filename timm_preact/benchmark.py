"""Our networks and other people's on the same shapes, side by side in one process: images a second, memory.

Every contestant runs once a round, in turn, each round beginning with another one, and what is reported is the median
of the rounds: machines are noisy, and their noise is shared so. Peers run as they come, in eager mode, but in the
channels-last memory format, in which all of them are fastest on a CPU and on a GPU with tensor cores.
"""
import itertools
import json
import os
import platform
import re
import statistics
import sys
import time
import weakref
from contextlib import nullcontext
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Tuple

import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from .catalog import MEASURED, PAPER, count_macs, depth_of
from .errors import UserError
from .figures import new_figure, save_figure
from .files import write_atomically
from .inference import optimize
from .memory import bytes_kept
from .preact_resnet import MODEL_ARGS
from .weights.keymaps import KEY_MAPS, from_ours
from .weights.sources import SOURCES

__all__ = [
    'PACKAGES', 'Peer', 'Setting', 'TASKS', 'alternate', 'benchmark', 'draw', 'facts', 'fastest_peer', 'hardware',
    'installed', 'markdown', 'operations_per_second', 'peers_of', 'same_function', 'synchronize', 'write']

PACKAGES = ('timm', 'pytorchcv', 'torchvision')
TASKS = ('inference', 'training')
AFFECTING = ('MALLOC_', 'OMP_', 'KMP_', 'LD_PRELOAD')  # variables of the environment that change how fast a CPU is
SECONDS = 0.5  # that a measurement takes at least
SLOW = 0.3  # seconds of a matrix product at half its size that say as much as eight times as many at its whole


class Peer(NamedTuple):
    """Another implementation of a network of ours.

    Attributes:
        package: 'timm', 'pytorchcv' or 'torchvision'.
        name: Theirs.
        source: Our key map of their tensors, where their function is ours exactly, given the arguments it names.
    """
    package: str
    name: str
    source: Optional[str] = None

    @property
    def title(self) -> str:
        return f'{self.package} {self.name}'

    def create(self) -> nn.Module:
        """Untrained, with 1000 classes, or 10 for CIFAR."""
        if self.package == 'timm':
            return timm.create_model(self.name)
        if self.package == 'torchvision':
            from torchvision.models import get_model
            return get_model(self.name)
        from pytorchcv.model_provider import get_model
        return get_model(self.name)


def peers_of(name: str) -> List[Peer]:
    """Who else has the network of this registered name, or one of its depth and cost."""
    args, depth = MODEL_ARGS[name], depth_of(name)
    variant = name.removeprefix(f'preact_resnet{depth}')
    if args.get('stem_type') == 'imagenet':
        if variant == '_orig' and depth < 200:
            return [Peer('torchvision', f'resnet{depth}', 'torchvision')]
        if args.get('placement', 'full') != 'full':
            return []
        pytorchcv, timm_ = (None, None) if variant else ('pytorchcv_imagenet', 'timm_resnetv2')
        peers = [Peer('pytorchcv', f'preresnet{depth}{"b" if depth >= 50 else ""}', pytorchcv)]
        if depth < 200:
            peers += [Peer('timm', f'resnetv2_{depth}', timm_), Peer('torchvision', f'resnet{depth}')]
        return peers
    if variant not in ('', '_pcv'):
        return []
    bottleneck = 'bn' if depth in (164, 272, 542) else ''
    return [Peer('pytorchcv', f'preresnet{depth}{bottleneck}_cifar10', 'pytorchcv_cifar' if variant else None)]


def installed(packages: List[str]) -> List[str]:
    """Those of `packages` that are installed.

    Raises:
        UserError: One is not known.
    """
    for package in packages:
        if package not in PACKAGES:
            raise UserError(f'--against {package} is not known: choose from {",".join(PACKAGES)}.')
    return [package for package in packages if find_spec(package) is not None]


def same_function(name: str, peer: Peer) -> float:
    """Largest difference of a peer's logits from ours, over the largest logit, given the same weights.

    Raises:
        UserError: The peer's function is not ours.
    """
    if peer.source is None:
        raise UserError(f'{peer.title} does not compute what {name} does: it is a network of the same depth.')
    torch.manual_seed(0)
    ours = timm.create_model(name, **KEY_MAPS[peer.source].model_args).eval()
    theirs = peer.create().eval()
    theirs.load_state_dict(from_ours(ours.state_dict(), peer.source))
    x = torch.randn(2, *ours.pretrained_cfg['input_size'])
    with torch.no_grad():
        expected = ours(x)
        return ((theirs(x) - expected).abs().max() / expected.abs().max()).item()


class Setting(NamedTuple):
    """What is measured.

    Attributes:
        name: Registered name.
        task: 'inference' (a forward pass without gradients) or 'training' (forward, loss, backward, SGD).
        dtype: Of weights and images in inference, of autocast in training; torch.float32 is full precision.
        batch_size: Images a call.
        image_size: Pixels a side, None for the name's own.
    """
    name: str
    task: str
    dtype: torch.dtype = torch.float32
    batch_size: int = 64
    image_size: Optional[int] = None


def contestants(setting: Setting, device: torch.device, against: List[str], compiled: bool) -> Dict[str, nn.Module]:
    """Ours first, then the peers in `against` that have this network: name -> network, ready on the device."""
    half = setting.dtype if setting.task == 'inference' else None

    def create(**kwargs: Any) -> nn.Module:
        return timm.create_model(setting.name, **kwargs).train(setting.task == 'training')

    if setting.task == 'inference':
        nets = {'optimize()': optimize(create(), setting.dtype)}
        if compiled:
            nets['optimize(compile=True)'] = optimize(create(), setting.dtype, compile=True)
        nets['as created'] = create()
    else:
        nets = {'recompute_norms': create(recompute_norms=True)}
        checkpointed = create(checkpoint_every=6)
        checkpointed.set_grad_checkpointing()
        nets['checkpointed by 6'] = checkpointed
        if compiled:
            nets['compile_units'] = create(compile_units=True)
        nets['as created'] = create()
    for peer in peers_of(setting.name):
        if peer.package in against:
            nets[peer.title] = peer.create().train(setting.task == 'training')
    return {name: net.to(device, half, memory_format=torch.channels_last) for name, net in nets.items()}


def alternate(measures: Dict[str, Callable[[], float]], rounds: int) -> Dict[str, List[float]]:
    """Call each measure once a round, in turn; each round begins with the next one."""
    names, measured = list(measures), {name: [] for name in measures}
    for i in range(rounds):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            measured[name].append(measures[name]())
    return measured


def benchmark(setting: Setting, device: torch.device, against: List[str], rounds: int = 5, compiled: bool = False,
              graphs: bool = False) -> Dict[str, Any]:
    """Measure one setting.

    Args:
        setting: What to measure.
        device: Where.
        against: Packages to measure beside us.
        rounds: Measurements of each contestant.
        compiled: Add ours with its units compiled.
        graphs: Add ours in inference as a CUDA graph; on a GPU.

    Returns:
        The setting, and for each contestant `seconds` of a call in each round, `images_per_second` (median), and
        `memory` in bytes: on a GPU the peak of a call with weights; on a CPU the most that tensors made in a call have
        at once, or in training what is kept for backward; `macs` of one image.
    """
    size = setting.image_size or timm.get_pretrained_cfg(setting.name).input_size[-1]
    nets = contestants(setting, device, against, compiled)
    x = torch.randn(setting.batch_size, 3, size, size, device=device).to(memory_format=torch.channels_last)
    x = x.to(setting.dtype) if setting.task == 'inference' else x
    calls = {name: call_of(net, x, setting) for name, net in nets.items()}
    if graphs and setting.task == 'inference':
        calls['optimize(), CUDA graph'] = captured(nets['optimize()'], x)
    memory = {}
    for name, call in calls.items():  # the first calls compile, pack weights and choose algorithms
        call()
        if device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats(device)
            call()
            memory[name] = torch.cuda.max_memory_allocated(device)
        elif setting.task == 'training':
            memory[name] = bytes_kept(nets[name], lambda name=name: loss_of(nets[name], x, setting))[0]
        else:
            with PeakMemory() as memory_of_call:
                call()
            memory[name] = memory_of_call.peak
        call()
    seconds = alternate({name: lambda call=call: seconds_of(call, device) for name, call in calls.items()}, rounds)
    return dict(
        setting=dict(setting._asdict(), dtype=str(setting.dtype).removeprefix('torch.'), image_size=size),
        macs=count_macs(timm.create_model(setting.name, device='meta'), (3, size, size)),
        contestants={name: dict(
            images_per_second=setting.batch_size / statistics.median(values), memory=memory.get(name), seconds=values)
            for name, values in seconds.items()})


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is on; `peak` is the most that lived at once."""

    def __init__(self):
        super().__init__()
        self.living: Dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.living:
                    self.living[storage.data_ptr()] = storage.nbytes()
                    weakref.finalize(storage, self.living.pop, storage.data_ptr())
                    self.peak = max(self.peak, sum(self.living.values()))
        return result


def call_of(net: nn.Module, x: torch.Tensor, setting: Setting) -> Callable[[], Any]:
    """One call: a forward pass, or a training step."""
    if setting.task == 'inference':
        @torch.inference_mode()
        def forward() -> torch.Tensor:
            return net(x)
        return forward
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        loss_of(net, x, setting).backward()
        optimizer.step()
        optimizer.zero_grad()
    return step


def loss_of(net: nn.Module, x: torch.Tensor, setting: Setting) -> torch.Tensor:
    half = setting.dtype != torch.float32
    with torch.autocast(x.device.type, setting.dtype) if half else nullcontext():
        return F.cross_entropy(net(x), torch.arange(len(x), device=x.device) % 10)


def captured(net: nn.Module, x: torch.Tensor) -> Callable[[], None]:
    """A forward pass as a CUDA graph, replayed."""
    with torch.inference_mode():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            for _ in range(3):
                net(x)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            net(x)
    return graph.replay


def seconds_of(call: Callable[[], Any], device: torch.device) -> float:
    """Of one call, on average over `SECONDS`."""
    synchronize(device)
    start, count = time.perf_counter(), 0
    while True:
        call()
        count += 1
        if time.perf_counter() - start > SECONDS:
            synchronize(device)
            return (time.perf_counter() - start) / count


def synchronize(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def operations_per_second(device: torch.device, dtype: torch.dtype, rounds: int = 5) -> float:
    """Floating-point operations a second of a large matrix product: by torch.mm or as a 1x1 convolution, the faster."""
    def products(n: int) -> Dict[str, Callable[[], torch.Tensor]]:
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        image = a.view(1, n // 64, 64, n).permute(0, 3, 1, 2)  # channels last: the same matrix
        kernel = b.view(n, n, 1, 1)
        return {'mm': lambda: torch.mm(a, b), 'conv': lambda: F.conv2d(image, kernel)}

    n = 8192 if device.type == 'cuda' else 2048
    with torch.inference_mode():
        # a processor may have no kernel for one of them, which at full size then takes minutes, or for both
        half = {name: seconds_of(call, device) for name, call in products(n // 2).items()}
        n = n // 2 if min(half.values()) > SLOW else n
        calls = {name: call for name, call in products(n).items() if half[name] < 5 * min(half.values())}
        seconds = alternate({name: lambda call=call: seconds_of(call, device) for name, call in calls.items()}, rounds)
    return 2 * n ** 3 / min(statistics.median(values) for values in seconds.values())


def hardware(device: torch.device) -> str:
    """The GPU's name, or the CPU's and how many threads of it are used."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    cpuinfo = Path('/proc/cpuinfo')  # of Linux
    name = re.search(r'model name\s*: (.*)', cpuinfo.read_text()) if cpuinfo.exists() else None
    threads = torch.get_num_threads()
    return f'{name[1] if name else platform.machine()} CPU, {threads} thread{"s" * (threads > 1)}'


def facts(device: torch.device, against: List[str]) -> Dict[str, Any]:
    """What a result says of where it came from."""
    packages = ['torch', 'timm', *(package for package in against if package != 'timm')]
    return dict(
        command=' '.join(['timm-preact', *sys.argv[1:]]), hardware=hardware(device),
        environment={name: value for name, value in os.environ.items() if name.startswith(AFFECTING)},
        versions=dict(python=platform.python_version(), **{p: version(p) for p in packages}))


def markdown(result: Dict[str, Any]) -> str:
    """The tables of a result, a row a contestant.

    'Of a matrix product' is the rate of the convolutions' operations over that of a large matrix product on the same
    machine: 1 is the floor of the time, but for what a convolution's own kernels do better.
    """
    lines = []
    for run in result['runs']:
        setting = run['setting']
        lines += [
            f"`{setting['name']}`, {setting['task']}, {setting['dtype']}, batch {setting['batch_size']} at "
            f"{setting['image_size']}x{setting['image_size']}:", '',
            '| | images/s | ms a call | against the fastest peer | of a matrix product | memory |',
            '|---|--:|--:|--:|--:|--:|']
        peer = fastest_peer(run)
        for name, row in run['contestants'].items():
            rate = row['images_per_second']
            operations = run['macs'] * (6 if setting['task'] == 'training' else 2)  # backward is two more products
            share = rate * operations / result['operations_per_second'][setting['dtype']]
            against = f"{rate / run['contestants'][peer]['images_per_second']:.2f}" if peer else '-'
            lines.append(
                f"| {name} | {rate:,.{0 if rate >= 100 else 1}f} | {1e3 * setting['batch_size'] / rate:,.1f} | "
                f"{against} | {share:.2f} | {memory_of(row)} |")
        lines.append('')
    return '\n'.join(lines)


def memory_of(row: Dict[str, Any]) -> str:
    return '-' if row['memory'] is None else f"{row['memory'] / 2 ** 20:,.0f} MiB"


def fastest_peer(run: Dict[str, Any]) -> Optional[str]:
    """Which contestant is the fastest of those that are not ours."""
    rates = {peer.title: run['contestants'][peer.title]['images_per_second']
             for peer in peers_of(run['setting']['name']) if peer.title in run['contestants']}
    return max(rates, key=rates.get, default=None)


def error_of(name: str) -> Optional[Tuple[float, str]]:
    """Top-1 error in percent that is known of a name, and whose it is: ours, published weights' or the paper's."""
    for cfg in timm.models.get_arch_pretrained_cfgs(name).values():
        key = f'{name}.{cfg.tag}'
        if key in MEASURED:
            return MEASURED[key], 'ours'
        if key in SOURCES:
            return SOURCES[key].reported[0], 'published'
        error = PAPER.get(name, {}).get(cfg.tag)
        if isinstance(error, float):
            return error, 'paper'
    return None


def draw(result: Dict[str, Any], path: Path) -> bool:
    """Throughput against error, a bubble's area for memory; a panel a setting but for the network. Whether it is drawn.

    Needs matplotlib, and networks of which an error is known.
    """
    panels: Dict[Tuple, List[Dict[str, Any]]] = {}
    for run in result['runs']:
        setting = run['setting']
        if error_of(setting['name']):
            key = tuple(setting[k] for k in ('task', 'dtype', 'batch_size', 'image_size'))
            panels.setdefault(key, []).append(run)
    if not panels:
        return False
    columns = min(2, len(panels))
    rows = -(-len(panels) // columns)
    figure = new_figure(6.4 * columns, 4.6 * rows)
    if figure is None:
        return False
    grid = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axes, ((task, dtype, batch, size), runs) in zip(grid, panels.items(), strict=False):
        draw_panel(axes, runs)
        axes.set(title=f'{task}, {dtype}, batch {batch} at {size}x{size}', xlabel='images/s', ylabel='top-1 error, %')
    for axes in grid[len(panels):]:
        axes.remove()
    save_figure(figure, path)
    return True


def draw_panel(axes: Any, runs: List[Dict[str, Any]]) -> None:
    """One line a contestant over the networks, a package's being one; peers of another function have other errors."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
    lines: Dict[str, List[Tuple[float, float, Optional[int], str]]] = {}
    for run in runs:
        name = run['setting']['name']
        peers = {peer.title: peer for peer in peers_of(name)}
        for contestant, row in run['contestants'].items():
            peer = peers.get(contestant)
            if peer is None or peer.source:
                lines.setdefault(peer.package if peer else f'ours, {contestant}', []).append((
                    row['images_per_second'], error_of(name)[0], row['memory'], name.removeprefix('preact_resnet')))
    styles = itertools.cycle([
        ('#d55e00', 'o', '-'), ('#0072b2', 's', '--'), ('#009e73', '^', '-.'), ('#cc79a7', 'D', ':'),
        ('#000000', 'v', (0, (5, 1, 1, 1))), ('#e69f00', 'P', (0, (1, 1))), ('#56b4e9', 'X', (0, (8, 2))),
        ('#7f7f7f', '*', (0, (3, 3)))])
    most = max((point[2] or 0 for points in lines.values() for point in points), default=0)
    for (label, points), (color, marker, dashes) in zip(lines.items(), styles, strict=False):
        rates, errors, memories, names = zip(*sorted(points, key=lambda point: point[1]), strict=True)
        areas = [20 + 400 * (memory or 0) / most if most else 40 for memory in memories]
        axes.plot(rates, errors, color=color, linestyle=dashes, linewidth=1)
        axes.scatter(rates, errors, areas, color=color, marker=marker, alpha=0.6, label=label)
        if label == next(iter(lines)):
            for rate, error, name in zip(rates, errors, names, strict=True):
                axes.annotate(name, (rate, error), xytext=(6, 6), textcoords='offset points', fontsize=8)
    axes.set(xscale='log')
    axes.margins(0.12)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda rate, _: f'{rate:,.0f}' if rate >= 10 else f'{rate:g}'))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.legend(fontsize=8, markerscale=0.7)
    axes.grid(alpha=0.3)


def write(result: Dict[str, Any], path: Path) -> List[Path]:
    """Write `path`.json and, where it can be drawn, `path`.png; return what was written."""
    path.parent.mkdir(parents=True, exist_ok=True)
    files = [path.with_suffix('.json')]
    write_atomically(files[0], json.dumps(result, indent=1).encode() + b'\n')
    if draw(result, path.with_suffix('.png')):
        files.append(path.with_suffix('.png'))
    return files
