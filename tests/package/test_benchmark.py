"""timm-preact benchmark: what it measures is what it says, and peers compute what we compute."""
import json

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from timm_preact import benchmark
from timm_preact.benchmark import Peer, alternate, compare_logits, find_peers, timing
from timm_preact.cli import app
from timm_preact.errors import UserError
from timm_preact.preact_resnet import MODEL_ARGS


def run(*arguments):
    return CliRunner().invoke(app, ['benchmark', *map(str, arguments)], catch_exceptions=False)


@pytest.fixture
def quick(monkeypatch):
    """One call a measurement."""
    monkeypatch.setattr(timing, 'SECONDS', 0.)


def test_contestants_take_turns_and_each_begins_a_round():
    order = []
    measures = {name: lambda name=name: order.append(name) or len(order) for name in 'abc'}
    measured = alternate(measures, 4)
    assert ''.join(order) == 'abcbcacababc'
    assert measured == {'a': [1, 6, 8, 10], 'b': [2, 4, 9, 11], 'c': [3, 5, 7, 12]}


def test_inference_is_measured_drawn_and_written(quick, tmp_path):
    result = run('preact_resnet20_pcv', 'preact_resnet56_pcv', '--batch-size', 2, '--rounds', 3, '--dtype', 'float32',
                 '--dtype', 'bfloat16', '--to', tmp_path / 'new' / 'table')
    assert result.exit_code == 0, result.output
    written = json.loads((tmp_path / 'new' / 'table.json').read_text())
    assert written['versions']['pytorchcv'] and written['versions']['torch'] == torch.__version__.partition('+')[0]
    assert written['command'].startswith('timm-preact') and 'thread' in written['hardware']
    assert [(run['setting']['name'], run['setting']['dtype']) for run in written['runs']] == [
        (name, dtype) for name in ('preact_resnet20_pcv', 'preact_resnet56_pcv') for dtype in ('float32', 'bfloat16')]
    for measured in written['runs']:
        assert list(measured['contestants']) == [
            'optimize()', 'as created',
            f"pytorchcv {measured['setting']['name'].replace('preact_', 'pre').replace('_pcv', '_cifar10')}"]
        for row in measured['contestants'].values():
            assert len(row['seconds']) == 3
            assert row['images_per_second'] == pytest.approx(2 / sorted(row['seconds'])[1])
    assert written['operations_per_second']['float32'] > 1e9
    assert '| optimize() |' in result.output
    with Image.open(tmp_path / 'new' / 'table.png') as picture:
        assert picture.width > 1500  # a panel each for float32 and bfloat16


def test_three_panels_leave_no_empty_one(tmp_path):
    setting = dict(name='preact_resnet20_pcv', task='inference', batch_size=1, image_size=32)
    rows = {'optimize()': dict(images_per_second=1., memory=1)}
    drawn = []
    for dtypes in (['a', 'b', 'c'], ['a', 'b', 'c', 'd']):
        path = tmp_path / 'table.png'
        benchmark.draw(dict(runs=[dict(setting=dict(setting, dtype=d), contestants=rows) for d in dtypes]), path)
        with Image.open(path) as picture:
            assert picture.width == 1920 and picture.height == 1380
            drawn.append(picture.convert('L').crop((1000, 700, 1900, 1360)).getextrema())
    assert drawn[0] == (255, 255) and drawn[1][0] < 100  # the fourth quarter is white, then not


def test_every_line_of_a_picture_is_drawn():
    from matplotlib.figure import Figure
    axes = Figure().subplots()
    row = dict(images_per_second=1., memory=1)
    ours = ['optimize()', 'optimize(compile=True)', 'as created', 'optimize(cuda_graph=True)', 'compile_units']
    peers = [peer.title for peer in find_peers('preact_resnet50')]
    benchmark.draw_panel(axes, [dict(
        setting=dict(name='preact_resnet50'), contestants={name: row for name in (*ours, *peers)})])
    labels = {text.get_text() for text in axes.get_legend().get_texts()}
    assert len(labels) == len(ours) + sum(peer.source is not None for peer in find_peers('preact_resnet50')) >= 7
    looks = {(line.get_color(), line.get_linestyle()) for line in axes.get_lines()}
    assert len(looks) == len(labels)


def test_training_counts_what_is_kept_for_backward(quick, tmp_path):
    result = run('preact_resnet110_pcv', '--task', 'training', '--batch-size', 2, '--rounds', 1, '--to',
                 tmp_path / 'table')
    assert result.exit_code == 0, result.output
    rows = json.loads((tmp_path / 'table.json').read_text())['runs'][0]['contestants']
    peer = rows['pytorchcv preresnet110_cifar10']['memory']
    assert list(rows) == ['recompute_norms', 'checkpointed by 6', 'as created', 'pytorchcv preresnet110_cifar10']
    assert rows['recompute_norms']['memory'] < 0.54 * peer < rows['as created']['memory'] < 1.01 * peer
    assert rows['checkpointed by 6']['memory'] < 0.15 * peer


@pytest.mark.parametrize('arguments, sentence', [
    (['preact_resnet21'], 'preact_resnet21 is no network of ours: timm-preact list names them.'),
    (['resnet50'], 'resnet50 is no network of ours'),
    (['preact_resnet20', '--task', 'flying'], '--task flying is not known: choose one of inference, training.'),
    (['preact_resnet20', '--dtype', 'int3'], '--dtype int3 is not known: choose from float32, bfloat16, float16.'),
    (['preact_resnet20', '--dtype', 'nn'], '--dtype nn is not known'),
    (['preact_resnet20', '--against', 'timm,keras'], '--against keras is not known: choose from timm,pytorchcv'),
    (['preact_resnet20', '--device', 'abacus'], '--device abacus is not there'),
    (['preact_resnet20', '--cuda-graph'], 'a CUDA graph needs a GPU'),
])
def test_bad_input_ends_with_a_sentence(arguments, sentence):
    result = run(*arguments)
    assert result.exit_code == 2
    assert result.output.startswith('error: ') and sentence in result.output and result.output.count('\n') == 1


@pytest.mark.parametrize('name', MODEL_ARGS)
def test_only_a_net_of_the_same_layout_is_called_the_compare_logits(name):
    for peer in find_peers(name):
        if peer.source is None:
            with pytest.raises(UserError, match='does not compute what'):
                compare_logits(name, peer)
        elif peer.package == 'pytorchcv':
            assert '_pcv' in name or 'stem_type' in MODEL_ARGS[name]


PAIRS = [(name, peer) for name in MODEL_ARGS for peer in find_peers(name) if peer.source]


def test_every_package_has_a_net_to_compare_with():
    assert {peer.package for _, peer in PAIRS} == {'timm', 'pytorchcv', 'torchvision'}
    assert ('preact_resnet152', Peer('timm', 'resnetv2_152', 'timm_resnetv2')) in PAIRS


def test_a_peer_given_our_weights_computes_the_same():
    assert compare_logits('preact_resnet20_pcv', find_peers('preact_resnet20_pcv')[0]) < 1e-5
    assert compare_logits('preact_resnet18', find_peers('preact_resnet18')[1]) < 1e-5


@pytest.mark.slow
@pytest.mark.parametrize('name, peer', PAIRS, ids=[f'{name}-{peer.title}' for name, peer in PAIRS])
def test_every_peer_given_our_weights_computes_the_same(name, peer):
    assert compare_logits(name, peer) < 1e-5


