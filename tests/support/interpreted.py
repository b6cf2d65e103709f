"""Triton's kernels in its interpreter on a CPU, against PyTorch's operators. `test_kernels.py` runs this file with
TRITON_INTERPRET=1, which Triton reads when it is imported."""
from collections import Counter

import pytest
import support.interpreter  # noqa: F401
import torch
from support.networks import NETS, Calls, assert_close, create, step
from timm.layers import BatchNormAct2d
from torch.utils._python_dispatch import _disable_current_modes

from timm_preact import kernels
from timm_preact.inference import optimize
from timm_preact.kernels import plain, triton
from timm_preact.preact_resnet import MODEL_ARGS
from timm_preact.unit import ResidualUnit


def maps(dtype=torch.float32, shape=(3, 24, 5, 7), count=1):
    generator = torch.Generator().manual_seed(0)
    return [(torch.randn(shape, generator=generator) * 2 + 1).to(dtype, memory_format=torch.channels_last)
            for _ in range(count)]


def vectors(channels, count):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(channels, generator=generator) for _ in range(count)]


TYPES = [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)]
SHAPES = [(3, 24, 5, 7), (1, 1, 3, 3), (2, 200, 4, 4), (3, 64, 16, 16), (2, 8, 1, 1)]


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('dtype, tolerance', TYPES, ids=lambda value: str(value))
def test_statistics_and_running_ones_are_pytorchs(dtype, tolerance, shape):
    x, = maps(dtype, shape)
    x = x + torch.arange(shape[1]).view(-1, 1, 1).to(dtype) * 10  # far from zero
    runnings = [[torch.zeros(shape[1]), torch.ones(shape[1]), torch.tensor(3)] for _ in range(2)]
    weight, bias = vectors(shape[1], 2)
    a, actual = triton.norm_relu(x, weight, bias, runnings[0], 0.1, 1e-5)
    expected = plain.norm_statistics(
        x.double(), weight.double(), bias.double(), [r.double() for r in runnings[1]], 0.1, 1e-5)
    rounding = {torch.float32: 1e-4, torch.bfloat16: 1e-2, torch.float16: 2e-3}[dtype]  # of a scale of this type
    torch.testing.assert_close(actual[:2].double(), expected[:2], rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(actual[2].double(), expected[2], rtol=rounding, atol=1e-5)
    assert torch.equal(actual[2], actual[2].to(dtype).float()) and runnings[0][2] == 4
    torch.testing.assert_close(actual[3].double(), bias.double() - actual[0].double() * actual[2].double(), rtol=1e-5,
                               atol=1e-4)
    assert torch.equal(a, triton.scale_shift_relu(x, actual[2], actual[3]))
    assert torch.equal(triton.apply_norm(x, actual), a)
    mean = x.double().mean((0, 2, 3))
    var = x.double().var((0, 2, 3))
    torch.testing.assert_close(runnings[0][0].double(), 0.1 * mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(runnings[0][1].double(), 0.9 + 0.1 * var, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('dtype, tolerance', TYPES, ids=lambda value: str(value))
def test_scale_shift_relu_is_pytorchs_and_leaves_nan_alone(dtype, tolerance, shape):
    (x,), (scale, shift) = maps(dtype, shape), vectors(shape[1], 2)
    x[0, 0, 0, 0] = float('nan')
    actual = triton.scale_shift_relu(x, scale, shift)
    expected = (x.double() * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)).relu()
    assert actual.dtype == dtype and actual[0, 0, 0, 0].isnan()
    torch.testing.assert_close(actual.double(), expected, rtol=tolerance, atol=tolerance, equal_nan=True)


@pytest.mark.parametrize('shape', SHAPES[:4], ids=str)
@pytest.mark.parametrize('dtype, tolerance', TYPES, ids=lambda value: str(value))
def test_the_backward_of_norm_and_relu_is_autograds(dtype, tolerance, shape):
    (x, grad), (weight, bias) = maps(dtype, shape, 2), vectors(shape[1], 2)
    running = [torch.zeros(shape[1]), torch.ones(shape[1]), None]
    _, stats = triton.norm_relu(x.float(), weight, bias, running, 0.1, 1e-5)
    actual = triton.norm_backward(grad, x, weight, stats)
    leaves = [t.double().requires_grad_() for t in (x, weight, bias)]
    a = torch.nn.functional.batch_norm(leaves[0], None, None, leaves[1], leaves[2], True).relu()
    expected = torch.autograd.grad((a * grad.double()).sum(), leaves)
    for a, e in zip(actual, expected, strict=True):
        assert_close(a.double(), e, tolerance)


@pytest.mark.parametrize('bias', [False, True])
@pytest.mark.parametrize('plus', [False, True])
@pytest.mark.parametrize('relu', [False, True])
@pytest.mark.parametrize('dtype, tolerance', TYPES, ids=lambda value: str(value))
def test_what_follows_a_convolution_is_added_in_one_pass(dtype, tolerance, bias, plus, relu):
    (y, other), (offset,) = maps(dtype, (3, 24, 5, 7), 2), vectors(24, 1)
    expected = y.double() + bias * offset.to(dtype).double().view(-1, 1, 1) + plus * other.double()
    result = triton.finish_convolution(y, offset.to(dtype) if bias else None, other if plus else None, relu)
    assert result is y
    torch.testing.assert_close(y.double(), expected.relu() if relu else expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize('dtype, tolerance', TYPES, ids=lambda value: str(value))
def test_what_the_next_unit_reads_is_made_in_the_same_pass(dtype, tolerance):
    (y, plus), (scale, shift) = maps(dtype, (3, 24, 5, 7), 2), vectors(24, 2)
    expected = (y.float() + plus.float()).to(dtype)
    a = triton.finish_for_next(y, None, plus, scale, shift)
    torch.testing.assert_close(y, expected, rtol=tolerance, atol=0)
    assert torch.equal(a, triton.scale_shift_relu(y, scale, shift))


def test_sums_do_not_depend_on_the_run():
    (x,), (weight, bias) = maps(torch.bfloat16, (2, 32, 32, 32)), vectors(32, 2)
    found = [triton.norm_relu(x, weight, bias, [torch.zeros(32), torch.ones(32), None], 0.1, 1e-5) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(*found, strict=True))
    assert triton.launch_of(x).programs > 1


@pytest.mark.parametrize('name', NETS)
def test_a_step_that_recomputes_is_that_of_the_plain_net(name, sample, monkeypatch):
    """Every placement and merge in float32, on Triton's kernels."""
    monkeypatch.setattr('timm_preact.kernels.onednn.takes', lambda x: False)
    used = []
    for kernel in ('norm_relu', 'apply_norm', 'norm_backward'):
        original = getattr(triton, kernel)
        monkeypatch.setattr(triton, kernel, lambda *args, k=kernel, f=original: used.append(k) or f(*args))
    x = torch.from_numpy(sample.images[::62, ::4, ::4]).permute(0, 3, 1, 2).float() / 128 - 1
    y = torch.from_numpy(sample.labels[::62])
    small = dict(layers=(2, 1, 1)) if len(MODEL_ARGS[name]['layers']) == 3 else {}
    nets = [create(name, torch.float32, recompute_norms=r, **small).to(memory_format=torch.channels_last)
            for r in (True, False)]
    (actual, gradients, buffers), (expected, theirs, kept) = (step(net, x, y) for net in nets)
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=0)
    flat, flat_theirs = (torch.cat([g.flatten() for g in grads.values()]) for grads in (gradients, theirs))
    assert (flat - flat_theirs).norm() < 1e-3 * flat_theirs.norm()
    for key, buffer in kept.items():
        torch.testing.assert_close(buffers[key], buffer, rtol=1e-4, atol=1e-4)
    assert '1layer_orig' in name or set(used) == {'norm_relu', 'apply_norm', 'norm_backward'}


def test_what_a_unit_asks_of_python(monkeypatch):
    """A GPU is done with a unit's step before Python is, if this grows."""
    monkeypatch.setattr('timm_preact.kernels.onednn.takes', lambda x: False)
    unit = ResidualUnit(16, 16, kernels=(1, 3, 1), bottle_ratio=0.25, norm_layer=BatchNormAct2d,
                        activated_shortcut=False, recompute_norms=True).to(memory_format=torch.channels_last)
    x = torch.randn(2, 16, 4, 4).to(memory_format=torch.channels_last).requires_grad_()
    launches, calls, original = [], Calls(), triton.launch

    def launch(kernel, *args):
        launches.append(kernel)
        with _disable_current_modes():  # of what the interpreter does
            original(kernel, *args)

    monkeypatch.setattr(triton, 'launch', launch)
    with calls:
        unit(x).sum().backward()
    operators = Counter(function.name().partition('.')[0] for function, _, _ in calls.made)
    # a norm with its convolution: three kernels forward and four backward; the unit's sum is one
    assert len(launches) == 3 * (3 + 4) + 1
    assert operators['aten::convolution'] == operators['aten::convolution_backward'] == 3
    assert operators['aten::empty'] + operators['aten::empty_like'] <= 27
    assert operators.total() <= 27 + 6 + 3 + 10 + 3  # a sum of gradients, detached outputs, the loss


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16])
@pytest.mark.parametrize('name', ['preact_resnet20', 'preact_resnet164', 'preact_resnet110_orig'])
def test_an_optimised_net_is_the_plain_net(name, dtype, monkeypatch):
    monkeypatch.setattr('timm_preact.kernels.onednn.takes', lambda x: False)
    joined, original = [], triton.finish_for_next
    monkeypatch.setattr(triton, 'finish_for_next', lambda *args: joined.append(1) or original(*args))
    model, x = create(name, torch.float32, layers=(3, 1, 1)).eval(), torch.randn(2, 3, 16, 16)
    fast, taps = optimize(model, dtype=dtype), []
    with torch.inference_mode():
        actual = fast(x.to(dtype))
        assert_close(actual.float(), model(x), 1e-4 if dtype == torch.float32 else 0.05)
        assert len(joined) == (0 if name.endswith('orig') else 2)
        fast.stages[0].blocks[1].register_forward_hook(lambda module, args, output: taps.append(output))
        assert torch.equal(fast(x.to(dtype)), actual) and len(taps) == 1
        assert len(joined) == (0 if name.endswith('orig') else 2)


def test_what_does_not_compile_falls_back_with_one_warning(monkeypatch):
    def fails(*args):
        raise RuntimeError('out of resource: shared memory')

    monkeypatch.setattr(triton, 'works', True)
    monkeypatch.setattr(triton, 'scale_shift_relu', fails)
    monkeypatch.setattr('timm_preact.kernels.onednn.takes', lambda x: False)
    (x,), (scale, shift) = maps(), vectors(24, 2)
    with pytest.warns(RuntimeWarning, match="Triton's kernels do not run here .*out of resource"):
        actual = kernels.scale_shift_relu(x, scale, shift)
    torch.testing.assert_close(actual, plain.scale_shift_relu(x, scale, shift))
    assert not triton.works
    kernels.scale_shift_relu(x, scale, shift)  # no further warning
