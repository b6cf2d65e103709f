"""The room of kernels: what is chosen where, Triton's in its interpreter, and what they take of a card."""
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.cards import fit

from timm_preact import kernels
from timm_preact.kernels import plain

triton = pytest.importorskip('triton')


def test_triton_in_its_interpreter():
    """In a process of its own: Triton reads the variable when it is imported."""
    done = subprocess.run(
        [sys.executable, '-m', 'pytest', '-q', '-n', '0', 'support/interpreted.py', '-p', 'no:cacheprovider'],
        cwd=Path(__file__).parents[1], capture_output=True, text=True, env=dict(os.environ, TRITON_INTERPRET='1'))
    assert done.returncode == 0, done.stdout[-3000:]


def test_a_cpu_runs_onednn_or_pytorch_and_nothing_of_triton(monkeypatch):
    x = torch.randn(2, 8, 4, 4).to(memory_format=torch.channels_last)
    assert not kernels.on_gpu(x)
    scale, shift = torch.rand(8), torch.rand(8)
    torch.testing.assert_close(kernels.scale_shift_relu(x, scale, shift), plain.scale_shift_relu(x, scale, shift))


def test_without_triton_everything_else_runs():
    code = '''
import sys
sys.modules['triton'] = None
import timm, torch, timm_preact
from timm_preact import kernels
from timm_preact.inference import optimize
assert kernels.gpu() is None and not kernels.has_triton(torch.device('cuda', 0))
net = timm.create_model('preact_resnet20', recompute_norms=True)
net(torch.randn(2, 3, 32, 32)).sum().backward()
assert optimize(net.eval())(torch.randn(2, 3, 32, 32)).shape == (2, 10)
'''
    done = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr


def signatures():
    """Each kernel with the types of its arguments and its constants."""
    from timm_preact.kernels import triton as ours
    tiles, sums, finish = dict(BR=64, BC=64), dict(BR=32, BC=64), dict(zip(('BP', 'BC'), ours.FINISH, strict=True))
    half, single, shape = '*bf16', '*fp32', dict(rows='i32', C='i32')
    added = dict(programs='i32', **shape)
    return {
        ours.sums_kernel: (dict(x=half, partial=single, **shape), dict(sums, U=4), 4),
        ours.finish_statistics_kernel: (
            dict(partial=single, x=half, weight=single, bias=single, running_mean=single, running_var=single,
                 count='*i64', stats=single, **added, momentum='fp32', eps='fp32'), dict(finish, COUNTED=True), 4),
        ours.scale_shift_relu_kernel: (
            dict(x=half, scale=single, shift=single, y=half, **shape), dict(tiles, SCALE=2, SHIFT=3), 8),
        ours.backward_sums_kernel: (
            dict(grad=half, x=half, stats=single, partial=single, **shape), dict(sums, U=2), 4),
        ours.finish_backward_kernel: (
            dict(partial=single, weight=single, stats=single, grad_weight=single, grad_bias=single, factors=single,
                 **added), finish, 4),
        ours.backward_kernel: (dict(grad=half, x=half, stats=single, factors=single, grad_x=half, **shape), tiles, 8),
        ours.finish_convolution_kernel: (
            dict(y=half, bias=half, plus=half, scale=single, shift=single, a=half, **shape),
            dict(tiles, BIAS=True, PLUS=True, RELU=True, NEXT=True), 8),
    }


@pytest.mark.parametrize('capability', [80, 90])
def test_every_kernel_fits_a_card_without_one(capability):
    """Compiled for it: no register is spilled, and shared memory is what a card has."""
    from triton.compiler import ASTSource
    for kernel, (types, constants, warps) in signatures().items():
        names = kernel.arg_names
        source = ASTSource(fn=kernel, signature={name: types.get(name, 'constexpr') for name in names},
                           constexprs={(names.index(name),): value for name, value in constants.items()})
        shared, registers, *spilled = fit(source, capability, dict(num_warps=warps))
        assert shared <= 48 * 1024
        assert spilled == [0, 0], kernel.__name__
        assert registers <= 128, kernel.__name__
