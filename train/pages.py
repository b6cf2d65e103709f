"""Fill the pages: every table and number in them comes from a result file or a table of the package, and from here.

    python -m train.pages            # writes what is stale
    python -m train.pages --check    # names what is stale; exit code 1 if anything is

Pages are written by hand but for what stands between <!-- NAME --> and <!-- /NAME -->, where NAME is a key of BLOCKS,
and numbers between <!--= ROW:WHAT --> and <!--/-->, of the measured signal propagation. The cards of hub_cards/ and
train/results/README.md are written whole.
"""
import functools
import json
import re
from pathlib import Path
from typing import Any, Callable, Collection, Dict, Iterator, Tuple

import timm
import typer

from benchmarks import tables
from timm_preact.benchmark import format_tables
from timm_preact.card import DATA_SETS as CARD_DATA_SETS
from timm_preact.catalog import DATA_SETS, MEASURED, PAPER, SIZES, count_macs, depth_of, error_of, find_best
from timm_preact.errors import one_sentence_errors
from timm_preact.files import write_atomically
from timm_preact.weights.sources import SOURCES
from train import cards, propagation
from train.ablation import format_ablation
from train.evidence import collect, find_median, format_count, format_measured, format_report
from train.markdown import format_table
from train.places import BENCHMARKS, DOCS, PROPAGATION, README, RECIPES, RESULTS, ROOT, UNSHIPPED
from train.rows import PAPER_ROWS

__all__ = ['BLOCKS', 'fill', 'find_stale', 'write_pages']

SPEED = ('cifar_inference', 'imagenet_inference', 'cifar_training', 'imagenet_training')  # of results
NETWORKS = ('preact_resnet110_pcv', 'preact_resnet164_pcv', 'preact_resnet152')  # whose speed is shown
SIX_SPEEDS = (
    ('preact_resnet110_pcv', 'inference', 'float32', 64), ('preact_resnet164_pcv', 'inference', 'bfloat16', 64),
    ('preact_resnet152', 'inference', 'float32', 1), ('preact_resnet164_pcv', 'training', 'float32', 64),
    ('preact_resnet164_pcv', 'training', 'bfloat16', 64), ('preact_resnet152', 'training', 'float32', 4))
SIX_RESULTS = (
    'preact_resnet20.cifar10', 'preact_resnet110.cifar10', 'preact_resnet110_pcv.cifar10',
    'preact_resnet1001_pcv.cifar10', 'preact_resnet200.pcv_in1k', 'preact_resnet200_fb.in1k')
RATIOS = {
    'train `preact_resnet20`': 'training', 'train `preact_resnet110`, H100': 'steps_preact_resnet110_cuda',
    'create `preact_resnet1001`': 'creation', 'import': 'imports'}


def read(name: str) -> Dict[str, Any]:
    """Read a result of the experiments on speed and memory."""
    return json.loads((BENCHMARKS / f'{name}.json').read_text())


@functools.lru_cache
def read_runs() -> Dict[str, Any]:
    """Read the trainings of the paper's rows."""
    return collect(RESULTS)


@functools.lru_cache
def read_propagation() -> Dict[str, Any]:
    """Read what was measured of signal and gradient."""
    return propagation.read_measured(PROPAGATION)


def format_names() -> str:
    """Format every registered name: its size, and what is known of its errors."""
    def list_rows() -> Iterator[Tuple[str, ...]]:
        for name, size in SIZES.items():
            tags = [cfg.tag for cfg in timm.models.get_arch_pretrained_cfgs(name).values()]
            paper = [f'{PAPER[name][tag]} ({tag})' for tag in tags if tag in PAPER.get(name, {})]
            published = [f'{SOURCES[f"{name}.{tag}"].reported[0]:.2f} ({tag})' for tag in tags
                         if f'{name}.{tag}' in SOURCES]
            ours = [f'{MEASURED[f"{name}.{tag}"]:.2f} ({tag})' for tag in tags if f'{name}.{tag}' in MEASURED]
            yield (f'`{name}`', str(depth_of(name)), f'{size.params / 1e6:.2f} M', f'{size.macs / 1e6:,.0f} M',
                   *(', '.join(errors) or '-' for errors in (paper, published, ours)))

    headings = 'name', 'depth', 'parameters', 'MACs', 'paper', 'published weights', 'ours'
    return format_table('lrrrlll', headings, list_rows())


def format_best(only_last: Collection[str] = ()) -> str:
    """Format the best weights of each data set by size, with their cost at the input size of the reported error.

    Args:
        only_last: Data sets of which only the weights with the lowest error are listed.
    """
    def list_rows() -> Iterator[Tuple[str, ...]]:
        for data in DATA_SETS:
            best = find_best(data)
            for key in best[-1:] if data in only_last else best:
                name, source = key.partition('.')[0], SOURCES.get(key)
                protocol = source.protocol if source else '32x32'
                size = int(re.match(r'\d+', protocol)[0])
                macs = count_macs(timm.create_model(name, device='meta'), (3, size, size))
                publisher = re.sub(r'https://(github\.com/)?', '', source.origin) if source else 'ours, bundled'
                cells = (f'`{key}`', f'{SIZES[name].params / 1e6:.2f} M', f'{macs / 1e6:,.0f} M',
                         f'{error_of(key):.2f}')
                bold = '**' if key == best[-1] else ''
                yield (CARD_DATA_SETS[data][0], *(f'{bold}{cell}{bold}' for cell in cells), protocol.partition(';')[0],
                       publisher, source.license if source else 'apache-2.0')

    headings = ('data', 'weights', 'parameters', 'multiply-adds', 'top-1 error, %', 'tested at', 'publisher',
                'licence')
    return format_table('llrrrlll', headings, list_rows())


def format_sources() -> str:
    """Format where weights come from: their publishers' files, and ours in the package."""
    def list_rows() -> Iterator[Tuple[str, ...]]:
        for name, source in SOURCES.items():
            project = source.origin.removeprefix('https://').removeprefix('github.com/')
            unknown = 'sha256 of the Hub' if source.hub else 'size and structure'
            checked = (source.checksum or unknown).partition(':')[0]
            yield (f'`{name}`', source.upstream, f'[{project}]({source.origin})', source.license,
                   f'{source.reported[0]:.2f}', checked)
        for name, error in MEASURED.items():
            yield f'`{name}`', 'in the package', 'ours', 'apache-2.0', f'{error:.2f}', 'sha256'

    return format_table('llllrl', ('name', 'file', 'by', 'licence', 'top-1 error, %', 'verified by'), list_rows())


def format_six_results() -> str:
    """Format the README's results: the paper's error, that of published weights, and ours, of how many runs."""
    runs = {f'{row.model}.{row.data}': read_runs()[key] for key, row in PAPER_ROWS.items()
            if key in read_runs() and not row.model_kwargs}

    def list_rows() -> Iterator[Tuple[str, ...]]:
        for key in SIX_RESULTS:
            name, _, tag = key.partition('.')
            paper = PAPER.get(name, {}).get(tag.replace('pcv_', ''), '-')
            published = f'{SOURCES[key].reported[0]:.2f}' if key in SOURCES else '-'
            measured = f'{MEASURED[key]:.2f}' if key in MEASURED else '-'
            if key in runs:
                measured = f'{find_median(runs[key]):.2f} ({format_count(runs[key])} runs)'
            yield f'`{key}`', str(paper), published, measured

    return format_table('lrrr', ('top-1 error, %', 'the paper', 'published weights', 'ours'), list_rows())


def format_whole_runs() -> str:
    """Format our runs of 20 layers on all images of CIFAR-10: the recipe, its length, and how far a network came."""
    def list_rows() -> Iterator[Tuple[str, ...]]:
        for folder, ships in ((RESULTS, 'yes'), (UNSHIPPED, 'no')):
            for path in sorted(folder.glob('preact_resnet20.cifar10.*.json')):
                run = json.loads(path.read_text())
                yield (f"`{run['recipe_name']}`", f"{run['recipe']['epochs']:g}", run['precision'],
                       f"{run['images_per_second']:.0f}", f"{run['train_seconds'] / 60:.0f}",
                       f"{run['train_loss']:.3f}", f"{run['test_error']:.2f}", ships)

    headings = 'recipe', 'epochs', 'in', 'images/s', 'minutes', 'training loss', 'test error, %', 'ships'
    return format_table('lrlrrrrl', headings, list_rows())


def format_trial() -> str:
    """Format what train.trial measured of the ImageNet recipes."""
    runs = json.loads((RESULTS / 'imagenet_trial.json').read_text())['runs']
    return format_table('lrrr', ('', 'loss, last epoch', 'validation top-1', 'training top-1'), (
        (name, f"{run['epochs'][-1]['train_loss']:.2f}", f"{run['epochs'][-1]['eval_top1']:.1f}",
         f"{run['train_top1']:.1f}") for name, run in runs.items()))


def format_scaling() -> str:
    """Format what the formula of train/recipes/README.md says of many GPUs, from one's rate and the model's size."""
    rate = round(read('benchmark_imagenet_cuda')['medians']['preact_resnet200'])
    size = 4 * sum(p.numel() for p in timm.create_model('preact_resnet200', device='meta').parameters())

    def list_rows() -> Iterator[Tuple[str, ...]]:
        for batch in (128, 32):
            alone = batch / rate
            for network, speed in (('8 x 400 Gb/s', 320e9), ('1 x 100 Gb/s', 10e9)):
                for gpus in (8, 64, 256):
                    reduce = 2 * (gpus - 1) / gpus * size / (340e9 if gpus == 8 else speed)
                    step = alone / 3 + max(alone * 2 / 3, reduce) + reduce * 25 * 2 ** 20 / size
                    yield (str(batch), network, str(gpus), f'{reduce * 1e3:.1f}', f'{step * 1e3:.1f}',
                           f'{alone / step:.1%}', f'{gpus * batch / step:,.0f}')

    headings = 'images a GPU', 'network of a node', 'GPUs', 'all-reduce, ms', 'step, ms', 'efficiency', 'images/s'
    return format_table('rlrrrrr', headings, list_rows())


# What stands between <!-- NAME --> and <!-- /NAME -->
BLOCKS: Dict[str, Callable[[], str]] = {
    'names': format_names,
    'best': format_best,
    'best_short': lambda: format_best(only_last=('cifar10', 'cifar100', 'svhn')),
    'sources': format_sources,
    'results': lambda: format_measured(read_runs()),
    'results_short': format_six_results,
    'speed': lambda: tables.format_speed(map(read, SPEED), NETWORKS),
    'speed_short': lambda: tables.format_speed(map(read, SPEED), SIX_SPEEDS),
    'ratios': lambda: tables.format_ratios({what: read(f'benchmark_{name}') for what, name in RATIOS.items()}),
    'imagenet_steps': lambda: tables.format_steps(read('benchmark_imagenet_cuda')),
    'benchmark_compilation': lambda: tables.format_compilation(read('benchmark_compilation')),
    'int8_preact_resnet20': lambda: tables.format_int8(read('int8_preact_resnet20')),
    'growth': lambda: tables.format_growth(read('growth')),
    'gpu': lambda: tables.format_gpu(BENCHMARKS / 'gpu'),
    **{name: (lambda name=name: format_tables(read(name))) for name in (
        *SPEED, 'settled_training', 'preact_resnet1001_training', 'gpu_inference', 'gpu_training')},
    **{name: (lambda table=table: propagation.format_rows(*table, read_propagation(), read_runs()))
       for name, table in propagation.TABLES.items()},
    'ablation': format_ablation,
    'whole_runs': format_whole_runs,
    'warmup': propagation.format_warmup,
    'facts': lambda: propagation.format_facts(read_propagation()),
    'trial': format_trial,
    'scaling': format_scaling,
}


def fill(text: str) -> str:
    """Fill a page: `text` with every block and every number made anew."""
    text = re.sub(r'<!-- (\w+) -->\n.*?<!-- /\1 -->', lambda match: (
        f'<!-- {match[1]} -->\n{BLOCKS[match[1]]().strip()}\n<!-- /{match[1]} -->'), text, flags=re.DOTALL)
    return re.sub(r'<!--= (\S+) -->.*?<!--/-->', lambda match: (
        f'<!--= {match[1]} -->{propagation.look_up(match[1], read_propagation(), read_runs())}<!--/-->'), text)


def make_pages() -> Iterator[Tuple[Path, str]]:
    """Make every page that holds results: where it lies, and what should stand there."""
    for path in (README, *sorted(DOCS.glob('*.md')), RECIPES / 'README.md'):
        yield path, fill(path.read_text())
    yield RESULTS / 'README.md', format_report(RESULTS, read_runs())
    yield from cards.make_cards()


def find_stale() -> Dict[Path, str]:
    """Find the pages that say other things than the results, and what they should say."""
    return {path: text for path, text in make_pages() if not path.exists() or path.read_text() != text}


def write_pages() -> None:
    """Write the pages that are stale."""
    for path, text in find_stale().items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text.encode())
        print(f'wrote {path.relative_to(ROOT)}')


@one_sentence_errors
def main(check: bool = typer.Option(False, '--check', help='Write nothing, name what is stale.')) -> None:
    """Fill every page from the result files."""
    if not check:
        write_pages()
        return
    stale = [str(path.relative_to(ROOT)) for path in find_stale()]
    print('\n'.join(f'{path} is stale: python -m train.pages writes it.' for path in stale) or 'No page is stale.')
    raise SystemExit(bool(stale))


if __name__ == '__main__':
    typer.run(main)
