"""Signal and gradient against depth, a pair of panels a network, the same axes for all.

Without colour a line is told by its dashes (the whole or a part of it) and by its marker (whose weights).
"""
from pathlib import Path
from typing import Any, Dict, List, Sequence

import numpy as np

from ..figures import new_figure, save_figure
from .results import Propagation

__all__ = ['compose', 'draw']

# by order: what a network held
STYLES = [
    dict(color='#000000', marker='o', markerfacecolor='white'),
    dict(color='#d55e00', marker='s', markerfacecolor='#d55e00'),
    dict(color='#0072b2', marker='^', markerfacecolor='#0072b2'),
    dict(color='#009e73', marker='D', markerfacecolor='white'),
]
FLOOR = 1e-8  # what is less is drawn on the lower edge, the gradient that leaves the last unit being 1


def draw(networks: Dict[str, Sequence[Propagation]], path: Path, columns: int = 6) -> bool:
    """Write `compose`'s figure as a PNG. Whether it is drawn: matplotlib is needed."""
    figure = compose(networks, columns)
    if figure is not None:
        save_figure(figure, path)
    return figure is not None


def compose(networks: Dict[str, Sequence[Propagation]], columns: int = 6) -> Any:
    """A figure: above, the variance of the stream and of the branches; below, the gradient and its part through the
    shortcuts alone, over what leaves the last unit. None without matplotlib.

    Args:
        networks: By title, one network each with all that it held, such as initial and trained weights.
        columns: Networks side by side.
    """
    columns = min(columns, len(networks))
    bands = -(-len(networks) // columns)
    figure = new_figure(max(6., 1 + 2.3 * columns), 0.9 + 4.2 * bands)
    if figure is None:
        return None
    grid = figure.subplots(2 * bands, columns, squeeze=False, sharex='all')
    signals, gradients = grid[::2].flatten(), grid[1::2].flatten()
    for panels in (signals, gradients):
        for panel in panels[1:]:
            panel.sharey(panels[0])
    drawn = np.concatenate([relative(values, result) for results in networks.values() for result in results
                            for values in (result.gradient, result.gradient_shortcuts)])
    drawn = drawn[drawn > 0]
    floor = max(FLOOR, drawn.min() / 3) if drawn.size else FLOOR
    gradients[0].set_ylim(floor, 3 * drawn.max() if drawn.size else 1)
    for (title, results), signal, gradient in zip(networks.items(), signals, gradients, strict=False):
        draw_network(signal, gradient, results, floor)
        signal.set_title(title, fontsize='medium')
    for panel in (*signals[len(networks):], *gradients[len(networks):]):
        panel.remove()
    for band in range(bands):
        grid[2 * band, 0].set_ylabel('variance')
        grid[2 * band + 1, 0].set_ylabel('gradient norm, last = 1')
    for row in grid:
        for panel in row[1:]:
            panel.tick_params(labelleft=False)
    for panel in gradients[max(0, len(networks) - columns):len(networks)]:  # those with nothing below
        panel.tick_params(labelbottom=True)
    figure.supxlabel('unit, from the first to what leaves the last; a line begins a stage', fontsize='medium')
    figure.legend(handles=legend(networks), loc='outside upper center', ncols=4 if columns > 3 else 2, frameon=False,
                  fontsize='small')
    return figure


def relative(values: np.ndarray, result: Propagation) -> np.ndarray:
    """Over the gradient that leaves the last unit; NaN, which is not drawn, where it is infinite."""
    with np.errstate(all='ignore'):
        values = values / result.gradient[-1]
    return np.where(np.isfinite(values), values, np.nan)


def draw_network(signal: Any, gradient: Any, results: Sequence[Propagation], floor: float) -> None:
    for result, style in zip(results, STYLES, strict=False):
        units = np.arange(len(result.units))
        marks = dict(style, markersize=3.5, markevery=max(1, len(units) // 9), linewidth=1.2)
        signal.plot(units, result.stream_var, linestyle='-', **marks)
        signal.plot(units, result.branch_var, linestyle=':', **marks)
        gradient.plot(units, relative(result.gradient, result), linestyle='-', **marks)
        gradient.plot(units, np.maximum(relative(result.gradient_shortcuts, result), floor), linestyle=':', **marks)
    stages = [name.rpartition('.')[0] for name in results[0].units[:-1]]
    for panel in (signal, gradient):
        panel.set_yscale('log')
        panel.grid(alpha=0.3, linewidth=0.5)
        for row in range(1, len(stages)):
            if stages[row] != stages[row - 1]:
                panel.axvline(row, color='#999999', linewidth=0.7)


def legend(networks: Dict[str, Sequence[Propagation]]) -> List[Any]:
    from matplotlib.lines import Line2D
    names: Dict[int, str] = {}
    for results in networks.values():
        for place, result in enumerate(results):
            names.setdefault(place, result.weights if place == 0 else 'trained')
    held = [Line2D([], [], linestyle='', **STYLES[place], label=name) for place, name in names.items()]
    parts = [('-', 'the stream; the whole gradient'), (':', 'a branch; the gradient through shortcuts alone')]
    return [*held, *(Line2D([], [], color='#000000', linestyle=dashes, label=label) for dashes, label in parts)]
