"""What the results of this folder say, as tables for the pages; functions take results as they were read."""
import json
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, Sequence, Tuple

from timm_preact.benchmark import PACKAGES, find_fastest_peer
from train.markdown import format_table

__all__ = ['format_compilation', 'format_gpu', 'format_growth', 'format_int8', 'format_ratios', 'format_speed',
           'format_steps']

Result = Dict[str, Any]


def compare_memory(ours: Result, peer: Result) -> str:
    """Format our memory as a share of a peer's."""
    return f"{ours['memory'] / peer['memory']:.2f}" if ours['memory'] and peer['memory'] else '-'


def format_speed(results: Iterable[Result], chosen: Iterable[Tuple]) -> str:
    """Format ours against the fastest peer.

    Args:
        results: Of `timm-preact benchmark`.
        chosen: Of each run to show the network, or (network, task, dtype, batch size).
    """
    chosen, rows = set(chosen), []
    for run in (run for result in results for run in result['runs']):
        key = tuple(run['setting'][what] for what in ('name', 'task', 'dtype', 'batch_size'))
        if not {key, key[0]} & chosen:
            continue
        contestants, peer = run['contestants'], find_fastest_peer(run)
        ours = next(iter(contestants))
        mine, theirs = (contestants[name]['images_per_second'] for name in (ours, peer))
        rows.append((
            f'`{key[0]}` {key[1]}, {key[2]}, batch {key[3]}: `{ours}`', f'{mine:,.1f}', f'{peer}: {theirs:,.1f}',
            f'{mine / theirs:.2f}', compare_memory(contestants[ours], contestants[peer])))
    return format_table('lrlrr', ('', 'ours, images/s', 'fastest peer', 'speed', 'memory'), rows)


def format_ratios(results: Dict[str, Result]) -> str:
    """Format the first contestant of each experiment against each of the others.

    Args:
        results: Of `benchmarks.side_by_side`, by what was done.
    """
    rows = []
    for what, result in results.items():
        (ours, mine), *peers = result['medians'].items()
        digits = ',.0f' if result['unit'] == 'images/s' else '.2f'
        rows += [(f'{what}: `{ours}`', f"{mine:{digits}} {result['unit']}", f'`{peer}`',
                  f"{theirs:{digits}} {result['unit']}", f'{mine / theirs:.2f}') for peer, theirs in peers]
    return format_table('lrlrr', ('', 'median', 'against', 'median', 'ratio'), rows)


def format_steps(result: Result) -> str:
    """Format rates and peak memory of training steps."""
    return format_table('lrr', ('', 'images/s', 'peak memory'), (
        (f'`{name}`', f'{rate:,.0f}', f"{result['peak_memory_bytes'][name] / 2 ** 30:.1f} GiB")
        for name, rate in result['medians'].items()))


def format_compilation(result: Result) -> str:
    """Format the seconds of first and later calls."""
    medians, calls = result['medians'], ('first call', 'second call', 'later calls')
    names = dict.fromkeys(key.partition(':')[0] for key in medians)
    return format_table('lrrr', ('', 'first call, s', 'second', 'later'), (
        (name, *(f"{medians[f'{name}: {call}']:.3g}" for call in calls)) for name in names))


def format_int8(result: Result) -> str:
    """Format errors, times and sizes by type."""
    def format_value(value: Any) -> str:
        return '-' if value is None else f'{value:,}' if isinstance(value, int) else f'{value:.2f}'

    types = 'float32', 'bfloat16', 'int8'
    measured = {'error, %': result['error'], **{
        f'ms an image in onnxruntime, {batch}': times for batch, times in result['milliseconds_per_image'].items()},
        'bytes of the file': result['bytes']}
    return format_table('lrrr', ('', *types), (
        (what, *(format_value(values.get(kind)) for kind in types)) for what, values in measured.items()))


def format_growth(result: Result) -> str:
    """Format the lines through the networks by depth."""
    def list_rows() -> Iterator[Sequence[str]]:
        for family, quantities in result['families'].items():
            for quantity, measured in quantities.items():
                (factor, unit), line = {'s': (1e3, 'ms'), 'b': (2 ** -20, 'MiB')}[measured['unit'][0]], measured['line']
                _, space, of_what = measured['unit'].partition(' ')
                yield (f"{quantity.replace('_', ' ')}, {unit}{space}{of_what}", family,
                       f"{1000 * factor * line['slope']:.1f}", f"{factor * line['intercept']:.1f}", f"{line['r2']:.4f}")

    return format_table('llrrr', ('', 'units', '1,000 layers', 'intercept', 'R^2'), list_rows())


def read_section(folder: Path, section: str) -> Result:
    """Read what a section of benchmarks.gpu wrote, without its remarks; nothing if it has not run."""
    path = folder / f'{section}.json'
    results = json.loads(path.read_text())['results'] if path.exists() else {}
    return {key: value for key, value in results.items() if isinstance(value, dict)
            and ('images_per_second' in value or 'contestants' in value)}


def format_gpu(folder: Path) -> str:
    """Format the trainer's images/s beside their goals, then ours against the fastest peer, and what card it was."""
    crews = {**read_section(folder, 'cifar'), **read_section(folder, 'placements')}
    runs = {**read_section(folder, 'training'), **read_section(folder, 'inference')}
    if not crews and not runs:
        return 'No card has run it yet.'
    facts = json.loads(next(path for path in sorted(folder.glob('*.json'))).read_text())
    parts = [f"{facts['hardware']}, torch {facts['versions']['torch']}, commit {str(facts['commit'])[:8]}."]
    if crews:
        parts.append(format_table('lrr', ('', 'images/s', 'goal on an H100'), (
            (name, f"{found['images_per_second']:,.0f}", format(found['goal'], ',') if found['goal'] else '-')
            for name, found in crews.items())))
    rows = []
    for name, run in runs.items():
        peer, contestants = find_fastest_peer(run), run['contestants']
        for ours in [found for found in contestants if peer and not found.startswith(PACKAGES)]:
            mine, theirs = (contestants[contestant]['images_per_second'] for contestant in (ours, peer))
            rows.append((f'{name}: {ours}', f'{mine:,.0f}', f'{peer}: {theirs:,.0f}', f'{mine / theirs:.2f}',
                         compare_memory(contestants[ours], contestants[peer])))
    if rows:
        parts.append(format_table('lrlrr', ('', 'ours, images/s', 'fastest peer', 'speed', 'memory'), rows))
    return '\n\n'.join(parts)
