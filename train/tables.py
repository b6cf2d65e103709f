"""The paper's Tables 1 to 4 on CIFAR, row by row: what was run, what is missing, run it, report it, draw it.

    python -m train.tables list
    python -m train.tables run 110-full 110-orig --seeds 5 --together 5 --data data
    python -m train.tables run --all --budget 25m --data uoft-cs
    python -m train.tables report
    python -m train.tables plot

--data names a folder with cifar10/ and cifar100/, each as train.cifar reads it, or the owner of two such data sets on
the Hub; anything else that train.cifar reads is someone's own data, on which the rows then run. A run is what
train.cifar does with the command in its result file, and goes on where it stopped. Its result is one file in
train/results/tables (--results for another folder), and a table's number is computed from these files alone: results of
several machines merge by copying the files together. Campaigns may share a folder of runs: each leaves to the others
what they are at. --share 0/8 takes every eighth run, for machines that share nothing; torchrun's ranks do so unasked.

A row of the small copy has 20 layers and 4 epochs: it shows which of the paper's differences need no depth, and is
never mixed with the paper's.
"""
import functools
import hashlib
import json
import math
import os
import re
import shlex
import statistics
import subprocess
import sys
import time
from collections import Counter, defaultdict
from dataclasses import asdict
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any, Dict, Iterator, List, NamedTuple, Optional, Tuple, Union

import torch
import typer

from timm_preact.data import ImageSet, load_image_set
from timm_preact.errors import UserError, one_sentence_errors
from timm_preact.files import write_atomically
from timm_preact.weights.sources import SOURCES
from train.figures import plot_comparisons
from train.recipe import choose_recipe
from train.run import FolderTaken, Run, local_device, train_together

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / 'train' / 'results'
README = ROOT / 'README.md'
MARKS = '<!-- results -->', '<!-- /results -->'
SMALL_EPOCHS = 4
MODERN_EPOCHS = 200
FAIL = 20.  # the paper's word for a test error above it, in percent
PAPER_RUNS = 5
DATA = ('cifar10', 'cifar100')
DATA_FOLDER = 'data'
# Of the training images and the test images, as ImageSet.sha256 has it
CIFAR: Dict[str, List[str]] = {
    'cifar10': ['e7e912a8c6333907de72724e1c12b6242f4d951c24cbcccedcfa406ea340a13c',
                '9e679641927cac7f96fbd18f3253e0fbca071e2fe5bde8c71b6b6f50a01e834d'],
    'cifar100': ['41448caca7bac6b27ff72d52c429308abc69dfb60ab0724c2711468d8e8380ad',
                 '057c7829f3bb825efb9c56a9d647782cefd4fabb158ade568c969721521850d0'],
}

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)


class Row(NamedTuple):
    """One experiment of the paper, which several tables may show.

    Attributes:
        tables: Where it stands.
        case: What the paper calls it.
        model: Registered name.
        paper: Test error in percent, or 'fail'.
        kind: Of the paper's number: 'median' of 5 runs; 'run' of one; 'fail'; or 'pytorchcv', the number of a peer.
        mean: Mean and standard deviation, where the paper has them beside the median.
        data: 'cifar10' or 'cifar100'.
        model_kwargs: Constructor arguments beside the name's own.
        options: Of train.cifar; its recipe and what is changed in it.
    """
    tables: str
    case: str
    model: str
    paper: Union[float, str]
    kind: str = 'median'
    mean: Optional[Tuple[float, float]] = None
    data: str = 'cifar10'
    model_kwargs: Dict[str, Any] = {}
    options: Dict[str, Any] = {'recipe': 'paper', 'bn_group': 64}


def _table1(key: str, case: str, paper: Any, merge: str, **merge_kwargs: float) -> Tuple[str, Row]:
    model_kwargs = dict(merge_kwargs=merge_kwargs) if merge_kwargs else {}
    kind = 'fail' if paper == 'fail' else 'median'
    return f'110-{key}', Row('1', case, f'preact_resnet110_orig_{merge}', paper, kind, model_kwargs=model_kwargs)


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
    **{f'110-{p}': Row(tables, PLACEMENTS[p][0], _named('110', p), PLACEMENTS[p][1]) for p, tables in (
        ('full', '2, 3'), ('orig', '1, 2, 3, 4'), ('bn_after_add', '2'), ('relu_before_add', '2'), ('relu_only', '2'))},
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
    '1001-full': Row('3, 4', 'full pre-activation', 'preact_resnet1001', 4.92, mean=(4.89, 0.14)),
    '1001-orig': Row('3', 'original', 'preact_resnet1001_orig', 7.61),
    '1001-full-cifar100': Row(
        '3, 4', 'full pre-activation', 'preact_resnet1001', 22.71, mean=(22.68, 0.22), data='cifar100'),
    '1001-orig-cifar100': Row('3, 4', 'original', 'preact_resnet1001_orig', 27.82, data='cifar100'),
    '1001-full-batch64': Row('4', 'full pre-activation, batch 64', 'preact_resnet1001', 4.62, mean=(4.69, 0.20),
                             options={'recipe': 'torch', 'bn_group': 32}),
    '1202-orig': Row('4', 'original, 1202 layers (one run)', 'preact_resnet110_orig', 7.93, 'run',
                     model_kwargs={'layers': [200, 200, 200]}),
}
MODERN_ROWS: Dict[str, Row] = {
    f'modern-{depth}' + ('' if data == 'cifar10' else f'-{data}'): Row(
        '-', f'ResNet-{depth}, recipe modern', f'preact_resnet{depth}',
        SOURCES[f'preact_resnet{depth}_pcv.{data}'].reported[0], 'pytorchcv', data=data,
        options={'recipe': 'modern', 'epochs': MODERN_EPOCHS})
    for depth in (20, 110, 164, 1001) for data in DATA
}
SMALL_ROWS: Dict[str, Row] = {
    key.replace('110-', '20-'): row._replace(
        model_kwargs=dict(row.model_kwargs, layers=[3, 3, 3]), options={'recipe': 'modern', 'epochs': SMALL_EPOCHS})
    for key, row in PAPER_ROWS.items() if key.startswith('110-') and '3' != row.tables
}
ROWS = {**PAPER_ROWS, **MODERN_ROWS, **SMALL_ROWS}
# What the paper draws, by figure and panel: the original, and what it is compared with
FIGURES: Dict[str, Dict[str, Tuple[str, str]]] = {
    'figure1': {'ResNet-1001': ('1001-orig', '1001-full')},
    'figure3': {'ResNet-110: constant scaling': ('110-orig', '110-const_scale_0.5_0.5'),
                'ResNet-110: exclusive gating': ('110-orig', '110-excl_gate_-6'),
                'ResNet-110: shortcut-only gating': ('110-orig', '110-shortcut_gate_0'),
                'ResNet-110: 1x1 conv shortcut': ('110-orig', '110-conv_shortcut')},
    'figure6': {'ResNet-110: BN after addition': ('110-orig', '110-bn_after_add'),
                'ResNet-164: pre-activation': ('164-orig', '164-full')},
}
SMALL_FIGURES = {
    f'small_{name}': {re.sub(r'ResNet-\d+', '20 layers', title): tuple(re.sub(r'^\d+-', '20-', key) for key in keys)
                      for title, keys in panels.items()}
    for name, panels in FIGURES.items() if name != 'figure1'
}


def command_of(key: str, seed: int, data: str, output: Path, extra: Tuple[str, ...] = ()) -> List[str]:
    """Arguments of train.cifar for one run of a row; `extra` are further options."""
    row = ROWS[key]
    options = [word for name, value in row.options.items() for word in (f'--{name.replace("_", "-")}', str(value))]
    kwargs = [word for name, value in row.model_kwargs.items()
              for word in ('--model-kwargs', f'{name}={json.dumps(value)}')]
    return [row.model, '--data', data_of(row, data), *options, *kwargs, '--seed', str(seed), *extra, '--output',
            str(output)]


def data_of(row: Row, data: str) -> str:
    """What train.cifar's --data is for a row, see the module's docstring."""
    folder = Path(data)
    if data == DATA_FOLDER and not folder.exists():
        raise UserError(f'there is no folder {data} here: name the images by --data, such as --data uoft-cs.')
    if any((folder / name).exists() for name in DATA) or not (folder.exists() or '/' in data):
        return str(folder / row.data)
    return data


@functools.lru_cache(maxsize=2)
def load_sets(source: str) -> Tuple[ImageSet, ImageSet, List[str]]:
    """Training images, test images, and their sha256."""
    sets = load_image_set(source, 'train'), load_image_set(source, 'test')
    return *sets, [images.sha256 for images in sets]


def result_file(results: Path, key: str, seed: int, cut: bool = False) -> Path:
    """Of a run; what is known of one that was cut has a file of its own, which a finished one makes void."""
    return results / 'tables' / f'{key}.seed{seed}{".cut" if cut else ""}.json'


def read_result(path: Path) -> Dict[str, Any]:
    """One result.

    Raises:
        ValueError: The file is none, or not one of the row that it names.
    """
    try:
        result = json.loads(path.read_text())
        row, seed, state, curve = ROWS[result['row']], result['seed'], result['state'], result['curve']
        numbers = [value for epoch in curve for value in (epoch['train_loss'], epoch['test_error'])]
        texts = [result['hardware'], result['data']['train_sha256'], result['data']['test_sha256']]
        experiment = [result['model'], result['model_kwargs'], result['recipe']]
    except (OSError, RecursionError, LookupError, TypeError, AttributeError) as e:
        raise ValueError(f'it lacks {e}') from e
    recipe = json.loads(json.dumps(asdict(choose_recipe(**row.options))))
    if path.name != result_file(path.parent, result['row'], seed, state == 'cut').name or type(seed) is not int:
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
    """The results of each row, by seed; a file that is none, or of other data than the rest, is named and left out.

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


def ended(runs: List[Dict[str, Any]]) -> List[Dict[str, Any]]:
    """Those that count: finished or diverged, not cut."""
    return [result for result in runs if result['state'] != 'cut']


def measured(runs: List[Dict[str, Any]]) -> Optional[float]:
    """The median test error in percent, a diverged run counting as above every other; None without runs."""
    errors = [result['test_error'] if result['state'] == 'finished' else math.inf for result in ended(runs)]
    return statistics.median(errors) if errors else None


def shown(error: Union[float, str, None], mean_std: Optional[Tuple[float, float]] = None) -> str:
    """As the paper prints it."""
    if error is None or error == 'fail':
        return error or '-'
    if error == math.inf:
        return 'diverged'
    return f'{error:.2f}' + (f' ({mean_std[0]:.2f} ± {mean_std[1]:.2f})' if mean_std else '')


def counted(runs: List[Dict[str, Any]]) -> str:
    """How many runs a number is of, beside the paper's 5 if it is of fewer."""
    count = len(ended(runs))
    return f'{count} of {PAPER_RUNS}' if count < PAPER_RUNS else str(count)


def cells_of(key: str, runs: List[Dict[str, Any]]) -> List[str]:
    """Row, where it stands in the paper, the paper's number, ours, of how many runs, their range."""
    row = ROWS[key]
    errors = [result['test_error'] for result in runs if result['state'] == 'finished']
    spread = f'{min(errors):.2f} to {max(errors):.2f}' if len(errors) > 1 else '-'
    return [f'`{key}`', row.tables, row.case, row.data, shown(row.paper, row.mean), shown(measured(runs)),
            counted(runs), spread]


def table(rows: Dict[str, Row], results: Dict[str, List[Dict[str, Any]]], reference: str = 'paper') -> str:
    """Markdown: the paper's number beside ours, how many runs it is of, and their range."""
    lines = [f'| row | table | case | data | {reference} | ours | runs | range |', '|---|---|---|---|--:|--:|--:|---|']
    return '\n'.join([*lines, *(f'| {" | ".join(cells_of(key, results.get(key, [])))} |' for key in rows)])


def sections(results: Dict[str, List[Dict[str, Any]]], ran_only: bool) -> Iterator[str]:
    """Heading, remark and table of each set of rows; with `ran_only`, of the rows that have runs."""
    level = '###' if ran_only else '##'
    for title, remark, rows, reference in (
            ("The paper's rows", 'Measured by the recipe of the appendix, BatchNorm over 64 images as on its two GPUs.',
             PAPER_ROWS, 'paper'),
            ('Rows of a modern recipe', f'{MODERN_EPOCHS} epochs of the recipe `modern`, beside what pytorchcv reports '
             'for its networks of these depths.', MODERN_ROWS, 'pytorchcv'),
            ('A small copy', f"20 layers (3 units a stage), {SMALL_EPOCHS} epochs of the recipe `modern`, beside the "
             "paper's 110 layers and 164 epochs: not its experiment, and not comparable with its numbers. It shows "
             'which differences need no depth.', SMALL_ROWS, 'paper, 110 layers')):
        chosen = {key: row for key, row in rows.items() if not ran_only or ended(results.get(key, []))}
        if chosen:
            yield f'{level} {title}\n\n{remark}\n\n{table(chosen, results, reference)}\n'
        else:
            yield f'{level} {title}\n\nNone of the {len(rows)} rows has a run yet.\n'


STATISTIC = (
    f"Errors are test errors of the last epoch in percent. Ours is the median of the runs; the paper's is the median "
    f"of {PAPER_RUNS}, with mean and standard deviation in brackets where it has them, and 'fail' above {FAIL:.0f}.")


def report(results: Path, found: Dict[str, List[Dict[str, Any]]]) -> str:
    """README.md of a folder of results, from what `collect` found there."""
    ran = [result for runs in found.values() for result in runs]
    unfinished = [f"{key}, seed {result['seed']}: {result['state']} at step {result['step']} of {result['iterations']}"
                  for key, runs in found.items() for result in runs if result['state'] != 'finished']
    figures = [name for name in {**FIGURES, **SMALL_FIGURES} if (results / f'{name}.png').exists()]
    return '\n'.join([
        '# Measured runs\n',
        'Written by `python -m train.tables report` from the files in [tables](tables), one a run, each with its '
        f'command, seed, versions, hardware and curve. {STATISTIC}\n',
        *sections(found, ran_only=False),
        f'Not finished: {"; ".join(unfinished) or "none"}.\n',
        f'Hardware: {"; ".join(sorted({result["hardware"] for result in ran})) or "none yet"}.\n',
        *(['## Curves\n\nDrawn by `python -m train.tables plot`.\n'] if figures else []),
        *(f'![{name}]({name}.png)\n' for name in figures)])


def readme_block(found: Dict[str, List[Dict[str, Any]]]) -> str:
    """What stands between the marks in the project's README: the rows that have runs."""
    return f'{STATISTIC} `python -m train.tables run ROW --data DIR` is the command of each row.\n\n' + '\n'.join(
        sections(found, ran_only=True))


def panels_of(name: str, found: Dict[str, List[Dict[str, Any]]]) -> Dict[str, Dict[str, List[Dict[str, Any]]]]:
    """What a figure shows of the results: the comparisons of which both rows have a finished run."""
    panels = {}
    for title, keys in {**FIGURES, **SMALL_FIGURES}[name].items():
        lines = {ROWS[key].case: [result for result in found.get(key, []) if result['state'] == 'finished']
                 for key in keys}
        if all(lines.values()):
            panels[title] = lines
    return panels


def seconds_of(budget: str) -> float:
    """90s, 25m or 2h."""
    if re.fullmatch('[0-9]+[smh]', budget) is None:
        raise UserError(f'--budget {budget} is no time: write 90s, 25m or 2h.')
    return int(budget[:-1]) * {'s': 1, 'm': 60, 'h': 3600}[budget[-1]]


def share_of(share: Optional[str]) -> slice:
    """Every N-th run from the K-th on, of K/N; without it, what torchrun's environment says, else all."""
    share = share or f"{os.environ.get('RANK', 0)}/{os.environ.get('WORLD_SIZE', 1)}"
    match = re.fullmatch(r'(\d+)/(\d+)', share)
    if match is None or int(match[1]) >= int(match[2]):
        raise UserError(f'--share {share} is no share: write K/N with K from 0 to N-1.')
    return slice(int(match[1]), None, int(match[2]))


def rows_named(patterns: List[str]) -> List[str]:
    """The rows that names with wildcards mean, in the order of ROWS for each."""
    keys = []
    for pattern in patterns:
        matches = [key for key in ROWS if fnmatchcase(key, pattern)]
        if not matches:
            raise UserError(f'{pattern} is no row: python -m train.tables list names them.')
        keys += [key for key in matches if key not in keys]
    return keys


class Campaign:
    """Trains runs of rows, several at a time, and writes their results.

    Args:
        data: As --data says it.
        runs: Folder of the runs' folders.
        results: Folder of the result files.
        device: Where to train.
        together: How many runs train at a time.
        compile_model: torch.compile the networks.
        capture: Capture steps as CUDA graphs.

    Attributes:
        left: Why runs were not begun: other processes train them.
        failed: What was wrong with runs that could not be begun, or not go on.
    """

    def __init__(self, data: str, runs: Path, results: Path, device: torch.device, together: int, compile_model: bool,
                 capture: bool):
        self.data, self.runs, self.results, self.device, self.together = data, runs, results, device, together
        self.compile_model, self.capture = compile_model, capture
        self.opened: Dict[Run, Tuple[str, int]] = {}
        self.left: List[UserError] = []
        self.failed: List[str] = []
        self.sources = dict(commit=head_commit(), trainer_sha256=trainer_sha256())

    def has_ended(self, key: str, seed: int) -> bool:
        try:
            return bool(read_result(result_file(self.results, key, seed)))
        except ValueError:
            return False

    def open(self, key: str, seed: int) -> Run:
        """The run, from its checkpoint if there is one."""
        row = ROWS[key]
        train, test, hashes = load_sets(data_of(row, self.data))
        if self.results == RESULTS and hashes != CIFAR[row.data]:
            raise UserError(f'{data_of(row, self.data)} is not {row.data}: name a folder of its own by --results.')
        settings = dict(model=row.model, model_kwargs=row.model_kwargs, seed=seed, amp=True, data=hashes)
        return Run(settings, choose_recipe(**row.options), train, test, self.runs / f'{key}.seed{seed}', self.device,
                   self.compile_model, self.capture)

    def missing(self, todo: List[Tuple[str, int]]) -> Iterator[Run]:
        """Those that have not ended, each made when it is asked for."""
        for key, seed in todo:
            if self.has_ended(key, seed):
                continue
            try:
                run = self.open(key, seed)
            except FolderTaken as e:
                self.left.append(e)
                continue
            except UserError as e:
                self.fail(f'{key}, seed {seed}: {e}')
                continue
            if self.has_ended(key, seed):  # by the process that had the folder until now
                run.close()
                continue
            self.opened[run] = key, seed
            yield run

    def fail(self, sentence: str) -> None:
        print(f'warning: {sentence}', file=sys.stderr)
        self.failed.append(sentence)

    def record(self, run: Run, key: str, seed: int) -> None:
        """Write the result file."""
        extra = ('--compile',) * self.compile_model + ('--no-capture',) * (not self.capture)
        facts = dict(
            row=key, **self.sources, recipe_name=ROWS[key].options['recipe'],
            command=shlex.join(['python', '-m', 'train.cifar', *command_of(key, seed, self.data, run.output, extra)]))
        result = run.finish(**facts) if run.state == 'finished' else run.result(**facts)
        cut = result_file(self.results, key, seed, cut=True)
        path = cut if run.state == 'cut' else result_file(self.results, key, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, json.dumps(result, indent=1).encode())
        if path != cut:
            cut.unlink(missing_ok=True)
        print(f'{key}, seed {seed}: {run.state}', flush=True)

    def train(self, todo: List[Tuple[str, int]], deadline: float) -> int:
        """Train what of `todo` has not ended, in its order, until all has or the time is up; returns how many began."""
        began = 0
        for run in train_together(self.missing(todo), self.together, deadline=deadline):
            began += 1
            key, seed = self.opened.pop(run)
            self.record(run, key, seed)
            run.close()
            if run.state == 'cut' and run.error:
                self.fail(run.error)
            del run
        return began


def head_commit() -> Optional[str]:
    """Of the clone, '-dirty' behind it if a tracked file differs; None where git knows nothing of it."""
    git = ['git', 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*']
    try:
        return subprocess.run(git, cwd=ROOT, capture_output=True, text=True).stdout.strip() or None
    except OSError:
        return None


def trainer_sha256() -> str:
    """Of the sources that a run depends on beside the package's, one after the other."""
    sources = [(ROOT / 'train' / name).read_bytes() for name in ('batches.py', 'recipe.py', 'run.py')]
    return hashlib.sha256(b''.join(sources)).hexdigest()


RESULTS_OPTION = typer.Option(RESULTS, '--results', help='Folder of the result files (in its tables/) and the report.')


@app.command('list')
@one_sentence_errors
def list_rows(results: Path = RESULTS_OPTION) -> None:
    """Rows with the paper's number, ours, how many runs it is of, and what is cut or diverged."""
    found = collect(results.resolve())
    for key, row in ROWS.items():
        runs = found.get(key, [])
        states = ', '.join(f"seed {result['seed']} {result['state']} at step {result['step']} of {result['iterations']}"
                           for result in runs if result['state'] != 'finished')
        print(f'{key:24} table {row.tables:10} {row.data:8} paper {shown(row.paper):>5} {row.kind:9} '
              f'ours {shown(measured(runs)):>5}  {counted(runs)} runs  {states}'.rstrip())


@app.command('run')
@one_sentence_errors
def run_rows(
        rows: List[str] = typer.Argument(None, help="Rows as list names them; '20-*' for all that begin so."),
        every: bool = typer.Option(False, '--all', help='All rows, the most telling first.'),
        seeds: int = typer.Option(PAPER_RUNS, help='Seeds 0 to N-1 of each row; what is there is not run again.'),
        together: int = typer.Option(1, help='Runs to train at once on the device.'),
        budget: Optional[str] = typer.Option(None, help='Stop after 90s, 25m or 2h; run again to go on.'),
        share: Optional[str] = typer.Option(None, help="K/N: every N-th run from the K-th; else torchrun's rank."),
        data: str = typer.Option(DATA_FOLDER, help='Folder with cifar10/ and cifar100/, or see above.'),
        runs: Path = typer.Option(Path('runs/tables'), help='Where runs keep their checkpoints.'),
        results: Path = RESULTS_OPTION,
        device: str = typer.Option('cuda' if torch.cuda.is_available() else 'cpu', help='Where to train.'),
        compile_model: bool = typer.Option(False, '--compile', help='torch.compile the networks.'),
        capture: bool = typer.Option(True, help='On a GPU, capture the step as a CUDA graph and replay it.'),
) -> None:
    """Run what is missing of rows, a seed of each before the next seed."""
    if every == bool(rows):
        raise UserError('name rows, or all of them by --all.')
    for option, value in (('--seeds', seeds), ('--together', together)):
        if value < 1:
            raise UserError(f'{option} is {value}: it must be above 0.')
    keys = list(ROWS) if every else rows_named(rows)
    todo = [(key, seed) for seed in range(seeds) for key in keys][share_of(share)]
    deadline = time.monotonic() + seconds_of(budget) if budget else math.inf
    campaign = Campaign(data, runs, results.resolve(), local_device(device), together, compile_model, capture)
    began = campaign.train(todo, deadline)
    if campaign.failed:
        raise UserError(f'{len(campaign.failed)} runs could not be trained, the first: {campaign.failed[0]}')
    if campaign.left and not began and not share and 'RANK' not in os.environ:
        raise campaign.left[0]
    missing = sum(not campaign.has_ended(key, seed) for key, seed in todo)
    if missing:
        others = f', {len(campaign.left)} of them left to other processes' if campaign.left else ''
        print(f'{missing} runs are missing{others}: run again to go on.')


@app.command('report')
@one_sentence_errors
def write_report(results: Path = RESULTS_OPTION) -> None:
    """Write README.md beside the results, and the project's README between its marks."""
    results = results.resolve()
    found = collect(results)
    write_atomically(results / 'README.md', report(results, found).encode())
    print(f'{results / "README.md"} is written from {sum(map(len, found.values()))} runs.')
    if results == RESULTS:
        text = README.read_text()
        before, after = text.split(MARKS[0])[0], text.split(MARKS[1])[1]
        write_atomically(README, f'{before}{MARKS[0]}\n{readme_block(found)}{MARKS[1]}{after}'.encode())


@app.command('plot')
@one_sentence_errors
def plot(results: Path = RESULTS_OPTION) -> None:
    """Draw the paper's Figures 1, 3 and 6, and the small copy's, as far as there are runs."""
    found = collect(results.resolve())
    for name in {**FIGURES, **SMALL_FIGURES}:
        panels = panels_of(name, found)
        if not panels:
            print(f'{name}: no comparison of it has two rows with finished runs')
        elif plot_comparisons(panels, results / f'{name}.png'):
            print(f'{name}: {", ".join(panels)}')


if __name__ == '__main__':
    app()
