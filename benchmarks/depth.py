"""What depth costs on this machine's CPU: time to construct, load and run a network, and memory to train it.

    OMP_WAIT_POLICY=passive python -m benchmarks.depth

The CIFAR networks from 20 to 1202 layers, 10 classes, side by side, alternating, medians of several rounds. Writes
growth.json into benchmarks/results, with a line against depth for each of the two kinds of unit, and growth.png. The
variable keeps threads that wait for each other from spinning: where other processes run too, a kernel that spins takes
many times as long, and these networks are thousands of short kernels.
"""
import gc
import os
import statistics
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any, Callable, Dict, List

import numpy as np
import timm
import torch
import typer
from rich.console import Console
from rich.table import Table
from safetensors.torch import save_file
from torch import nn

import timm_preact  # noqa: F401
from timm_preact.benchmark import seconds_per_call
from timm_preact.cli.options import PATH
from timm_preact.errors import COUNT, one_sentence_errors
from timm_preact.figures import new_figure, save_figure
from timm_preact.files import write_json
from timm_preact.inference import optimize
from timm_preact.memory import bytes_kept
from train import places
from train.command import record_command

__all__ = ['main']

FAMILIES: Dict[str, Dict[int, str]] = {
    'basic': {
        20: 'preact_resnet20', 56: 'preact_resnet56', 110: 'preact_resnet110', 1202: 'preact_resnet1202_pcv'},
    'bottleneck': {
        164: 'preact_resnet164', 272: 'preact_resnet272_pcv', 542: 'preact_resnet542_pcv', 1001: 'preact_resnet1001'},
}
CLASSES = 10
INFERENCE_BATCH, TRAINING_BATCH = 32, 8
QUANTITIES = {
    'construction': 'seconds',
    'loading': 'seconds',
    'inference': 'seconds an image',
    'inference_optimized': 'seconds an image',
    'kept_for_backward': 'bytes an image',
    'kept_for_backward_recompute_norms': 'bytes an image',
}


def measure_seconds(run: Callable[[], Any]) -> float:
    """Measure the seconds of one call, the garbage of earlier ones collected before."""
    gc.collect()
    return seconds_per_call(run)


def infer(model: nn.Module, images: torch.Tensor) -> None:
    """Run a forward pass without gradients."""
    with torch.no_grad():
        model(images)


def measure_memory(name: str, recompute_norms: bool) -> float:
    """Count the bytes an image that a training step keeps for backward."""
    model = timm.create_model(name, num_classes=CLASSES, recompute_norms=recompute_norms).train()
    model.to(memory_format=torch.channels_last)
    images = torch.randn(TRAINING_BATCH, 3, 32, 32).to(memory_format=torch.channels_last)
    return bytes_kept(model, lambda: model(images))[0] / TRAINING_BATCH


def create_contestants(name: str, folder: Path) -> Dict[str, Callable[[], float]]:
    """Create what measures each time of a network; its models are made and warm."""
    file = folder / f'{name}.safetensors'
    overlay = dict(file=str(file), num_classes=CLASSES)
    model = timm.create_model(name, num_classes=CLASSES).eval()
    save_file(model.state_dict(), file)
    model.to(memory_format=torch.channels_last)
    optimized = optimize(model)
    images = torch.randn(INFERENCE_BATCH, 3, 32, 32).to(memory_format=torch.channels_last)
    for net in (model, optimized):
        infer(net, images)
    return dict(
        construction=lambda: measure_seconds(lambda: timm.create_model(name, num_classes=CLASSES)),
        loading=lambda: measure_seconds(lambda: timm.create_model(
            name, pretrained=True, num_classes=CLASSES, pretrained_cfg_overlay=overlay)),
        inference=lambda: measure_seconds(lambda: infer(model, images)) / INFERENCE_BATCH,
        inference_optimized=lambda: measure_seconds(lambda: infer(optimized, images)) / INFERENCE_BATCH,
    )


def fit_line(points: Dict[int, float]) -> Dict[str, float]:
    """Fit the least-squares line through values by depth, and find the share of their variance that it explains."""
    depths, values = np.array(list(points)), np.array(list(points.values()))
    slope, intercept = np.polyfit(depths, values, 1)
    residual = values - (slope * depths + intercept)
    return dict(
        slope=float(slope), intercept=float(intercept),
        r2=float(1 - (residual ** 2).sum() / ((values - values.mean()) ** 2).sum()))


def measure(rounds: int, folder: Path) -> Dict[str, Dict[str, Dict[int, List[float]]]]:
    """Measure everything, by family, quantity and depth: times once a round, memory, which is exact, once."""
    measured = {family: {quantity: defaultdict(list) for quantity in QUANTITIES} for family in FAMILIES}
    networks = [(family, depth, name) for family, names in FAMILIES.items() for depth, name in names.items()]
    for family, depth, name in networks:
        for quantity, recompute_norms in (
                ('kept_for_backward', False), ('kept_for_backward_recompute_norms', True)):
            measured[family][quantity][depth].append(measure_memory(name, recompute_norms))
    contestants = {name: create_contestants(name, folder) for _, _, name in networks}
    for _ in range(rounds):
        for family, depth, name in networks:
            for quantity, contestant in contestants[name].items():
                measured[family][quantity][depth].append(contestant())
    return measured


def draw(result: Dict[str, Any], path: Path) -> None:
    """Draw four panels against depth; kinds of unit differ by their marker, what is compared by the line's dashes."""
    figure = new_figure(12, 8)
    if figure is None:
        return
    panels = [
        ('inference, an image in a batch of 32', 'ms', 1e3, {
            'inference': 'as it is', 'inference_optimized': 'optimize()'}),
        ('kept for backward, an image in a batch of 8', 'MiB', 2 ** -20, {
            'kept_for_backward': 'as it is', 'kept_for_backward_recompute_norms': 'recompute_norms'}),
        ('construction', 's', 1, {'construction': ''}),
        ('loading, from safetensors to a ready model', 's', 1, {'loading': ''}),
    ]
    looks = {
        'basic': [dict(color='#000000', marker='o'), dict(color='#d55e00', marker='s')],
        'bottleneck': [dict(color='#0072b2', marker='^'), dict(color='#009e73', marker='D')],
    }
    dashes = [['-', '--'], ['-.', ':']]
    for axis, (title, unit, scale, lines) in zip(figure.subplots(2, 2).flat, panels, strict=True):
        for (family, quantities), of_family in zip(result['families'].items(), dashes, strict=True):
            for look, dash, (quantity, label) in zip(looks[family], of_family, lines.items(), strict=False):
                points, fit = quantities[quantity]['medians'], quantities[quantity]['line']
                depths = np.array([0, max(points)])
                axis.plot(
                    depths, scale * (fit['slope'] * depths + fit['intercept']), linestyle=dash, linewidth=1.5,
                    color=look['color'])
                axis.plot(
                    [], [], linestyle=dash, markerfacecolor='white', markersize=7, **look,
                    label=f'{family}{", " if label else ""}{label}: {1000 * scale * fit["slope"]:.3g} {unit} '
                          f'in 1000 layers, R² {fit["r2"]:.4f}')
                axis.plot(
                    list(points), [scale * value for value in points.values()], linestyle='', markersize=7,
                    markerfacecolor='white', clip_on=False, zorder=3, **look)
        axis.set(title=title, xlabel='depth, layers', ylabel=unit, xlim=(0, 1260))
        axis.set_ylim(0, 1.45 * axis.get_ylim()[1])  # room for the legend
        axis.grid(alpha=0.3)
        axis.legend(loc='upper left', fontsize=8, handlelength=4.5)
    figure.suptitle(f'CIFAR networks by depth, with least-squares lines\n{result["hardware"]}', fontsize=10)
    save_figure(figure, path)


@one_sentence_errors
def main(
        rounds: Annotated[int, COUNT] = typer.Option(5, help='Measurements of each time.'),
        threads: Annotated[int, COUNT] = typer.Option(2, help='Threads of the CPU.'),
        output: Path = typer.Option(places.BENCHMARKS, **PATH, help='Folder for growth.json and growth.png.'),
) -> None:
    """Measure what depth costs on this machine's CPU: time to construct, load and run a network, memory to train it."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    load_before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as temporary:
        measured = measure(rounds, Path(temporary))
    families = {family: {} for family in FAMILIES}
    for family, quantities in measured.items():
        for quantity, by_depth in quantities.items():
            medians = {depth: statistics.median(values) for depth, values in by_depth.items()}
            families[family][quantity] = dict(
                unit=QUANTITIES[quantity], line=fit_line(medians), medians=medians, rounds=by_depth)
    result = dict(
        record_command('python -m benchmarks.depth', torch.device('cpu'), seed=0),
        load_before=load_before,  # processes that ran already: they slow down what is measured
        networks=FAMILIES,
        inference=dict(batch_size=INFERENCE_BATCH, precision='float32', memory_format='channels_last'),
        training=dict(batch_size=TRAINING_BATCH, precision='float32', memory_format='channels_last'),
        families=families,
    )
    output.mkdir(parents=True, exist_ok=True)
    write_json(output / 'growth.json', result)
    draw(result, output / 'growth.png')
    for quantity, unit in QUANTITIES.items():
        table = Table(f'{quantity}, {unit}', 'medians by depth', 'per layer', 'at depth 0', 'R²')
        for family in FAMILIES:
            of_family = families[family][quantity]
            medians = '  '.join(f'{depth}: {value:.3g}' for depth, value in of_family['medians'].items())
            fit = of_family['line']
            table.add_row(family, medians, f'{fit["slope"]:.3g}', f'{fit["intercept"]:.3g}', f'{fit["r2"]:.5f}')
        Console(width=120).print(table)


if __name__ == '__main__':
    typer.run(main)
