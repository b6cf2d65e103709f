"""What a folder of result files says: the runs of each row, their median, the tables and the reports.

A result is one JSON file a run in the folder's tables/. Nothing else goes into a number, and a file that is no result
of its row, or of other data than the rest, is named and left out.
"""
import json
import math
import statistics
import sys
from collections import Counter, defaultdict
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, Iterator, List, Optional, Tuple, Union

from train.markdown import format_table
from train.places import RESULTS
from train.recipe import choose_recipe, complete_recipe
from train.rows import (
    CIFAR,
    FIGURES,
    PAPER_ROWS,
    ROWS,
    SMALL_EPOCHS,
    SMALL_FIGURES,
    SMALL_ROWS,
    TRAINED_EPOCHS,
    TRAINED_ROWS,
    TUNED_ROWS,
    Row,
)

__all__ = ['PAPER_RUNS', 'collect', 'find_median', 'format_count', 'format_error', 'format_measured', 'format_report',
           'format_rows', 'locate_result', 'read_result', 'select_ended', 'select_panels']

FAIL = 20.  # the paper's word for a test error above it, in percent
PAPER_RUNS = 5


def locate_result(results: Path, key: str, seed: int, cut: bool = False) -> Path:
    """Locate the file of a run; what is known of one that was cut has its own, which a finished one makes void."""
    return results / 'tables' / f'{key}.seed{seed}{".cut" if cut else ""}.json'


def read_result(path: Path) -> Dict[str, Any]:
    """Read one result.

    Raises:
        ValueError: The file is none, or not one of the row that it names.
    """
    try:
        result = json.loads(path.read_text())
        row, seed, state, curve = ROWS[result['row']], result['seed'], result['state'], result['curve']
        numbers = [value for epoch in curve for value in (epoch['train_loss'], epoch['test_error'])]
        texts = [result['hardware'], result['data']['train_sha256'], result['data']['test_sha256']]
        experiment = [result['model'], result['model_kwargs'], complete_recipe(result['recipe'])]
    except (OSError, RecursionError, LookupError, TypeError, AttributeError) as e:
        raise ValueError(f'it lacks {e}') from e
    recipe = json.loads(json.dumps(asdict(choose_recipe(**row.options))))
    if path.name != locate_result(path.parent, result['row'], seed, state == 'cut').name or type(seed) is not int:
        raise ValueError('it is named after another row or seed')
    if experiment != [row.model, row.model_kwargs, recipe]:
        raise ValueError('it is of another network or recipe than its row')
    if not all(type(n) in (int, float) and math.isfinite(n) for n in numbers) or not all(type(t) is str for t in texts):
        raise ValueError('it holds something else in the place of a number or a text')
    if state == 'finished':
        if not curve or result['test_error'] != curve[-1]['test_error'] or not 0 <= result['test_error'] <= 100:
            raise ValueError('its error is not that of its last epoch')
    elif state not in ('diverged', 'cut') or not 0 <= result.get('step', -1) <= result.get('iterations', -1):
        raise ValueError(f'its state is {state}')
    return result


def collect(results: Path) -> Dict[str, List[Dict[str, Any]]]:
    """Collect the results of each row, by seed; a file that is none, or of other data, is named and left out.

    The data of the folder that ships is CIFAR; that of another is what most of its files have.
    """
    found: Dict[str, List[Dict[str, Any]]] = defaultdict(list)
    hashes: Dict[str, Counter] = defaultdict(Counter)
    read = []
    for path in sorted((results / 'tables').glob('*.json')):
        if path.name.endswith('.cut.json') and path.with_name(path.name.replace('.cut', '')).exists():
            continue
        try:
            result = read_result(path)
        except ValueError as e:
            print(f'warning: {path} is no result ({e}): it is left out.', file=sys.stderr)
            continue
        row, data = ROWS[result['row']], (result['data']['train_sha256'], result['data']['test_sha256'])
        hashes[row.data][data] += 1
        read.append((path, row, data, result))
    for path, row, data, result in read:
        expected = tuple(CIFAR[row.data]) if results == RESULTS else hashes[row.data].most_common(1)[0][0]
        if data != expected:
            print(f'warning: {path} is of other data than the rest: it is left out.', file=sys.stderr)
        else:
            found[result['row']].append(result)
    for runs in found.values():
        runs.sort(key=lambda result: result['seed'])
    return found


def select_ended(runs: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """Select those that count: finished or diverged, not cut."""
    return [result for result in runs if result['state'] != 'cut']


def find_median(runs: List[Dict[str, Any]]) -> Optional[float]:
    """Find the median test error in percent, a diverged run counting as above every other; None without runs."""
    errors = [result['test_error'] if result['state'] == 'finished' else math.inf for result in select_ended(runs)]
    return statistics.median(errors) if errors else None


def format_error(error: Union[float, str, None], mean_std: Optional[Tuple[float, float]] = None) -> str:
    """Format an error as the paper prints it."""
    if error is None or error == 'fail':
        return error or '-'
    if error == math.inf:
        return 'diverged'
    return f'{error:.2f}' + (f' ({mean_std[0]:.2f} ± {mean_std[1]:.2f})' if mean_std else '')


def format_count(runs: List[Dict[str, Any]]) -> str:
    """Format how many runs a number is of, beside the paper's 5 if it is of fewer."""
    count = len(select_ended(runs))
    return f'{count} of {PAPER_RUNS}' if count < PAPER_RUNS else str(count)


def list_cells(key: str, runs: List[Dict[str, Any]]) -> List[str]:
    """List a row's cells: key, where the paper has it, the paper's number, ours, of how many runs, their range."""
    row = ROWS[key]
    errors = [result['test_error'] for result in runs if result['state'] == 'finished']
    spread = f'{min(errors):.2f} to {max(errors):.2f}' if len(errors) > 1 else '-'
    return [f'`{key}`', row.tables, row.case, row.data, format_error(row.paper, row.mean),
            format_error(find_median(runs)), format_count(runs), spread]


def format_rows(rows: Dict[str, Row], results: Dict[str, List[Dict[str, Any]]], reference: str = 'paper') -> str:
    """Format a table: the paper's number beside ours, how many runs it is of, and their range."""
    return format_table('llllrrrl', ('row', 'table', 'case', 'data', reference, 'ours', 'runs', 'range'), (
        list_cells(key, results.get(key, [])) for key in rows))


def format_sections(results: Dict[str, List[Dict[str, Any]]], ran_only: bool) -> Iterator[str]:
    """Format heading, remark and table of each set of rows; with `ran_only`, of the rows that have runs."""
    level = '###' if ran_only else '##'
    for title, remark, rows, reference in (
            ("The paper's rows", 'Measured by the recipe of the appendix, BatchNorm over 64 images as on its two GPUs.',
             PAPER_ROWS, 'paper'),
            ('Rows of a tuned recipe', 'By the recipe `tuned`, beside what pytorchcv reports for its networks of these '
             'depths.', TUNED_ROWS, 'pytorchcv'),
            ('110 layers in a quarter of the steps', f'{TRAINED_EPOCHS} epochs of the recipe `modern`, beside the '
             "paper's 164: not its recipe.", TRAINED_ROWS, 'paper'),
            ('A small copy', f"20 layers (3 units a stage), {SMALL_EPOCHS} epochs of the recipe `modern`, beside the "
             "paper's 110 layers and 164 epochs: not its experiment, and not comparable with its numbers. It shows "
             'which differences need no depth.', SMALL_ROWS, 'paper, 110 layers')):
        chosen = {key: row for key, row in rows.items() if not ran_only or select_ended(results.get(key, []))}
        if chosen:
            yield f'{level} {title}\n\n{remark}\n\n{format_rows(chosen, results, reference)}\n'
        else:
            yield f'{level} {title}\n\nNone of the {len(rows)} rows has a run yet.\n'


STATISTIC = (
    f"Errors are test errors of the last epoch in percent. Ours is the median of the runs; the paper's is the median "
    f"of {PAPER_RUNS}, with mean and standard deviation in brackets where it has them, and 'fail' above {FAIL:.0f}.")


def format_report(results: Path, found: Dict[str, List[Dict[str, Any]]]) -> str:
    """Format README.md of a folder of results, from what `collect` found there."""
    ran = [result for runs in found.values() for result in runs]
    unfinished = [f"{key}, seed {result['seed']}: {result['state']} at step {result['step']} of {result['iterations']}"
                  for key, runs in found.items() for result in runs if result['state'] != 'finished']
    figures = [name for name in {**FIGURES, **SMALL_FIGURES} if (results / f'{name}.png').exists()]
    return '\n'.join([
        '# Measured runs\n',
        'Written by `python -m train.tables report` from the files in [tables](tables), one a run, each with its '
        f'command, seed, versions, hardware and curve. {STATISTIC}\n',
        *format_sections(found, ran_only=False),
        f'Not finished: {"; ".join(unfinished) or "none"}.\n',
        f'Hardware: {"; ".join(sorted({result["hardware"] for result in ran})) or "none yet"}.\n',
        *(['## Curves\n\nDrawn by `python -m train.tables plot`.\n'] if figures else []),
        *(f'![{name}]({name}.png)\n' for name in figures)])


def format_measured(found: Dict[str, List[Dict[str, Any]]]) -> str:
    """Format the rows that have runs, for a page."""
    return f'{STATISTIC} `python -m train.tables run ROW --data DIR` is the command of each row.\n\n' + '\n'.join(
        format_sections(found, ran_only=True))


def select_panels(name: str, found: Dict[str, List[Dict[str, Any]]]) -> Dict[str, Dict[str, List[Dict[str, Any]]]]:
    """Select what a figure shows of the results: the comparisons of which both rows have a finished run."""
    panels = {}
    for title, keys in {**FIGURES, **SMALL_FIGURES}[name].items():
        lines = {ROWS[key].case: [result for result in found.get(key, []) if result['state'] == 'finished']
                 for key in keys}
        if all(lines.values()):
            panels[title] = lines
    return panels
