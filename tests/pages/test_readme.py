"""What the README, the names and the page of speed say is what the package and the result files say."""
import json
from pathlib import Path

from timm_preact.benchmark import fastest_peer
from timm_preact.catalog import MEASURED, PAPER, SIZES, depth_of
from timm_preact.preact_resnet import default_cfgs
from timm_preact.weights.sources import SOURCES
from train.benchmark import filled

ROOT = Path(__file__).parents[2]
README = (ROOT / 'README.md').read_text()
NAMES, SPEED = ((ROOT / 'docs' / f'{name}.md').read_text() for name in ('names', 'speed'))


def names_table() -> str:
    """The table of names, from the catalog."""
    lines = ['| name | depth | parameters | MACs | paper | published weights | ours |', '|---|--:|--:|--:|---|---|---|']
    for name, size in SIZES.items():
        tags = default_cfgs[name].tags
        paper = ', '.join(f'{PAPER[name][tag]} ({tag})' for tag in tags if tag in PAPER.get(name, {}))
        reported = ', '.join(
            f"{SOURCES[f'{name}.{tag}'].reported[0]:.2f} ({tag})" for tag in tags if f'{name}.{tag}' in SOURCES)
        ours = ', '.join(f"{MEASURED[f'{name}.{tag}']:.2f} ({tag})" for tag in tags if f'{name}.{tag}' in MEASURED)
        lines.append(f"| `{name}` | {depth_of(name)} | {size.params / 1e6:.2f} M | {size.macs / 1e6:,.0f} M | "
                     f"{paper or '-'} | {reported or '-'} | {ours or '-'} |")
    return '\n'.join(lines)


def benchmark_table() -> str:
    """The table of ratios, from the result files."""
    lines = ['| | median | against | median | ratio |', '|---|--:|---|--:|--:|']
    for name, what in (('training', 'train `preact_resnet20`'),
                       ('steps_preact_resnet110_cuda', 'train `preact_resnet110`, H100'),
                       ('creation', 'create `preact_resnet1001`'), ('imports', 'import')):
        result = json.loads((ROOT / 'benchmarks' / 'results' / f'benchmark_{name}.json').read_text())
        (ours, mine), *peers = result['medians'].items()
        digits = ',.0f' if result['unit'] == 'images/s' else '.2f'
        for peer, theirs in peers:
            lines.append(f"| {what}: `{ours}` | {mine:{digits}} {result['unit']} | `{peer}` | "
                         f"{theirs:{digits}} {result['unit']} | {mine / theirs:.2f} |")
    return '\n'.join(lines)


def memory_table() -> str:
    """The table of ImageNet steps, from the result file."""
    result = json.loads((ROOT / 'benchmarks' / 'results' / 'benchmark_imagenet_cuda.json').read_text())
    return '\n'.join(['| | images/s | peak memory |', '|---|--:|--:|', *(
        f"| `{name}` | {rate:,.0f} | {result['peak_memory_bytes'][name] / 2 ** 30:.1f} GiB |"
        for name, rate in result['medians'].items())])


def test_the_table_of_names_is_the_catalogs():
    assert names_table() in NAMES


def test_the_ratios_are_the_result_files():
    assert benchmark_table() in SPEED
    assert memory_table() in SPEED


def test_the_tables_of_speed_and_memory_are_the_result_files():
    assert filled(SPEED) == SPEED
    assert SPEED.count('<!-- /') >= 10 and '-->\n<!-- /' not in SPEED


def test_the_readme_is_one_screen():
    assert README.count('\n') <= 150


def test_the_price_of_recomputing_is_the_result_files():
    """Of a step where malloc keeps its pages."""
    result = json.loads((ROOT / 'benchmarks' / 'results' / 'settled_training.json').read_text())
    price = {run['setting']['dtype']: 1 / (
        run['contestants']['recompute_norms']['images_per_second']
        / run['contestants'][fastest_peer(run)]['images_per_second']) for run in result['runs']}
    assert (f"takes {price['float32']:.2f} times pytorchcv's in float32 and {price['bfloat16']:.2f} times in bfloat16"
            in ' '.join(SPEED.split()))


def test_what_propagation_costs_is_the_result_file():
    result = json.loads((ROOT / 'benchmarks' / 'results' / 'benchmark_propagation.json').read_text())
    (ours, plain), (memory, peer) = result['medians'].values(), result['peak_memory_bytes'].values()
    assert (f"{result['model'][-4:]} layers at batch {result['batch_size']} take {ours:.0f} seconds and "
            f'{memory / 2 ** 30:.1f} GiB on 2 cores, a forward and backward pass {plain:.0f} and {peer / 2 ** 30:.1f}'
            in ' '.join(SPEED.split()))


def test_ci_runs_the_readmes_test_command():
    """.ci/run cuts the command out of the README between its mark and the end of the code block."""
    block = README.split('<!-- tests -->\n```sh\n')[1].split('\n```')[0]
    assert block == "pip install '.[test]' && pytest"
    assert '<!-- tests -->' in (ROOT / '.ci' / 'run').read_text()
