"""Triton's kernels for a GPU: passes over a channels-last map that PyTorch would make two or three of.

A map (N, C, H, W) in channels-last memory is a matrix of N * H * W rows and C columns. Sums over rows are made in two
kernels: programs write partial sums side by side, one kernel adds them up in their order. Nothing is added atomically,
so that a result depends on its inputs alone.
"""
import os
from functools import lru_cache
from typing import NamedTuple, Optional, Tuple

import torch
import triton
import triton.language as tl

from .plain import HALF_PRECISION

__all__ = [
    'Launch', 'finish_convolution', 'finish_for_next', 'launch_of', 'norm_backward', 'scale_shift_relu', 'statistics',
    'takes',
]

PROGRAMS = 512  # that a GPU has work for
INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'  # Triton's own switch: kernels run on a CPU, for tests
works = True  # until a kernel does not compile


def takes(x: torch.Tensor) -> bool:
    """Whether these kernels know a tensor: on a GPU of compute capability 8.0 or more, channels last, not empty."""
    return (
        (x.is_cuda and is_recent(x.device.index or 0) or INTERPRETED and x.device.type == 'cpu')
        and (x.dtype == torch.float32 or x.dtype in HALF_PRECISION) and x.ndim == 4 and x.numel() > 0
        and x.is_contiguous(memory_format=torch.channels_last))


@lru_cache
def is_recent(device: int) -> bool:
    """Whether a GPU has what Triton compiles for."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


class Launch(NamedTuple):
    """How a map is cut into tiles: blocks of rows and columns, and the programs that share the rows of a block."""
    rows: int
    block_rows: int
    block_cols: int
    programs: int
    col_blocks: int


def launch_of(x: torch.Tensor) -> Launch:
    """Tiles of about 4,096 elements, of as many columns as there are up to 128."""
    channels = x.shape[1]
    rows = x.numel() // channels
    block_cols = min(128, triton.next_power_of_2(channels))
    block_rows = 4096 // block_cols
    col_blocks = triton.cdiv(channels, block_cols)
    programs = max(1, min(triton.cdiv(rows, block_rows), PROGRAMS // col_blocks))
    return Launch(rows, block_rows, block_cols, programs, col_blocks)


@triton.jit
def sums_kernel(x, partial, rows, C, BR: tl.constexpr, BC: tl.constexpr):
    """Sums over rows of x - x[0] and of its square: partial (2, programs, C)."""
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    ok = c < C
    pivot = tl.load(x + c, mask=ok, other=0.0).to(tl.float32)
    s = tl.zeros((BR, BC), tl.float32)
    q = tl.zeros((BR, BC), tl.float32)
    for start in range(tl.program_id(0) * BR, rows, tl.num_programs(0) * BR):
        r = start + tl.arange(0, BR)
        inside = (r < rows)[:, None] & ok[None, :]
        v = tl.load(x + r.to(tl.int64)[:, None] * C + c[None, :], mask=inside, other=0.0).to(tl.float32)
        v = tl.where(inside, v - pivot[None, :], 0.0)
        s += v
        q += v * v
    out = partial + tl.program_id(0) * C + c
    tl.store(out, tl.sum(s, 0), mask=ok)
    tl.store(out + tl.num_programs(0) * C, tl.sum(q, 0), mask=ok)


@triton.jit
def add_up(partial, programs, C, c, ok):
    """The two sums that programs left side by side, in their order."""
    s = tl.zeros(c.shape, tl.float32)
    q = tl.zeros(c.shape, tl.float32)
    for p in range(programs):
        s += tl.load(partial + p * C + c, mask=ok, other=0.0)
        q += tl.load(partial + (programs + p) * C + c, mask=ok, other=0.0)
    return s, q


@triton.jit
def finish_statistics_kernel(partial, x, running_mean, running_var, out, programs, rows, C, momentum, eps,
                             BC: tl.constexpr):
    """out (2, C): mean, 1 / deviation; running statistics are moved by the momentum."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    ok = c < C
    s, q = add_up(partial, programs, C, c, ok)
    off = s / rows
    mean = tl.load(x + c, mask=ok, other=0.0).to(tl.float32) + off
    var = tl.maximum(q / rows - off * off, 0.0)
    tl.store(out + c, mean, mask=ok)
    tl.store(out + C + c, 1.0 / tl.sqrt(var + eps), mask=ok)
    rm = tl.load(running_mean + c, mask=ok, other=0.0).to(tl.float32)
    rv = tl.load(running_var + c, mask=ok, other=0.0).to(tl.float32)
    unbiased = var * (rows / (rows - 1.0))
    tl.store(running_mean + c, (rm + momentum * (mean - rm)).to(running_mean.dtype.element_ty), mask=ok)
    tl.store(running_var + c, (rv + momentum * (unbiased - rv)).to(running_var.dtype.element_ty), mask=ok)


def statistics(
        x: torch.Tensor,
        running: Tuple[torch.Tensor, torch.Tensor],
        momentum: float,
        eps: float,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """`timm_preact.kernels.statistics`, in one pass over x."""
    channels, cut = x.shape[1], launch_of(x)
    partial = torch.empty(2, cut.programs, channels, device=x.device, dtype=torch.float32)
    out = torch.empty(2, channels, device=x.device, dtype=torch.float32)
    sums_kernel[cut.programs, cut.col_blocks](
        x, partial, cut.rows, channels, BR=cut.block_rows, BC=cut.block_cols, num_warps=8)
    finish_statistics_kernel[(triton.cdiv(channels, 32),)](
        partial, x, *running, out, cut.programs, cut.rows, channels, momentum, eps, BC=32, num_warps=1)
    return out[0], out[1]


@triton.jit
def scale_shift_relu_kernel(x, scale, shift, y, rows, C, BR: tl.constexpr, BC: tl.constexpr):
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    ok = c < C
    r = tl.program_id(0) * BR + tl.arange(0, BR)
    inside = (r < rows)[:, None] & ok[None, :]
    o = r.to(tl.int64)[:, None] * C + c[None, :]
    z = tl.load(x + o, mask=inside).to(tl.float32) * tl.load(scale + c, mask=ok).to(tl.float32)[None, :]
    z += tl.load(shift + c, mask=ok).to(tl.float32)[None, :]
    tl.store(y + o, tl.where(z <= 0.0, 0.0, z).to(y.dtype.element_ty), mask=inside)  # NaN stays NaN


def scale_shift_relu(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """`timm_preact.kernels.scale_shift_relu`, in one pass over x."""
    cut, y = launch_of(x), torch.empty_like(x)
    scale_shift_relu_kernel[triton.cdiv(cut.rows, cut.block_rows), cut.col_blocks](
        x, scale, shift, y, cut.rows, x.shape[1], BR=cut.block_rows, BC=cut.block_cols, num_warps=8)
    return y


@triton.jit
def masked(grad, x, o, inside, scale, shift):
    """x, and the gradient before the ReLU of scale * x + shift."""
    v = tl.load(x + o, mask=inside, other=0.0).to(tl.float32)
    g = tl.load(grad + o, mask=inside, other=0.0).to(tl.float32)
    return v, tl.where(v * scale[None, :] + shift[None, :] > 0.0, g, 0.0)


@triton.jit
def backward_sums_kernel(grad, x, mean, scale, shift, partial, rows, C, BR: tl.constexpr, BC: tl.constexpr):
    """Sums over rows of the gradient g before the ReLU, and of g * (x - mean): partial (2, programs, C)."""
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    ok = c < C
    m = tl.load(mean + c, mask=ok, other=0.0)
    a = tl.load(scale + c, mask=ok, other=0.0)
    b = tl.load(shift + c, mask=ok, other=0.0)
    s = tl.zeros((BR, BC), tl.float32)
    q = tl.zeros((BR, BC), tl.float32)
    for start in range(tl.program_id(0) * BR, rows, tl.num_programs(0) * BR):
        r = start + tl.arange(0, BR)
        inside = (r < rows)[:, None] & ok[None, :]
        v, g = masked(grad, x, r.to(tl.int64)[:, None] * C + c[None, :], inside, a, b)
        s += g
        q += g * (v - m[None, :])
    out = partial + tl.program_id(0) * C + c
    tl.store(out, tl.sum(s, 0), mask=ok)
    tl.store(out + tl.num_programs(0) * C, tl.sum(q, 0), mask=ok)


@triton.jit
def finish_backward_kernel(partial, weight, invstd, out, programs, rows, C, BC: tl.constexpr):
    """out (5, C): gradients of weight and bias, and the factors of g, of x - mean, and 1 in the gradient of x."""
    c = tl.program_id(0) * BC + tl.arange(0, BC)
    ok = c < C
    s, q = add_up(partial, programs, C, c, ok)
    r = tl.load(invstd + c, mask=ok, other=0.0)
    a = tl.load(weight + c, mask=ok, other=0.0).to(tl.float32) * r
    tl.store(out + c, q * r, mask=ok)
    tl.store(out + C + c, s, mask=ok)
    tl.store(out + 2 * C + c, a, mask=ok)
    tl.store(out + 3 * C + c, -a * r * r * q / rows, mask=ok)
    tl.store(out + 4 * C + c, -a * s / rows, mask=ok)


@triton.jit
def backward_kernel(grad, x, mean, scale, shift, factors, grad_x, rows, C, BR: tl.constexpr, BC: tl.constexpr):
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    ok = c < C
    r = tl.program_id(0) * BR + tl.arange(0, BR)
    inside = (r < rows)[:, None] & ok[None, :]
    o = r.to(tl.int64)[:, None] * C + c[None, :]
    v, g = masked(grad, x, o, inside, tl.load(scale + c, mask=ok, other=0.0), tl.load(shift + c, mask=ok, other=0.0))
    of_g = tl.load(factors + 2 * C + c, mask=ok, other=0.0)[None, :]
    of_x = tl.load(factors + 3 * C + c, mask=ok, other=0.0)[None, :]
    one = tl.load(factors + 4 * C + c, mask=ok, other=0.0)[None, :]
    dx = of_g * g + of_x * (v - tl.load(mean + c, mask=ok, other=0.0)[None, :]) + one
    tl.store(grad_x + o, dx.to(grad_x.dtype.element_ty), mask=inside)


def norm_backward(
        grad: torch.Tensor,
        x: torch.Tensor,
        weight: torch.Tensor,
        mean: torch.Tensor,
        invstd: torch.Tensor,
        scale: torch.Tensor,
        shift: torch.Tensor,
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """`timm_preact.kernels.norm_backward`, in two passes; the ReLU's backward is in them."""
    grad = grad.contiguous(memory_format=torch.channels_last)
    channels, cut, grad_x = x.shape[1], launch_of(x), torch.empty_like(x)
    partial = torch.empty(2, cut.programs, channels, device=x.device, dtype=torch.float32)
    out = torch.empty(5, channels, device=x.device, dtype=torch.float32)
    tiles = dict(BR=cut.block_rows, BC=cut.block_cols, num_warps=8)
    backward_sums_kernel[cut.programs, cut.col_blocks](
        grad, x, mean, scale, shift, partial, cut.rows, channels, **tiles)
    finish_backward_kernel[(triton.cdiv(channels, 32),)](
        partial, weight, invstd, out, cut.programs, cut.rows, channels, BC=32, num_warps=1)
    backward_kernel[triton.cdiv(cut.rows, cut.block_rows), cut.col_blocks](
        grad, x, mean, scale, shift, out, grad_x, cut.rows, channels, **tiles)
    return grad_x, out[0].to(weight.dtype), out[1].to(weight.dtype)


@triton.jit
def finish_convolution_kernel(y, bias, plus, scale, shift, a, rows, C, BIAS: tl.constexpr, PLUS: tl.constexpr,
                              RELU: tl.constexpr, NEXT: tl.constexpr, BR: tl.constexpr, BC: tl.constexpr):
    """y becomes y + bias + plus, rectified or not; with NEXT, a becomes ReLU(scale * y + shift) of the y that is
    written."""
    c = tl.program_id(1) * BC + tl.arange(0, BC)
    ok = c < C
    r = tl.program_id(0) * BR + tl.arange(0, BR)
    inside = (r < rows)[:, None] & ok[None, :]
    o = r.to(tl.int64)[:, None] * C + c[None, :]
    z = tl.load(y + o, mask=inside).to(tl.float32)
    if BIAS:
        z += tl.load(bias + c, mask=ok).to(tl.float32)[None, :]
    if PLUS:
        z += tl.load(plus + o, mask=inside).to(tl.float32)
    if RELU:
        z = tl.where(z <= 0.0, 0.0, z)
    written = z.to(y.dtype.element_ty)
    tl.store(y + o, written, mask=inside)
    if NEXT:
        z = written.to(tl.float32) * tl.load(scale + c, mask=ok).to(tl.float32)[None, :]
        z += tl.load(shift + c, mask=ok).to(tl.float32)[None, :]
        tl.store(a + o, tl.where(z <= 0.0, 0.0, z).to(a.dtype.element_ty), mask=inside)


def finish(y, bias, plus, scale, shift, a, relu: bool) -> None:
    """Launch `finish_convolution_kernel`; what it shall leave out is None."""
    if plus is not None:
        plus = plus.contiguous(memory_format=torch.channels_last)
    cut = launch_of(y)
    finish_convolution_kernel[triton.cdiv(cut.rows, cut.block_rows), cut.col_blocks](
        y, y if bias is None else bias, y if plus is None else plus, y if a is None else scale,
        y if a is None else shift, y if a is None else a, cut.rows, y.shape[1], BIAS=bias is not None,
        PLUS=plus is not None, RELU=relu, NEXT=a is not None, BR=cut.block_rows, BC=cut.block_cols, num_warps=8)


def finish_convolution(
        y: torch.Tensor,
        bias: Optional[torch.Tensor],
        plus: Optional[torch.Tensor] = None,
        relu: bool = False,
) -> torch.Tensor:
    """y + bias + plus, rectified if `relu`, in the place of y."""
    finish(y, bias, plus, None, None, None, relu)
    return y


def finish_for_next(
        y: torch.Tensor,
        bias: Optional[torch.Tensor],
        plus: torch.Tensor,
        scale: torch.Tensor,
        shift: torch.Tensor,
) -> torch.Tensor:
    """y + bias + plus in the place of y; returned is ReLU(scale * y + shift) of that."""
    a = torch.empty_like(y)
    finish(y, bias, plus, scale, shift, a, False)
    return a
