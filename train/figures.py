"""Learning curves in the manner of the paper's Figures 1, 3 and 6: training loss left, test error right.

A line differs from the next by its dashes and its marker as well as by its colour (Okabe and Ito's palette), so that it
can be told in print and by colour-blind eyes. Needs matplotlib: pip install 'timm-preact[train]'.
"""
import statistics
from pathlib import Path
from typing import Any, Dict, List

from timm_preact.figures import new_figure, save_figure

__all__ = ['STYLES', 'plot_comparisons', 'plot_run']

STYLES = [
    dict(color='#000000', linestyle='--', marker='o'),
    dict(color='#d55e00', linestyle='-', marker='s'),
    dict(color='#0072b2', linestyle='-.', marker='^'),
    dict(color='#009e73', linestyle=':', marker='D'),
    dict(color='#cc79a7', linestyle=(0, (5, 1, 1, 1, 1, 1)), marker='v'),
]


def plot_run(result: Dict[str, Any], path: Path) -> None:
    """The curves of one run, as train.run's `result` has them, on one pair of axes."""
    figure = new_figure(7, 4)
    if figure is None:
        return
    left = figure.subplots()
    right = left.twinx()
    curve = result['curve']
    epochs = [row['epoch'] for row in curve]
    left.plot(epochs, [row['train_loss'] for row in curve], color='#0072b2', linestyle='--')
    right.plot(epochs, [row['test_error'] for row in curve], color='#d55e00')
    left.set(xlabel='epoch', ylabel='training loss (dashed)', yscale='log')
    right.set(ylabel='test error, % (solid)', ylim=(0, min(100, 4 * curve[-1]['test_error'] + 1)))
    left.set_title(f"{result['model']}, seed {result['seed']}")
    save_figure(figure, path)


def plot_comparisons(panels: Dict[str, Dict[str, List[Dict[str, Any]]]], path: Path) -> bool:
    """A row of axes a comparison: training loss left, test error right; whether it is drawn.

    Args:
        panels: By title, what is compared: by label, the runs of one row of a table. A line is their median, epoch by
            epoch, over a band from the lowest to the highest.
        path: PNG to write.
    """
    figure = new_figure(9, 3 * len(panels))
    if figure is None:
        return False
    from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter
    axes = figure.subplots(len(panels), 2, squeeze=False)
    for (title, lines), (left, right) in zip(panels.items(), axes, strict=True):
        for style, (label, runs) in zip(STYLES, lines.items(), strict=False):
            epochs = range(1, min(len(run['curve']) for run in runs) + 1)
            step = max(1, len(epochs) // 8)
            for axis, key in ((left, 'train_loss'), (right, 'test_error')):
                values = [[run['curve'][epoch - 1][key] for run in runs] for epoch in epochs]
                axis.plot(epochs, [statistics.median(v) for v in values], label=label, markevery=step, markersize=5,
                          **style)
                if len(runs) > 1:
                    axis.fill_between(epochs, [min(v) for v in values], [max(v) for v in values],
                                      color=style['color'], alpha=0.15, linewidth=0)
        left.set(xlabel='epoch', ylabel='training loss', yscale='log')
        left.set_title(title, loc='left')
        left.yaxis.set_major_locator(LogLocator(subs=(1, 1.5, 2, 3, 4, 6)))
        left.yaxis.set_major_formatter(StrMethodFormatter('{x:g}'))
        left.yaxis.set_minor_formatter(NullFormatter())
        right.set(xlabel='epoch', ylabel='test error, %')
        worst = max(run['curve'][-1]['test_error'] for runs in lines.values() for run in runs)
        right.set_ylim(top=min(right.get_ylim()[1], 4 * worst))
        right.legend(frameon=False, fontsize='small')
        for axis in (left, right):
            axis.grid(alpha=0.3, which='both', linewidth=0.5)
            axis.xaxis.get_major_locator().set_params(integer=True)
    save_figure(figure, path)
    return True
