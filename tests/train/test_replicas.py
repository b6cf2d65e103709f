"""Networks that train as one: in Triton's interpreter, compiled for a card without one, and what they refuse."""
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from support.cards import fit

from timm_preact.data import ImageSet
from timm_preact.layers import Unfit, layers_of
from train.batches import Batches
from train.recipe import choose_recipe

triton = pytest.importorskip('triton')
CPU = torch.device('cpu')
# Rows whose kernels are all that the paper's tables need
ROWS = [('preact_resnet110', {}), ('preact_resnet110_orig', {}), ('preact_resnet110_bn_after_add', {}),
        ('preact_resnet110_relu_before_add', {}), ('preact_resnet110_relu_only', {}),
        ('preact_resnet110_orig_const_scale', {}), ('preact_resnet110_orig_excl_gate', {}),
        ('preact_resnet110_orig_shortcut_gate', {}), ('preact_resnet110_orig_dropout_shortcut', {}),
        ('preact_resnet110_orig_conv_shortcut', {}), ('preact_resnet110_1layer', {}),
        ('preact_resnet110_1layer_orig', {}), ('preact_resnet164', {}), ('preact_resnet164_orig', {}),
        ('preact_resnet110', dict(shortcut='B')), ('preact_resnet110', dict(shortcut='C'))]


def interpret(*arguments):
    """In a process of its own: Triton reads the variable when it is imported."""
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-n', '0', 'support/interpreted_replicas.py', '-p', 'no:cacheprovider',
         *arguments],
        cwd=Path(__file__).parents[1], capture_output=True, text=True,
        env=dict(os.environ, TRITON_INTERPRET='1', OMP_NUM_THREADS='1'))
    assert done.returncode == 0, done.stdout[-3000:]


def test_in_the_interpreter_they_are_the_modules():
    interpret()


@pytest.mark.slow
def test_in_the_interpreter_fifty_steps_are_the_modules():
    interpret('-m', 'slow')


def planned(name, bn_group=64, classes=10, batch_size=128, **kwargs):
    """Replicas of a row's network with two units a stage, on images of the right size."""
    from train.replicas import Replicas
    images = ImageSet(np.zeros((128, 32, 32, 3), np.uint8), np.zeros(128, np.int64), [str(i) for i in range(classes)])
    recipe = choose_recipe('paper', bn_group=bn_group, batch_size=batch_size, average=0.05)
    batches = Batches(images, recipe, torch.zeros(3), torch.ones(3), CPU)
    model = timm.create_model(name, num_classes=classes, **{**dict(layers=(2, 2, 2)), **kwargs})
    return Replicas([model], recipe, batches, batches, CPU)


TYPES = {torch.float32: '*fp32', torch.bfloat16: '*bf16', torch.int32: '*i32', torch.int64: '*i64',
         torch.uint8: '*u8'}


def source_of(launch):
    """What is compiled for a launch, and how."""
    from triton.compiler import ASTSource
    kernel, names = launch.kernel, launch.kernel.arg_names
    types, attributes, constants, options = {}, {}, {}, {}
    for i, (name, arg) in enumerate(zip(names, launch.args, strict=False)):
        types[name] = TYPES[arg.dtype] if isinstance(arg, torch.Tensor) else 'fp32' if type(arg) is float else 'i32'
        if isinstance(arg, torch.Tensor) or type(arg) is int and arg % 16 == 0:
            attributes[(i,)] = [['tt.divisibility', 16]]
    for name, value in launch.constants.items():
        (options if name.startswith('num_') else constants)[name] = value
    return ASTSource(fn=kernel, signature={name: types.get(name, 'constexpr') for name in names}, attrs=attributes,
                     constexprs={(names.index(name),): value for name, value in constants.items()}), options


SHARED = {80: 163 * 1024, 90: 227 * 1024}  # bytes that a block may have
SPILLED = {80: 16, 90: 0}  # bytes a thread may store: of the older card two registers, outside the loops


def assert_fits(launches, capability):
    for launch in launches:
        source, options = source_of(launch)
        shared, registers, spilled, _ = fit(source, capability, options)
        what = launch.kernel.__name__, launch.constants, shared, registers, spilled
        assert shared <= SHARED[capability] and registers <= 255 and spilled <= SPILLED[capability], what


def distinct(launches):
    """One launch of each kernel and set of constants."""
    return {(launch.kernel.__name__, *sorted(launch.constants.items())): launch for launch in launches}


@pytest.mark.parametrize('capability', SHARED)
def test_the_largest_kernels_fit_a_card_without_one(capability):
    launches = [launch for launch in distinct(planned('preact_resnet110').launches).values()
                if launch.constants.get('CI') == launch.constants.get('CO') == 32]
    assert {launch.kernel.__name__ for launch in launches} == {
        'convolution_kernel', 'convolution_backward_kernel', 'weight_kernel', 'reduce_weight_kernel'}
    assert_fits(launches[-4:], capability)


@pytest.mark.slow
@pytest.mark.parametrize('capability', SHARED)
def test_every_kernel_of_the_papers_rows_fits_a_card(capability):
    launches = {}
    for name, kwargs in ROWS:
        launches.update(distinct(planned(name, **kwargs).launches))
    assert_fits(launches.values(), capability)


@pytest.mark.parametrize('name, kwargs', ROWS)
def test_every_row_of_tables_1_to_3_is_planned(name, kwargs):
    """And gradients have few buffers: they are used again."""
    replicas = planned(name, **kwargs)
    buffers = sum(len(free) for free in replicas.free.values())
    assert not replicas.gradients and not replicas.pending and not replicas.raw
    assert buffers <= 24 and len(replicas.training) > len(replicas.net.layers)


@pytest.mark.parametrize('arguments, sentence', [
    (dict(bn_group=48), 'groups of 48 images do not divide a batch of 128'),
    (dict(channels=(24, 32, 64)), 'goes from 16 to 24 channels'),
    (dict(channels=(64, 128, 256)), 'goes from 64 to 128 channels'),
    (dict(drop_path_rate=0.1), 'is no unit of the paper'),
    (dict(act_layer='gelu'), 'is neither a BatchNorm nor a ReLU'),
    (dict(biases=('inner',)), 'is no plain convolution'),
    (dict(global_pool='max'), 'its head or its checkpointing'),
    (dict(classes=200), '200 classes are more than 128'),
])
def test_what_the_kernels_do_not_take_is_refused_with_a_reason(arguments, sentence):
    with pytest.raises(Unfit, match=sentence):
        planned('preact_resnet110', **arguments)


def test_a_norm_of_one_value_is_refused_as_pytorch_does():
    from train.replicas import Replicas
    images = ImageSet(np.zeros((4, 2, 2, 3), np.uint8), np.zeros(4, np.int64), ['a', 'b'])
    recipe = choose_recipe('paper', batch_size=4, bn_group=1)
    batches = Batches(images, recipe, torch.zeros(3), torch.ones(3), CPU)
    model = timm.create_model('preact_resnet110', layers=(1, 1), channels=(16, 32), num_classes=2)
    with pytest.raises(Unfit, match='one value of a channel'):
        Replicas([model], recipe, batches, batches, CPU)


@pytest.mark.parametrize('height, width', [(33, 32), (30, 32)])
def test_an_odd_map_is_refused_where_it_is_halved(height, width):
    model = timm.create_model('preact_resnet110', layers=(1, 1, 1))
    with pytest.raises(Unfit, match='halves a map of'):
        layers_of(model, height, width)


def test_without_a_card_nothing_joins(make):
    from train.group import may_join
    assert not may_join(make(amp=True))
