"""How signal and gradient travel in the networks of the paper's tables: measured, drawn and written up.

    python -m train.propagation measure '110-*' --data data
    python -m train.propagation measure '20-*' --data data --runs runs/tables --seed 2
    python -m train.propagation draw

A row of the tables (`python -m train.tables list`) is measured at initialisation, on training images, with three draws
of its weights; with --runs also after training, where that folder holds a run of it. Each has a file in
docs/propagation, from which `draw` draws the pictures, and train.pages takes the numbers of the pages.
"""
import json
import math
import operator
import re
import statistics
from pathlib import Path
from typing import Annotated, Any, Callable, Dict, List, Optional, Sequence, Tuple

import numpy as np
import timm
import torch
import typer

from timm_preact.cli.options import PATH
from timm_preact.data import ImageSet
from timm_preact.errors import COUNT, SEED, UserError, one_sentence_errors
from timm_preact.evaluation import Images, eval_transform, load_model
from timm_preact.figures import new_figure, save_figure
from timm_preact.files import write_atomically
from timm_preact.propagation import END, SAFE, Propagation, check, draw, measure
from timm_preact.weights import read_config
from train.command import record_command
from train.figures import STYLES
from train.markdown import format_table
from train.places import PROPAGATION, RESULTS
from train.rows import ROWS, Row
from train.tables import DATA_FOLDER, data_of, load_sets, rows_named

DRAWS = 3  # of the initial weights
KEPT = ('signal', 'growth', 'direct')  # what is kept of every draw; a row's number is the median

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)


def round_numbers(fields: Dict[str, Any]) -> Dict[str, Any]:
    """Round numbers to six digits: more are of the machine, not of the network."""
    def shorten(value: Any) -> Any:
        if isinstance(value, list):
            return [shorten(item) for item in value]
        return float(f'{value:.6g}') if isinstance(value, float) else value
    return {key: shorten(value) for key, value in fields.items()}


def summarise(model: torch.nn.Module, found: Propagation) -> Dict[str, Any]:
    """Summarise what a draw of the weights is remembered by."""
    return round_numbers(dict(safe=check(model, found).safe, **{what: getattr(found, what) for what in KEPT}))


def measure_row(row: Row, images: ImageSet, count: int, draws: int, run: Optional[Path]) -> Dict[str, Any]:
    """Measure a row at initialisation, in several draws, and as trained in the folder `run` if there is one."""
    found: Dict[str, Any] = dict(draws=[])
    for seed in range(draws):
        torch.manual_seed(seed)
        model = timm.create_model(row.model, **row.model_kwargs)
        x, y = Images(images, eval_transform(model)).spread(count)
        initial = measure(model, x, y, seed=seed)
        found['draws'].append(summarise(model, initial))
        if seed == 0:
            found['initial'] = round_numbers(initial.to_dict())
    if run is not None:
        model = load_model(row.model, str(run))
        found['trained'] = round_numbers(measure(model, x, y, weights='trained').to_dict())
        found['run'] = run.name
        found['weights_sha256'] = read_config(run / 'config.json')['sha256']
    return found


@app.command('measure')
@one_sentence_errors
def measure_rows(
        rows: List[str] = typer.Argument(help="Rows as train.tables list names them; '110-*' for all that begin so."),
        data: str = typer.Option(DATA_FOLDER, help='Folder with cifar10/ and cifar100/, or as train.tables reads it.'),
        batch_size: Annotated[int, COUNT] = typer.Option(32, help='Training images, evenly spread over the set.'),
        draws: Annotated[int, COUNT] = typer.Option(DRAWS, help='Draws of the initial weights, seeds 0 to N-1.'),
        runs: Optional[Path] = typer.Option(
            None, **PATH, help="Folder of train.tables' runs, to measure trained rows too."),
        seed: Annotated[int, SEED] = typer.Option(0, help='Which run of a row, with --runs.'),
        to: Path = typer.Option(PROPAGATION, **PATH, help='Folder of the files.'),
) -> None:
    """Measure rows; a file that is there is written anew."""
    to.mkdir(parents=True, exist_ok=True)
    for key in rows_named(rows):
        row = ROWS[key]
        run = None if runs is None else runs / f'{key}.seed{seed}'
        if run is not None and not (run / 'model.safetensors').is_file():
            raise UserError(f'{run} holds no finished run: train it by python -m train.tables run {key}, or leave '
                            f'--runs out.')
        train, _, hashes = load_sets(data_of(row, data))
        result = dict(
            record_command('python -m train.propagation', torch.device('cpu')), row=key, images=batch_size,
            data_sha256=hashes[0], **measure_row(row, train, batch_size, draws, run))
        write_atomically(to / f'{key}.json', json.dumps(result).encode() + b'\n')
        print(f"{key}: direct {', '.join(format(draw['direct'], '.2g') for draw in result['draws'])}", flush=True)


def read_measured(folder: Path) -> Dict[str, Dict[str, Any]]:
    """Read what `measure` wrote, by row."""
    measured = {}
    for path in sorted(folder.glob('*.json')):
        result = json.loads(path.read_text())
        for state in ('initial', 'trained'):
            if state in result:
                result[state] = Propagation.from_dict(result[state])
        measured[result['row']] = result
    return measured


def find_stage_starts(found: Propagation) -> List[int]:
    """Find the rows of the first unit of each stage, and the last row."""
    return [row for row, unit in enumerate(found.units) if unit == END or unit.endswith('blocks.0')]


def find_inside(found: Propagation) -> List[int]:
    """Find the rows of the other units, whose shortcuts are what the row of the table says and change no shape."""
    return sorted(set(range(len(found.units))) - set(find_stage_starts(found)))


def average_kept_within(found: Propagation) -> float:
    """Average, geometrically over the stages, what the second unit has left of the direct term of the stage's end."""
    starts, direct = find_stage_starts(found), found.gradient_shortcuts
    return float(np.exp(np.mean([np.log(direct[a + 1] / direct[b]) for a, b in zip(starts, starts[1:], strict=False)])))


def average_kept_at_changes(found: Propagation) -> float:
    """Average the same of the first unit of each stage but the first, which halves the size."""
    direct = found.gradient_shortcuts
    return float(np.exp(np.mean([np.log(direct[row] / direct[row + 1]) for row in find_stage_starts(found)[1:-1]])))


# What is said of a row in the state that is drawn in the pictures
OF_STATE = {
    **{what: operator.attrgetter(what) for what in KEPT},
    'branch': lambda found: np.nanmedian(found.branch_var / found.stream_var),
    'factors': lambda found: found.scaling_product[0],
    'eq4': lambda found: np.nanmax(found.eq4_deviation[find_inside(found)]),
    'eq5': lambda found: np.nanmax(found.eq5_deviation[find_inside(found)]),
    'dead': lambda found: 100 * found.dead,
    'within': average_kept_within,
    'change': average_kept_at_changes,
    'mean': lambda found: found.stream_mean[-1] / found.stream_var[-1] ** 0.5,
}


def look_up(key: str, measured: Dict[str, Dict[str, Any]], results: Dict[str, Any]) -> Any:
    """Look up what a key stands for: ROW:WHAT or ROW:trained.WHAT, of OF_STATE; ROW:paper and ROW:ours are errors."""
    row, _, what = key.partition(':')
    if what in ('paper', 'ours'):
        error = ROWS[row].paper if what == 'paper' else find_median_error(results[row])
        return error if isinstance(error, str) else f'{error:.2f}'
    if what in KEPT:
        return format_number(statistics.median(draw[what] for draw in measured[row]['draws']))
    state, _, what = what.rpartition('.')
    return format_number(OF_STATE[what](measured[row][state or 'initial']))


def format_number(value: float) -> str:
    """Format two digits, as people write them: 0.021, 6.2e-8, 540, 210,000."""
    if not math.isfinite(value) or value == round(value) and abs(value) < 10:
        return f'{value:g}'
    value = float(f'{value:.1e}')
    if 1e-4 <= abs(value) < 1e7:
        digits = 1 - math.floor(math.log10(abs(value)))
        return f'{round(value, digits):,.{max(0, digits)}f}'
    mantissa, exponent = f'{value:.1e}'.split('e')
    return f'{mantissa}e{int(exponent)}'


def find_median_error(runs: List[Dict[str, Any]]) -> float:
    """Find the median test error of finished runs."""
    return statistics.median(run['test_error'] for run in runs)


def format_rows(rows: Sequence[str], columns: Sequence[Tuple[str, str]], measured: Dict[str, Any],
                results: Dict[str, Any]) -> str:
    """Format a table of rows; a column is a heading and what of the row it shows."""
    return format_table('l' + 'r' * len(columns), ['row', *(heading for heading, _ in columns)], (
        [f'{ROWS[row].case} `{row}`', *(look_up(f'{row}:{what}', measured, results) for _, what in columns)]
        for row in rows))


PLACEMENT_ROWS = ('orig', 'bn_after_add', 'relu_before_add', 'relu_only', 'full')
MERGE_ROWS = (
    'const_scale_0.5_0.5', 'const_scale_0.5_1', 'const_scale_0_1', 'excl_gate_0', 'excl_gate_-4', 'excl_gate_-6',
    'shortcut_gate_0', 'shortcut_gate_-6', 'conv_shortcut', 'dropout_shortcut')
LAYERS_110 = tuple(f'110-{row}' for row in (*PLACEMENT_ROWS, *MERGE_ROWS))
NOT_TRAINED = ('const_scale_0_1', 'excl_gate_-4')
LAYERS_20 = tuple(f'20-{row}' for row in (*PLACEMENT_ROWS, *MERGE_ROWS) if row not in NOT_TRAINED)
TRAINED_110 = ('110-orig-modern', '110-full-modern')
GATES = tuple(f'110-excl_gate_{bias}' for bias in range(0, -8, -1))
OTHERS = ('110-1layer-orig', '110-1layer', '164-orig', '164-bn_after_add', '164-relu_before_add', '164-relu_only',
          '164-full', '1001-orig', '1001-full')
PICTURES: Dict[str, Tuple[str, ...]] = {
    'layers_110': LAYERS_110, 'layers_1001': ('1001-orig', '1001-full'), 'layers_20': LAYERS_20,
    'trained_110': TRAINED_110}
INITIAL = (('paper, error %', 'paper'), ('direct', 'direct'), ('gradient', 'growth'), ('signal', 'signal'),
           ('factors', 'factors'), ('Eq. 4 off by', 'eq4'), ('Eq. 5 off by', 'eq5'))
TRAINED = (('ours, error %', 'ours'), ('direct', 'direct'), ('... trained', 'trained.direct'),
           ('gradient', 'growth'), ('... trained', 'trained.growth'), ('factors', 'factors'),
           ('... trained', 'trained.factors'), ('dead ReLUs, %', 'dead'), ('... trained', 'trained.dead'))
TABLES = {
    'layers_110': (LAYERS_110, INITIAL), 'others': (OTHERS, INITIAL), 'layers_20': (LAYERS_20, TRAINED),
    'trained_110': (TRAINED_110, TRAINED), 'gates': (GATES, (*INITIAL[:5], ('branch', 'branch')))}


# Where the picture of errors has a point's name, in points from it, if not a little above on the right
NAMES_AT = {
    '110-full': (-6, -3), '110-orig': (-2, 7), '110-excl_gate_-6': (-6, 4), '110-relu_before_add': (-6, 4),
    '110-shortcut_gate_-6': (-6, 4), '110-1layer-orig': (-6, 4), '164-bn_after_add': (-6, -2), '164-orig': (-6, -3),
    '164-relu_before_add': (-6, -3), '1001-orig': (-6, 4), '110-excl_gate_0': (6, 16), '110-excl_gate_-1': (6, 28),
    '110-excl_gate_-4': (-2, 12), '110-const_scale_0.5_1': (6, -8), '110-const_scale_0_1': (6, -20),
    '110-dropout_shortcut': (6, 4)}


def draw_errors(measured: Dict[str, Any], path: Path) -> None:
    """Draw the paper's error against the gradient through the shortcuts alone, at initialisation, a point a row."""
    figure = new_figure(8.5, 5.5)
    if figure is None:
        return
    axes = figure.subplots()
    families = {'110 layers': tuple(dict.fromkeys((*LAYERS_110, *GATES))), '110 layers, 1-layer units': OTHERS[:2],
                '164 layers': OTHERS[2:7], '1001 layers': OTHERS[7:]}
    floor, fail = 1e-9, 24.
    for style, (label, rows) in zip(STYLES, families.items(), strict=False):
        points = [(max(statistics.median(draw['direct'] for draw in measured[row]['draws']), floor),
                   fail if ROWS[row].paper == 'fail' else ROWS[row].paper) for row in rows]
        axes.scatter(*zip(*points, strict=True), color=style['color'], marker=style['marker'], s=45, label=label,
                     zorder=3)
        for row, point in zip(rows, points, strict=True):
            offset = NAMES_AT.get(row, (6, 4))
            axes.annotate(re.sub(r'^\d+-', '', row), point, offset, textcoords='offset points', fontsize=7,
                          ha='left' if offset[0] > 0 else 'right')
    axes.axvline(1 / SAFE, color='#555555', linestyle='--', linewidth=1)
    axes.text(1 / SAFE, 29.5, ' safe range ', fontsize=8, ha='left', va='top')
    axes.set(xscale='log', yscale='log', xlim=(floor / 2, 5), ylim=(4.5, 31),
             xlabel='gradient through the shortcuts alone at its weakest unit, last = 1 (left edge: less than 1e-9)',
             ylabel="the paper's test error, %")
    axes.set_yticks([5, 6, 7, 8, 10, 12, 15, fail], ['5', '6', '7', '8', '10', '12', '15', 'fail'])
    axes.minorticks_off()
    axes.legend(loc='lower left', fontsize='small')
    axes.grid(alpha=0.3)
    save_figure(figure, path)


def format_warmup() -> str:
    """Format the first steps of the original and the pre-activation unit, with and without warm-up."""
    headings = ('network', 'warm-up, steps', 'training loss, epoch 1', 'epoch 2', 'test error after epoch 1, %',
                'epoch 2')
    runs = [json.loads(path.read_text()) for path in sorted((RESULTS / 'warmup').glob('*.json'))]
    return format_table('lrrrrr', headings, ((
        f"`{run['model']}`", f"{run['recipe']['warmup']:.0f}",
        *(f'{epoch[what]:.2f}' for what in ('train_loss', 'test_error') for epoch in run['curve'][:2]),
    ) for run in runs))


def format_facts(measured: Dict[str, Any]) -> str:
    """Format commands, versions and hardware of what was measured."""
    def list_all(what: Callable[[Dict[str, Any]], str]) -> str:
        return '; '.join(sorted({what(result) for result in measured.values()}))

    commands = '\n'.join(sorted({result['command'] for result in measured.values()}))
    versions = list_all(lambda result: ', '.join(f'{k} {v}' for k, v in result['versions'].items()))
    return (f"```sh\n{commands}\npython -m train.propagation draw\n```\n\n{list_all(lambda r: r['hardware'])}; "
            f"{versions}; {list_all(lambda r: str(r['images']))} images.")


@app.command('draw')
@one_sentence_errors
def draw_pictures() -> None:
    """Draw the pictures of docs/propagation."""
    measured = read_measured(PROPAGATION)
    missing = {row for rows in (*PICTURES.values(), OTHERS, GATES) for row in rows} - set(measured)
    if missing:
        raise UserError(f'{", ".join(sorted(missing))} are not measured: python -m train.propagation measure.')
    for name, rows in PICTURES.items():
        draw({ROWS[row].case: [measured[row][state] for state in ('initial', 'trained') if state in measured[row]]
              for row in rows}, PROPAGATION / f'{name}.png', columns=5)
    draw_errors(measured, PROPAGATION / 'errors.png')


if __name__ == '__main__':
    app(prog_name='python -m train.propagation')
