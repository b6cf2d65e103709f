"""What `measure.benchmark` found, as tables and as a picture."""
import itertools
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

import timm

from ..catalog import MEASURED, PAPER
from ..figures import new_figure, save_figure
from ..files import write_json
from ..weights.sources import SOURCES
from .peers import find_peers

__all__ = ['draw', 'draw_panel', 'find_fastest_peer', 'format_tables', 'write']


def format_tables(result: Dict[str, Any]) -> str:
    """Format the tables of a result in Markdown, a row a contestant.

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
        peer = find_fastest_peer(run)
        for name, row in run['contestants'].items():
            rate = row['images_per_second']
            operations = run['macs'] * (6 if setting['task'] == 'training' else 2)  # backward is two more products
            share = rate * operations / result['operations_per_second'][setting['dtype']]
            against = f"{rate / run['contestants'][peer]['images_per_second']:.2f}" if peer else '-'
            lines.append(
                f"| {name} | {rate:,.{0 if rate >= 100 else 1}f} | {1e3 * setting['batch_size'] / rate:,.1f} | "
                f"{against} | {share:.2f} | {format_memory(row)} |")
        lines.append('')
    return '\n'.join(lines)


def format_memory(row: Dict[str, Any]) -> str:
    """Format a contestant's memory in MiB."""
    return '-' if row['memory'] is None else f"{row['memory'] / 2 ** 20:,.0f} MiB"


def find_fastest_peer(run: Dict[str, Any]) -> Optional[str]:
    """Find the fastest contestant of those that are not ours, None where there is none."""
    rates = {peer.title: run['contestants'][peer.title]['images_per_second']
             for peer in find_peers(run['setting']['name']) if peer.title in run['contestants']}
    return max(rates, key=rates.get, default=None)


def find_error(name: str) -> Optional[Tuple[float, str]]:
    """Find the top-1 error in percent that is known of a name, and whose: ours, published weights' or the paper's."""
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
    """Draw throughput against error, a bubble's area for memory, a panel a setting but for the network.

    Returns:
        Whether it is drawn: that needs matplotlib, and networks of which an error is known.
    """
    panels: Dict[Tuple, List[Dict[str, Any]]] = {}
    for run in result['runs']:
        setting = run['setting']
        if find_error(setting['name']):
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
    """Draw a line a contestant over the networks, one a package; peers of another function have other errors."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
    lines: Dict[str, List[Tuple[float, float, Optional[int], str]]] = {}
    for run in runs:
        name = run['setting']['name']
        peers = {peer.title: peer for peer in find_peers(name)}
        for contestant, row in run['contestants'].items():
            peer = peers.get(contestant)
            if peer is None or peer.source:
                lines.setdefault(peer.package if peer else f'ours, {contestant}', []).append((
                    row['images_per_second'], find_error(name)[0], row['memory'], name.removeprefix('preact_resnet')))
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
    write_json(files[0], result)
    if draw(result, path.with_suffix('.png')):
        files.append(path.with_suffix('.png'))
    return files
