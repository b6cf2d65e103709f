"""Exported networks compute what the network computes, in the runtimes that they are for."""
import copy
import functools
import shutil
import sys
from collections import Counter

import numpy as np
import pytest
import timm
import torch
from test_cli import refusal, run

from timm_preact.errors import UserError
from timm_preact.evaluation import Images, eval_transform
from timm_preact.export import export
from timm_preact.inference import optimize
from timm_preact.quantization import quantize

onnx = pytest.importorskip('onnx')
ort = pytest.importorskip('onnxruntime')
pytest.importorskip('onnxscript')

# name -> arguments, side of the images
NETWORKS = {
    'preact_resnet20': (dict(pretrained=True), 32),
    'preact_resnet164': (dict(layers=(2, 1, 1)), 32),
    'preact_resnet50': (dict(layers=(1, 1, 1, 1)), 64),
    'preact_resnet110_orig': (dict(layers=(2, 1, 1)), 32),
    'preact_resnet18_kuang': (dict(layers=(1, 1, 1, 1)), 32),
    'preact_resnet50_wei': (dict(layers=(1, 1, 1, 1), channels=(32, 48, 64, 96), stem_chs=16), 32),
}


def network(name):
    """A network in eval mode whose BatchNorms have seen images, so that each does something of its own."""
    kwargs, size = NETWORKS[name]
    torch.manual_seed(0)
    model = timm.create_model(name, **kwargs)
    if not kwargs.get('pretrained'):
        with torch.no_grad():
            for _ in range(3):
                model(torch.randn(8, 3, size, size))
    return model.eval(), (3, size, size)


def batch(size, count=5):
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(1))


def assert_close(y, expected):
    assert y.shape == expected.shape
    assert (torch.as_tensor(y) - expected).abs().max() <= 1e-4 * expected.abs().max()


def session(path):
    options = ort.SessionOptions()
    options.intra_op_num_threads = 2
    return ort.InferenceSession(path, options)


def nodes(path):
    return Counter(node.op_type for node in onnx.load(path).graph.node)


@pytest.fixture(scope='module')
def optimised(tmp_path_factory):
    """optimised(name): the ONNX file of an optimised network, alone in its folder, made when it is first asked for."""
    @functools.cache
    def make(name):
        model, size = network(name)
        file = tmp_path_factory.mktemp('optimised') / f'{name}.onnx'
        export(optimize(model), file, input_size=size)
        return file

    return make


@torch.no_grad()
@pytest.mark.parametrize('name', NETWORKS)
def test_onnx_is_the_network_for_any_batch(name, optimised):
    model, size = network(name)
    file = optimised(name)
    assert list(file.parent.iterdir()) == [file]  # weights inside
    for count in (1, 5):
        x = batch(size, count)
        assert_close(session(file).run(None, {'images': x.numpy()})[0], model(x))


@pytest.mark.parametrize('name', ['preact_resnet20', 'preact_resnet110_orig'])
def test_onnx_has_no_batchnorm_behind_a_convolution_and_no_more_nodes_than_the_plain_network(name, optimised, tmp_path):
    """The exporter folds BatchNorms into convolutions by itself; what it makes of the stream must cost nothing more."""
    model, size = network(name)
    export(model, tmp_path / 'plain.onnx', input_size=size)
    kinds = nodes(optimised(name))
    assert kinds == nodes(tmp_path / 'plain.onnx') and 'Mul' not in kinds
    graph = onnx.load(optimised(name)).graph
    made_by = {output: node.op_type for node in graph.node for output in node.output}
    assert all(made_by[node.input[0]] != 'Conv' for node in graph.node if node.op_type == 'BatchNormalization')


@torch.no_grad()
def test_onnx_of_a_backbone_has_every_tap(tmp_path):
    backbone = timm.create_model('preact_resnet20', layers=(1, 1, 1), features_only=True, feature_norm=True).eval()
    export(optimize(backbone), tmp_path / 'taps.onnx', input_size=(3, 32, 32))
    x = batch((3, 32, 32))
    taps = session(tmp_path / 'taps.onnx').run(None, {'images': x.numpy()})
    for tap, expected in zip(taps, backbone(x), strict=True):
        assert_close(tap, expected)


@torch.no_grad()
def test_a_batch_size_that_was_named_is_the_only_one(tmp_path):
    model, size = network('preact_resnet110_orig')
    export(optimize(model), tmp_path / 'one.onnx', batch_size=1)
    fixed = session(tmp_path / 'one.onnx')
    assert fixed.get_inputs()[0].shape == [1, 3, 32, 32]
    assert_close(fixed.run(None, {'images': batch(size, 1).numpy()})[0], model(batch(size, 1)))


@torch.no_grad()
@pytest.mark.parametrize('name', ['preact_resnet164', 'preact_resnet110_orig'])
def test_torch_export_is_the_network_in_fewer_operators(name, tmp_path):
    model, size = network(name)
    operators = {}
    for kind, net in (('plain', model), ('optimised', optimize(model))):
        export(net, tmp_path / f'{kind}.pt2', input_size=size)
        program = torch.export.load(tmp_path / f'{kind}.pt2')
        calls = [str(node.target) for node in program.graph.nodes if node.op == 'call_function']
        operators[kind] = [name for name in calls if 'view' not in name]  # of a parameter: nothing is computed
        for count in (1, 5):
            assert_close(program.module()(batch(size, count)), model(batch(size, count)))
    assert not any('batch_norm' in operator for operator in operators['optimised'])
    assert len(operators['optimised']) < len(operators['plain'])


@torch.no_grad()
@pytest.mark.parametrize('name, suffix', [('preact_resnet164', 'pt'), ('preact_resnet110_orig', 'ts')])
def test_torchscript_is_the_network(name, suffix, tmp_path):
    model, size = network(name)
    export(optimize(model), tmp_path / f'script.{suffix}', input_size=size)
    script = torch.jit.load(tmp_path / f'script.{suffix}')
    for side in (size[1], size[1] + 16):
        x = batch((3, side, side))
        assert_close(script(x), model(x))


@pytest.mark.slow
@torch.no_grad()
def test_an_aotinductor_package_is_the_network(tmp_path):
    model, size = network('preact_resnet20')
    export(optimize(model), tmp_path / 'package.pt2', format='aoti')
    package = torch._inductor.aoti_load_package(str(tmp_path / 'package.pt2'))
    for count in (1, 5):
        assert_close(package(batch(size, count)), model(batch(size, count)))


@torch.no_grad()
def test_exporting_changes_nothing_about_the_model(tmp_path):
    model, size = network('preact_resnet164')
    optimised = optimize(model)
    before = copy.deepcopy(optimised)
    export(optimised, tmp_path / 'a.onnx')
    assert repr(optimised) == repr(before) and torch.equal(optimised(batch(size)), before(batch(size)))
    weight = optimised.stem.conv.weight
    assert weight.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize('name, kwargs, sentence', [
    ('net.xyz', {}, 'names no format by its end'),
    ('net.onnx', dict(format='aoti'), 'ends in .pt2'),
    ('net.onnx', dict(format='caffe'), 'choose onnx, torch-export, aoti, torchscript'),
    ('no/such/folder/net.onnx', {}, 'is no folder'),
    ('net.onnx', dict(batch_size=0), 'batch_size must be at least 1, got 0'),
])
def test_what_cannot_be_written_is_refused_and_leaves_nothing(name, kwargs, sentence, tmp_path):
    model, _ = network('preact_resnet20')
    with pytest.raises(UserError, match=sentence):
        export(model, tmp_path / name, **kwargs)
    assert not list(tmp_path.iterdir())


def test_a_network_in_training_mode_is_refused(tmp_path):
    with pytest.raises(UserError, match='call model.eval'):
        export(timm.create_model('preact_resnet20').train(), tmp_path / 'net.onnx')


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16])
def test_onnx_of_half_precision_is_refused(dtype, tmp_path):
    """ONNX has no convolution of two types, and a `ScaleShift` of half precision stays in float32."""
    model, _ = network('preact_resnet20')
    with pytest.raises(UserError, match='float32'):
        export(optimize(model, dtype=dtype), tmp_path / 'net.onnx')


def test_a_model_without_a_config_needs_an_input_size(tmp_path):
    with pytest.raises(UserError, match='pass input_size'):
        export(torch.nn.Conv2d(3, 4, 3).eval(), tmp_path / 'net.onnx')


@pytest.mark.parametrize('package', ['onnx', 'onnxscript'])
def test_missing_packages_are_named(package, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)  # as Python marks what cannot be imported
    model, _ = network('preact_resnet20')
    with pytest.raises(UserError, match=r"pip install 'timm-preact\[export\]'"):
        export(model, tmp_path / 'net.onnx')


def test_a_machine_without_a_compiler_is_told_so(tmp_path, monkeypatch):
    from torch._inductor import config
    monkeypatch.setattr(config.cpp, 'cxx', ('no-such-compiler',))
    model, _ = network('preact_resnet20')
    with pytest.raises(UserError, match='C.. compiler'):
        export(model, tmp_path / 'net.pt2', format='aoti')


@pytest.fixture(scope='module')
def prepared(sample):
    """The images that ship with the package, as preact_resnet20 takes them."""
    model, _ = network('preact_resnet20')
    return Images(sample, eval_transform(model))


@pytest.fixture(scope='module')
def files(prepared, optimised, tmp_path_factory):
    """A folder with preact_resnet20 in float32 and in int8."""
    folder = tmp_path_factory.mktemp('onnx')
    shutil.copy(optimised('preact_resnet20'), folder / 'float32.onnx')
    quantize(folder / 'float32.onnx', folder / 'int8.onnx', prepared.spread(100)[0].numpy())
    return folder


def test_int8_names_real_images_as_float32_does(sample, prepared, files):
    x = prepared.spread(len(prepared))[0].numpy()
    top1 = {}
    for kind in ('float32', 'int8'):
        logits = session(files / f'{kind}.onnx').run(None, {'images': x})[0]
        top1[kind] = 100 * (logits.argmax(1) == sample.labels).mean()
    assert top1['float32'] > 85 and abs(top1['int8'] - top1['float32']) <= 2
    assert (files / 'int8.onnx').stat().st_size < 0.5 * (files / 'float32.onnx').stat().st_size


def test_int8_keeps_the_stream_in_integers(files, tmp_path):
    """Every convolution, norm and addition is an integer kernel in what onnxruntime runs."""
    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / 'run.onnx')
    options.log_severity_level = 3  # the file is for this machine only, which it warns about
    ort.InferenceSession(files / 'int8.onnx', options)
    kinds = nodes(tmp_path / 'run.onnx')
    assert kinds['QLinearConv'] >= 19 and kinds['QLinearAdd'] == 9
    assert not kinds.keys() & {'Conv', 'BatchNormalization', 'Add', 'Mul'}


@pytest.mark.parametrize('content, images, sentence', [
    (None, np.zeros((4, 3, 32, 32)), 'does not exist'),
    (b'no network', np.zeros((4, 3, 32, 32)), 'is no network'),
    ('float32', np.zeros((4, 3, 16, 16)), 'prepare them as it takes them'),
    ('float32', np.zeros((0, 3, 32, 32)), 'prepare them as it takes them'),
    ('fixed', np.zeros((4, 3, 32, 32)), 'without a batch size'),
])
def test_what_cannot_be_quantised_is_refused(content, images, sentence, files, tmp_path):
    source = tmp_path / 'source.onnx'
    if content == 'float32':
        source = files / 'float32.onnx'
    elif content == 'fixed':
        export(network('preact_resnet110_orig')[0], source, batch_size=2)
    elif content is not None:
        source.write_bytes(content)
    with pytest.raises(UserError, match=sentence):
        quantize(source, tmp_path / 'int8.onnx', images)
    assert not (tmp_path / 'int8.onnx').exists()


@pytest.mark.parametrize('name, options', [('net.pt', {}), ('net.onnx', dict(batch_size=2))])
def test_int8_is_of_onnx_for_any_batch(name, options, prepared, tmp_path):
    with pytest.raises(UserError, match='name no other format, and no batch size'):
        export(network('preact_resnet20')[0], tmp_path / name, int8=prepared.spread(2)[0], **options)
    assert not list(tmp_path.iterdir())


def test_the_command_writes_each_format_and_int8(npz_folder, prepared, tmp_path):
    x = prepared.spread(10)[0].numpy()
    with torch.no_grad():
        expected = network('preact_resnet20')[0](torch.from_numpy(x))
    for arguments in (['plain.onnx', '--plain'], ['int8.onnx', '--int8', '--data', npz_folder]):
        name, *options = arguments
        assert 'holds preact_resnet20 as onnx' in run('export', 'preact_resnet20', '--to', tmp_path / name, *options)
        logits = session(tmp_path / name).run(None, {'images': x})[0]
        if '--int8' not in options:
            assert_close(logits, expected)
        else:
            assert (logits.argmax(1) == expected.argmax(1).numpy()).mean() >= 0.9
    assert 'torchscript' in run('export', 'preact_resnet20', '--to', tmp_path / 'a.pt')
    assert_close(torch.jit.load(tmp_path / 'a.pt')(torch.from_numpy(x)), expected)


def test_the_command_takes_weights_and_a_size_of_ones_own(tmp_path):
    model = timm.create_model('preact_resnet18', num_classes=10)
    torch.save({'state_dict': model.state_dict()}, tmp_path / 'checkpoint.pth.tar')
    run('export', 'preact_resnet18', '--to', tmp_path / 'own.onnx', '--weights', tmp_path / 'checkpoint.pth.tar',
        '--num-classes', 10, '--img-size', 64)
    x = batch((3, 64, 64))
    with torch.no_grad():
        assert_close(session(tmp_path / 'own.onnx').run(None, {'images': x.numpy()})[0], model.eval()(x))


@pytest.mark.parametrize('options, sentence', [
    (['--to', 'net.xyz'], 'names no format by its end'),
    (['--to', 'net.onnx', '--int8'], 'pass both or neither'),
    (['--to', 'net.pt', '--int8', '--data', 'folder'], 'no other format'),
    (['--to', 'net.onnx', '--data', 'folder'], 'pass both or neither'),
])
def test_the_command_refuses_in_one_sentence(options, sentence, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert sentence in refusal('export', 'preact_resnet20', *options)
    assert not list(tmp_path.iterdir())
