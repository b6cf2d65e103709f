"""What prose of the README and of the page of speed says is what the result files say."""
import json

from timm_preact.benchmark import find_fastest_peer
from train import places

README, SPEED = places.README.read_text(), (places.DOCS / 'speed.md').read_text()


def test_the_readme_is_one_screen():
    assert README.count('\n') <= 150


def test_the_price_of_recomputing_is_the_result_files():
    """Of a step where malloc keeps its pages."""
    result = json.loads((places.BENCHMARKS / 'settled_training.json').read_text())
    price = {run['setting']['dtype']: 1 / (
        run['contestants']['recompute_norms']['images_per_second']
        / run['contestants'][find_fastest_peer(run)]['images_per_second']) for run in result['runs']}
    assert (f"takes {price['float32']:.2f} times pytorchcv's in float32 and {price['bfloat16']:.2f} times in bfloat16"
            in ' '.join(SPEED.split()))


def test_what_propagation_costs_is_the_result_file():
    result = json.loads((places.BENCHMARKS / 'benchmark_propagation.json').read_text())
    (ours, plain), (memory, peer) = result['medians'].values(), result['peak_memory_bytes'].values()
    assert (f"{result['model'][-4:]} layers at batch {result['batch_size']} take {ours:.0f} seconds and "
            f'{memory / 2 ** 30:.1f} GiB on 2 cores, a forward and backward pass {plain:.0f} and {peer / 2 ** 30:.1f}'
            in ' '.join(SPEED.split()))


def test_ci_runs_the_readmes_test_command():
    """.ci/run cuts the command out of the README between its mark and the end of the code block."""
    block = README.split('<!-- tests -->\n```sh\n')[1].split('\n```')[0]
    assert block == "pip install '.[test]' && pytest"
    assert '<!-- tests -->' in (places.ROOT / '.ci' / 'run').read_text()
