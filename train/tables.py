"""The paper's Tables 1 to 4 on CIFAR, row by row: what was run, what is missing, run it, report it.

    python -m train.tables list
    python -m train.tables run 110-full 110-orig --seeds 5 --data data
    python -m train.tables run --all --budget 25m --data data
    python -m train.tables report

--data names a folder with cifar10/ and cifar100/, each as train.cifar reads it. A run is one call of train.cifar; the
same command goes on where it stopped. Its result is one file in train/results/tables, which holds the command, the
seed, the hardware and the curve, and a table's number is computed from these files alone. A row of the small copy has
20 layers and 4 epochs: it shows which of the paper's differences need no depth, and is never mixed with the paper's.
"""
import csv
import fcntl
import hashlib
import json
import math
import platform
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple

import typer

from timm_preact.errors import UserError, one_sentence_errors
from timm_preact.files import write_atomically

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / 'train' / 'results' / 'tables'
SMALL_EPOCHS = 4
FAIL = 20.  # the paper's word for a test error above it, in percent

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)


class Row(NamedTuple):
    """One experiment of the paper, which several tables may show.

    Attributes:
        tables: Where it stands.
        case: What the paper calls it.
        model: Registered name.
        paper: Test error in percent, the median of 5 runs; 'fail'; or None where the paper has no such run.
        data: 'cifar10' or 'cifar100'.
        model_kwargs: Constructor arguments beside the name's own.
        options: Of train.cifar.
    """
    tables: str
    case: str
    model: str
    paper: Any
    data: str = 'cifar10'
    model_kwargs: Dict[str, Any] = {}
    options: Dict[str, Any] = {'recipe': 'paper', 'bn-group': 64}


def _table1(key: str, case: str, paper: Any, merge: str, **merge_kwargs: float) -> Tuple[str, Row]:
    model_kwargs = dict(merge_kwargs=merge_kwargs) if merge_kwargs else {}
    return f'110-{key}', Row('1', case, f'preact_resnet110_orig_{merge}', paper, model_kwargs=model_kwargs)


PLACEMENTS = {
    'orig': ('original', 6.61, 5.93),
    'bn_after_add': ('BN after addition', 8.17, 6.50),
    'relu_before_add': ('ReLU before addition', 7.84, 6.14),
    'relu_only': ('ReLU-only pre-activation', 6.71, 5.91),
    'full': ('full pre-activation', 6.37, 5.46),
}


def _named(depth: str, placement: str) -> str:
    return f'preact_resnet{depth}' + ('' if placement == 'full' else f'_{placement}')


# In the order in which `run --all` takes them: the paper's claim first
PAPER_ROWS: Dict[str, Row] = {
    **{f'110-{p}': Row('1, 2, 3' if p == 'orig' else '2, 3' if p == 'full' else '2', PLACEMENTS[p][0], _named('110', p),
                       PLACEMENTS[p][1]) for p in ('full', 'orig')},
    **{f'110-{p}': Row('2', case, _named('110', p), paper)
       for p, (case, paper, _) in PLACEMENTS.items() if p not in ('full', 'orig')},
    **dict([
        _table1('const_scale_0_1', 'constant scaling 0, 1', 'fail', 'const_scale', shortcut=0., residual=1.),
        _table1('const_scale_0.5_1', 'constant scaling 0.5, 1', 'fail', 'const_scale', shortcut=0.5, residual=1.),
        _table1('const_scale_0.5_0.5', 'constant scaling 0.5, 0.5', 12.35, 'const_scale'),
        *(_table1(f'excl_gate_{b}', f'exclusive gating, bias {b}', paper, 'excl_gate', bias=float(b))
          for b, paper in (*((b, 'fail') for b in range(0, -6, -1)), (-6, 8.70), (-7, 9.81))),
        *(_table1(f'shortcut_gate_{b}', f'shortcut-only gating, bias {b}', paper, 'shortcut_gate', bias=float(b))
          for b, paper in ((0, 12.86), (-6, 6.91))),
        _table1('conv_shortcut', '1x1 conv shortcut', 12.22, 'conv_shortcut'),
        _table1('dropout_shortcut', 'dropout shortcut, 0.5', 'fail', 'dropout_shortcut'),
    ]),
    **{f'164-{p}': Row('2, 3, 4' if p == 'full' else '2, 3' if p == 'orig' else '2', case, _named('164', p), paper)
       for p, (case, _, paper) in PLACEMENTS.items()},
    '110-1layer': Row('3', '1-layer skip, full pre-activation', 'preact_resnet110_1layer', 8.91),
    '110-1layer-orig': Row('3', '1-layer skip, original', 'preact_resnet110_1layer_orig', 9.90),
    '164-full-cifar100': Row('3, 4', 'full pre-activation', 'preact_resnet164', 24.33, data='cifar100'),
    '164-orig-cifar100': Row('3, 4', 'original', 'preact_resnet164_orig', 25.16, data='cifar100'),
    '1001-full': Row('3, 4', 'full pre-activation', 'preact_resnet1001', 4.92),
    '1001-orig': Row('3', 'original', 'preact_resnet1001_orig', 7.61),
    '1001-full-cifar100': Row('3, 4', 'full pre-activation', 'preact_resnet1001', 22.71, data='cifar100'),
    '1001-orig-cifar100': Row('3, 4', 'original', 'preact_resnet1001_orig', 27.82, data='cifar100'),
    '1001-full-batch64': Row(
        '4', 'full pre-activation, batch 64', 'preact_resnet1001', 4.62, options={'recipe': 'torch', 'bn-group': 32}),
}
SMALL_ROWS: Dict[str, Row] = {
    key.replace('110-', '20-'): row._replace(
        paper=None, model_kwargs=dict(row.model_kwargs, layers=[3, 3, 3]),
        options={'recipe': 'modern', 'epochs': SMALL_EPOCHS})
    for key, row in PAPER_ROWS.items() if key.startswith('110-') and '3' != row.tables
}
ROWS = {**PAPER_ROWS, **SMALL_ROWS}


def command_of(key: str, seed: int, data: Path, output: Path, extra: Tuple[str, ...] = ()) -> List[str]:
    """Arguments of train.cifar for one run of a row."""
    row = ROWS[key]
    options = [word for name, value in row.options.items() for word in (f'--{name}', str(value))]
    kwargs = [word for name, value in row.model_kwargs.items()
              for word in ('--model-kwargs', f'{name}={json.dumps(value)}')]
    return [row.model, '--data', str(data / row.data), *options, *kwargs, '--seed', str(seed), *extra, '--output',
            str(output)]


def result_file(key: str, seed: int) -> Path:
    return RESULTS / f'{key}.seed{seed}.json'


def collect() -> Dict[str, List[Dict[str, Any]]]:
    """The results of each row, by seed; a file that is none is named on stderr and left out."""
    results = defaultdict(list)
    for path in sorted(RESULTS.glob('*.json')):
        try:
            result = json.loads(path.read_text())
            key, seed = result['row'], result['seed']
            if path != result_file(key, seed) or result['state'] not in ('finished', 'diverged'):
                raise ValueError('it belongs to another row or seed')
            if key not in ROWS or not isinstance(result['test_error'], (int, float)):
                raise ValueError('it has no row or no error')
        except (ValueError, KeyError, TypeError) as e:
            print(f'warning: {path} is no result ({e}): it is left out.', file=sys.stderr)
            continue
        results[key].append(result)
    return results


def measured(results: List[Dict[str, Any]]) -> Optional[float]:
    """The median test error in percent, a diverged run counting as above every other; None without runs."""
    errors = [result['test_error'] if result['state'] == 'finished' else math.inf for result in results]
    return statistics.median(errors) if errors else None


def shown(error: Any) -> str:
    """As the paper prints it."""
    if error is None:
        return '-'
    return 'fail' if error == 'fail' or error > FAIL else f'{error:.2f}'


def table(rows: Dict[str, Row], results: Dict[str, List[Dict[str, Any]]], small: bool) -> str:
    """Markdown: the paper's number beside ours, how many runs it is of, and their range."""
    lines = ['| row | table | case | paper (110 layers) | ours | runs | range |' if small else
             '| row | table | case | data | paper | ours | runs | range |', '|---|' + '---|' * (6 if small else 7)]
    for key, row in rows.items():
        errors = [result['test_error'] for result in results.get(key, []) if result['state'] == 'finished']
        spread = f'{min(errors):.2f} to {max(errors):.2f}' if len(errors) > 1 else '-'
        paper = PAPER_ROWS[key.replace('20-', '110-', 1)].paper if small else row.paper
        data = [] if small else [row.data]
        ours = measured(results.get(key, []))
        ours = '-' if ours is None else 'diverged' if math.isinf(ours) else f'{ours:.2f}'
        cells = [f'`{key}`', row.tables, row.case, *data, shown(paper), ours, str(len(results.get(key, []))), spread]
        lines.append(f'| {" | ".join(cells)} |')
    return '\n'.join(lines)


def report() -> str:
    """train/results/README.md, from the result files alone."""
    results = collect()
    ran = [result for runs in results.values() for result in runs]
    hardware = sorted({result['hardware'] for result in ran})
    return f"""# Measured runs

Written by `python -m train.tables report` from the files in `tables/`, one a run, each with its command, seed,
versions, hardware and curve. Errors are test errors in percent of the last epoch; ours is the median of the runs, the
paper's the median of 5, 'fail' above {FAIL:.0f} %.

## The paper's rows

{table(PAPER_ROWS, results, small=False)}

## A small copy

20 layers (3 units a stage), {SMALL_EPOCHS} epochs of the recipe `modern`: not the paper's experiment, and not
comparable with its numbers. It shows which differences need no depth.

{table(SMALL_ROWS, results, small=True)}

Hardware: {"; ".join(hardware) or "none yet"}.
"""


def seconds_of(budget: str) -> float:
    """90s, 25m or 2h."""
    unit = {'s': 1, 'm': 60, 'h': 3600}.get(budget[-1:])
    if unit is None or not budget[:-1].isdigit():
        raise UserError(f'--budget {budget} is no time: write 90s, 25m or 2h.')
    return int(budget[:-1]) * unit


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One campaign a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / '.lock', 'w') as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as e:
            raise UserError(f'another campaign runs in {folder}: wait for it, or choose another --runs.') from e
        yield


def train(key: str, seed: int, data: Path, runs: Path, extra: Tuple[str, ...], seconds: Optional[float]) -> str:
    """Run or go on with one run; 'finished', 'diverged' or, when the time is up, 'cut'."""
    output = runs / f'{key}.seed{seed}'
    head = subprocess.run(['git', 'rev-parse', 'HEAD'], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    trainer = hashlib.sha256((ROOT / 'train' / 'cifar.py').read_bytes()).hexdigest()
    arguments = command_of(key, seed, data, output, extra)
    process = subprocess.Popen([sys.executable, '-m', 'train.cifar', *arguments], cwd=ROOT, stderr=subprocess.PIPE,
                               text=True)
    try:
        _, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        return 'cut'
    if process.returncode == 0:
        result = dict(json.loads((output / 'run.json').read_text()), state='finished')
    elif 'diverged' in errors:
        log = output / 'log.csv'
        result = dict(model=ROWS[key].model, seed=seed, test_error=100., state='diverged', error=errors.strip(),
                      hardware=platform.machine(), curve=list(csv.DictReader(log.open())) if log.exists() else [])
    else:
        raise UserError(f'{key} with seed {seed} ended early: {errors.strip().removeprefix("error: ")}')
    RESULTS.mkdir(parents=True, exist_ok=True)
    result.update(row=key, commit=head or None, command=' '.join(['python -m train.cifar', *arguments]),
                  trainer_sha256=trainer)
    write_atomically(result_file(key, seed), json.dumps(result, indent=1).encode())
    return result['state']


@app.command('list')
@one_sentence_errors
def list_rows() -> None:
    """Rows with the paper's number, ours, and how many runs it is of."""
    results = collect()
    for key, row in ROWS.items():
        runs = results.get(key, [])
        print(f'{key:24} table {row.tables:8} {row.data:9} paper {shown(row.paper):>6}  '
              f'ours {shown(measured(runs)):>6}  {len(runs)} runs')


@app.command('run')
@one_sentence_errors
def run_rows(
        rows: List[str] = typer.Argument(None, help='Rows as list names them.'),
        every: bool = typer.Option(False, '--all', help='All rows, the most telling first.'),
        seeds: int = typer.Option(1, help='Runs a row; those that are there count.'),
        budget: Optional[str] = typer.Option(None, help='Stop after 90s, 25m or 2h; run again to go on.'),
        data: Path = typer.Option(Path('data'), help='Folder with cifar10/ and cifar100/.'),
        runs: Path = typer.Option(Path('runs/tables'), help='Where runs keep their checkpoints.'),
        compile_model: bool = typer.Option(False, '--compile', help='torch.compile the networks.'),
) -> None:
    """Run what is missing of rows, a seed of each before the next seed."""
    if every == bool(rows):
        raise UserError('name rows, or all of them by --all.')
    unknown = [key for key in rows or [] if key not in ROWS]
    if unknown:
        raise UserError(f'{unknown[0]} is no row: python -m train.tables list names them.')
    end = time.monotonic() + seconds_of(budget) if budget else None
    extra = ('--compile',) if compile_model else ()
    with locked(runs):
        for seed in range(seeds):
            for key in rows or ROWS:
                if any(result['seed'] == seed for result in collect().get(key, [])):
                    continue
                left = None if end is None else end - time.monotonic()
                state = 'cut' if left is not None and left <= 0 else train(key, seed, data, runs, extra, left)
                print(f'{key}, seed {seed}: {state}', flush=True)
                if state == 'cut':
                    return


@app.command('report')
@one_sentence_errors
def write_report() -> None:
    """Write train/results/README.md."""
    write_atomically(RESULTS.parent / 'README.md', report().encode())
    print(f'{RESULTS.parent / "README.md"} is written from {sum(map(len, collect().values()))} runs.')


if __name__ == '__main__':
    app()
