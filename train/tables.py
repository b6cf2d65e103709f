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
what they are at. Runs of equal networks train as one on a GPU, docs/kernels.md. --share 0/8 takes every eighth run, for
machines that share nothing; torchrun's ranks do so unasked.

A row of the small copy has 20 layers and 4 epochs: it shows which of the paper's differences need no depth, and is
never mixed with the paper's.
"""
import functools
import json
import math
import os
import re
import shlex
import sys
import time
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Annotated, Any, Dict, Iterator, List, Optional, Tuple

import torch
import typer

from timm_preact.cli.options import PATH
from timm_preact.data import ImageSet, load_image_set
from timm_preact.errors import COUNT, UserError, one_sentence_errors
from timm_preact.files import write_atomically, write_json
from timm_preact.kernels import has_triton
from train.evidence import (
    PAPER_RUNS,
    collect,
    find_median,
    format_count,
    format_error,
    format_report,
    locate_result,
    read_result,
    select_panels,
)
from train.figures import plot_comparisons
from train.places import RESULTS
from train.recipe import choose_recipe
from train.rows import CIFAR, DATA, FIGURES, ROWS, SMALL_FIGURES, Row
from train.run import ALLOW_CHANGES, FolderTaken, Run, local_device, read_checkpoint, train_together

__all__ = ['DATA_FOLDER', 'Campaign', 'app', 'command_of', 'data_of', 'load_sets', 'order_of', 'rows_named', 'share_of']

DATA_FOLDER = 'data'

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)


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


def parse_seconds(budget: str) -> float:
    """Parse 90s, 25m or 2h."""
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


def order_of(keys: List[str], seeds: int, at_once: int, share: slice) -> List[Tuple[str, int]]:
    """The runs of rows, `at_once` seeds of each before the next seeds of any; of those portions a share."""
    portions = [[(key, seed) for seed in range(first, min(first + at_once, seeds))]
                for first in range(0, seeds, at_once) for key in keys]
    return [run for portion in portions[share] for run in portion]


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
        allow_changes: Continue checkpoints that were trained under other conditions, see `train.run.Run`.

    Attributes:
        left: Why runs were not begun: other processes train them.
        failed: What was wrong with runs that could not be begun, or not go on.
    """

    def __init__(self, data: str, runs: Path, results: Path, device: torch.device, together: int, compile_model: bool,
                 capture: bool, allow_changes: bool = False):
        self.data, self.runs, self.results, self.device, self.together = data, runs, results, device, together
        self.compile_model, self.capture, self.allow_changes = compile_model, capture, allow_changes
        self.opened: Dict[Run, Tuple[str, int]] = {}
        self.left: List[UserError] = []
        self.failed: List[str] = []

    def has_ended(self, key: str, seed: int) -> bool:
        """Return True if the run has a result on these images.

        Raises:
            UserError: It has one on other images.
        """
        path = locate_result(self.results, key, seed)
        try:
            result = read_result(path)
        except ValueError:
            return False
        self.check_result(path, result, data_of(ROWS[key], self.data))
        return True

    def check_result(self, path: Path, result: Dict[str, Any], source: str) -> None:
        """Check that a result was measured on the images of a source.

        Raises:
            UserError: It was not.
        """
        hashes = [result['data'][name] for name in ('train_sha256', 'test_sha256')]
        if hashes != load_sets(source)[2]:
            raise UserError(f'{path} was measured on other images{find_data(result)} than --data {source}: choose '
                            f'another --results.')

    def check_data(self, todo: List[Tuple[str, int]]) -> None:
        """Check that results and checkpoints of runs are of these images.

        Raises:
            UserError: One is of other images.
        """
        sources = {ROWS[key].data: data_of(ROWS[key], self.data) for key, _ in todo}
        for path in () if self.results == RESULTS else sorted((self.results / 'tables').glob('*.json')):
            try:
                result = read_result(path)
            except ValueError:  # it counts for no row
                continue
            if ROWS[result['row']].data in sources:
                self.check_result(path, result, sources[ROWS[result['row']].data])
        for key, seed in todo:
            folder, source = self.locate_run(key, seed), data_of(ROWS[key], self.data)
            try:
                state = read_checkpoint(folder)
            except UserError:  # reported when the run is opened
                continue
            if state is not None and state['settings']['data'] != load_sets(source)[2]:
                last = state['sessions'][-1] if state['sessions'] else {}
                raise UserError(f'{folder} was trained on other images{find_data(last)} than --data {source}: choose '
                                f'another --runs.')

    def locate_run(self, key: str, seed: int) -> Path:
        """Locate the folder of a run."""
        return self.runs / f'{key}.seed{seed}'

    def open(self, key: str, seed: int) -> Run:
        """The run, from its checkpoint if there is one."""
        row = ROWS[key]
        train, test, hashes = load_sets(data_of(row, self.data))
        if self.results == RESULTS and hashes != CIFAR[row.data]:
            raise UserError(f'{data_of(row, self.data)} is not {row.data}: name a folder of its own by --results.')
        settings = dict(model=row.model, model_kwargs=row.model_kwargs, seed=seed, amp=True, data=hashes)
        output = self.locate_run(key, seed)
        extra = ('--compile',) * self.compile_model + ('--no-capture',) * (not self.capture)
        command = ['python', '-m', 'train.cifar', *command_of(key, seed, self.data, output, extra)]
        return Run(settings, choose_recipe(**row.options), train, test, output, self.device, self.compile_model,
                   self.capture, shlex.join(command), self.allow_changes)

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
        """Write the result file; that of a finished run is what its run.json holds."""
        facts = dict(row=key, recipe_name=ROWS[key].options['recipe'])
        result = {**facts, **(run.finish(**facts) if run.state == 'finished' else run.result(**facts))}
        cut = locate_result(self.results, key, seed, cut=True)
        path = cut if run.state == 'cut' else locate_result(self.results, key, seed)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, result)
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


def find_data(facts: Dict[str, Any]) -> str:
    """Find what --data was in the command of a result or a session, as a part of a sentence."""
    match = re.search(r'--data[= ](\S+)', facts.get('command') or '')
    return f' (--data {match[1]})' if match else ''


RESULTS_OPTION = typer.Option(
    RESULTS, '--results', **PATH, help='Folder of the result files (in its tables/) and the report.')


@app.command('list')
@one_sentence_errors
def list_rows(results: Path = RESULTS_OPTION) -> None:
    """Rows with the paper's number, ours, how many runs it is of, and what is cut or diverged."""
    found = collect(results.resolve())
    for key, row in ROWS.items():
        runs = found.get(key, [])
        states = ', '.join(f"seed {result['seed']} {result['state']} at step {result['step']} of {result['iterations']}"
                           for result in runs if result['state'] != 'finished')
        print(f'{key:24} table {row.tables:10} {row.data:8} paper {format_error(row.paper):>5} {row.kind:9} '
              f'ours {format_error(find_median(runs)):>5}  {format_count(runs)} runs  {states}'.rstrip())


@app.command('run')
@one_sentence_errors
def run_rows(
        rows: List[str] = typer.Argument(None, help="Rows as list names them; '20-*' for all that begin so."),
        every: bool = typer.Option(False, '--all', help='All rows, the most telling first.'),
        seeds: Annotated[int, COUNT] = typer.Option(
            PAPER_RUNS, help='Seeds 0 to N-1 of each row; what is there is not run again.'),
        together: Annotated[int, COUNT] = typer.Option(1, help='Runs to train at once on the device.'),
        budget: Optional[str] = typer.Option(None, help='Stop after 90s, 25m or 2h; run again to go on.'),
        share: Optional[str] = typer.Option(None, help="K/N: every N-th run from the K-th; else torchrun's rank."),
        data: str = typer.Option(DATA_FOLDER, help='Folder with cifar10/ and cifar100/, or see above.'),
        runs: Path = typer.Option(Path('runs/tables'), **PATH, help='Where runs keep their checkpoints.'),
        results: Path = RESULTS_OPTION,
        device: str = typer.Option('cuda' if torch.cuda.is_available() else 'cpu', help='Where to train.'),
        compile_model: bool = typer.Option(False, '--compile', help='torch.compile the networks.'),
        capture: bool = typer.Option(True, help='On a GPU, capture the step as a CUDA graph and replay it.'),
        allow_changes: bool = typer.Option(False, '--allow-changes', help=ALLOW_CHANGES),
) -> None:
    """Run what is missing of rows, a seed of each before the next seed; where seeds train as one, as many as do."""
    if every == bool(rows):
        raise UserError('name rows, or all of them by --all.')
    keys = list(ROWS) if every else rows_named(rows)
    where = local_device(device)
    as_one = capture and not compile_model and has_triton(where)
    todo = order_of(keys, seeds, together if as_one else 1, share_of(share))
    deadline = time.monotonic() + parse_seconds(budget) if budget else math.inf
    campaign = Campaign(data, runs, results.resolve(), where, together, compile_model, capture, allow_changes)
    campaign.check_data(todo)
    began = campaign.train(todo, deadline)
    if campaign.failed:
        raise UserError(f'{len(campaign.failed)} runs could not be trained, the first: {campaign.failed[0]}')
    if campaign.left and not began and not share and 'RANK' not in os.environ:
        raise campaign.left[0]
    if not began and not campaign.left:
        print(f'All {len(todo)} runs have a result in {campaign.results / "tables"}.')
    missing = sum(not campaign.has_ended(key, seed) for key, seed in todo)
    if missing:
        others = f', {len(campaign.left)} of them left to other processes' if campaign.left else ''
        print(f'{missing} runs are missing{others}: run again to go on.')


@app.command('report')
@one_sentence_errors
def write_report(results: Path = RESULTS_OPTION) -> None:
    """Write README.md beside the results; `python -m train.pages` writes the project's own pages."""
    results = results.resolve()
    found = collect(results)
    write_atomically(results / 'README.md', format_report(results, found).encode())
    print(f'{results / "README.md"} is written from {sum(map(len, found.values()))} runs.')


@app.command('plot')
@one_sentence_errors
def plot(results: Path = RESULTS_OPTION) -> None:
    """Draw the paper's Figures 1, 3 and 6, and the small copy's, as far as there are runs."""
    found = collect(results.resolve())
    for name in {**FIGURES, **SMALL_FIGURES}:
        panels = select_panels(name, found)
        if not panels:
            print(f'{name}: no comparison of it has two rows with finished runs')
        elif plot_comparisons(panels, results / f'{name}.png'):
            print(f'{name}: {", ".join(panels)}')


if __name__ == '__main__':
    app()
