"""How results look on a screen: progress bars, tables and the numbers in them."""
import sys
from contextlib import contextmanager
from typing import Any, Callable, Iterator, List, Sequence

__all__ = [
    'print_comparison', 'print_findings', 'print_networks', 'print_predictions', 'print_scores', 'print_units',
    'show_progress',
]

SHOWN = 20  # indices of images on a line


@contextmanager
def show_progress(total: int, description: str) -> Iterator[Callable[[int], None]]:
    """A bar on stderr while the block runs, where somebody watches; yields advance(done)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    columns = TextColumn('{task.description}', markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda done: bar.advance(task, done)


def new_table(**options: Any) -> Any:
    """A rich table without lines but below its headings."""
    from rich import box
    from rich.table import Table
    return Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, **options)


def print_table(table: Any, width: int = 120) -> None:
    """Print a rich table, up to `width` characters wide where no terminal limits it; names are printed as they are."""
    from rich.console import Console
    Console(width=None if sys.stdout.isatty() else width, markup=False, emoji=False).print(table)


def print_scores(title: str, scores: Any) -> None:
    """Print `timm_preact.evaluation.Scores` as a table, a row a class."""
    from rich.table import Table
    print(title)
    table = Table()
    table.add_column('class')
    table.add_column('accuracy, %', justify='right')
    for name, accuracy in scores.per_class.items():
        table.add_row(name, f'{accuracy:.2f}')
    table.add_section()
    table.add_row('top-1', f'{scores.top1:.2f}', style='bold')
    table.add_row('top-5', f'{scores.top5:.2f}')
    print_table(table)


def print_comparison(found: Any, data: str) -> None:
    """Print a `timm_preact.evaluation.Comparison`, a row a class, and the images that are named differently."""
    first, second = found.scores
    table = new_table()
    add_columns(table, [f'accuracy on {data}, %'], ['first', 'second'])
    for name, accuracy in first.per_class.items():
        table.add_row(name, f'{accuracy:.2f}', f'{second.per_class[name]:.2f}')
    table.add_row('top-1', f'{first.top1:.2f}', f'{second.top1:.2f}')
    print_table(table)
    more = ', ...' if len(found.differ) > SHOWN else ''
    which = f': {", ".join(map(str, found.differ[:SHOWN]))}{more}' if found.differ else ''
    print(f'{len(found.differ)} of {first.images} images are named differently{which}')


def print_networks(rows: Sequence[Any]) -> None:
    """Print what `timm_preact.catalog.list_networks` found, a row a network and data set."""
    table = new_table(caption_justify='left', caption=(
        'paper, published (as its publisher reports it), ours: top-1 errors in %; MACs: multiply-adds for one image of '
        'the default data set; *: the best weights for a data set and depth'))
    table.add_column('name', overflow='fold')
    for heading in ('depth', 'params', 'MACs', 'data set', 'paper', 'published', 'ours', 'weights'):
        table.add_column(heading, justify='left' if heading in ('data set', 'weights') else 'right', no_wrap=True)
    for row in rows:
        table.add_row(
            row['name'], str(row['depth']), f"{row['params'] / 1e6:.2f}M", f"{row['macs'] / 1e6:.0f}M", row['data_set'],
            *(show_error(row[key]) for key in ('paper_error', 'published_error', 'our_error')),
            'yes *' if row['best'] else 'yes' if row['weights'] else '-')
    print_table(table)


def print_predictions(results: Sequence[Any]) -> None:
    """Print what `timm_preact.evaluation.predict` found, a row a guess."""
    from rich.table import Table
    table = Table('image', 'class', 'probability')
    for result in results:
        if 'error' in result:
            table.add_row(result['file'], result['error'], '')
        for i, guess in enumerate(result.get('predictions', [])):
            table.add_row(result['file'] if i == 0 else '', guess['class'], f"{guess['probability']:.4f}")
        table.add_section()
    print_table(table)


def print_findings(findings: Sequence[Any]) -> None:
    """Print what `timm_preact.propagation.survey` found, a row a network and what it held."""
    table = new_table(caption_justify='left', caption=(
        "signal: the stream's largest standard deviation over the first unit's; gradient: at the first unit over "
        'that behind the last; direct: the gradient through shortcuts alone at its weakest unit, over the same; '
        'factors: the product of what merges multiply the shortcuts by; cosine: the lowest with the last gradient '
        'of the same shape; dead: share of ReLU channels'))
    add_columns(table, ['network', 'weights', 'safe'], ['signal', 'gradient', 'direct', 'factors', 'cosine', 'dead'])
    for result, verdict in findings:
        table.add_row(result.model, result.weights, 'yes' if verdict.safe else 'NO', *map(show_figure, (
            result.signal, result.growth, result.direct, result.scaling_product[0], result.cosine, result.dead)))
    print_table(table)


def print_units(result: Any) -> None:
    """Print a `timm_preact.propagation.Propagation`, a row a unit."""
    columns = result.columns()
    table = new_table(title=f'{result.model} ({result.weights})', title_justify='left')
    add_columns(table, ['unit'], [column.replace('_', '\n') for column in columns])
    for row, unit in enumerate(result.units):
        table.add_row(unit, *(show_figure(getattr(result, column)[row]) for column in columns))
    print_table(table, 170)


def add_columns(table: Any, names: List[str], numbers: List[str]) -> None:
    """Add columns of names, which stay on one line, and of numbers, as wide as the longest word of their heading."""
    for heading in names:
        table.add_column(heading, no_wrap=True)
    for heading in numbers:
        table.add_column(heading, justify='right', min_width=max(7, *(len(word) for word in heading.split())))


def show_error(error: Any) -> str:
    """An error in percent, the paper's word for one, or '-' for none."""
    return '-' if error is None else f'{error:.2f}' if isinstance(error, float) else error


def show_figure(value: float) -> str:
    """Two digits of a number, '-' for NaN."""
    return '-' if value != value else f'{value:.2g}'
