"""A unit's layers in fewer passes over memory, where the machine has a kernel for it.

On a CPU PyTorch convolves with oneDNN, which can add a tensor to a convolution's output and rectify it before it is
written to memory; PyTorch's own compiler uses that, its modules do not. A BatchNorm with known statistics and its ReLU
are such a convolution too, of one weight a channel. Elsewhere, and wherever a graph is recorded (autograd, TorchScript,
export), the same is written with PyTorch's plain operators.
"""
from functools import lru_cache
from typing import NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import nn

__all__ = [
    'EPS', 'VARIANCE', 'Geometry', 'convolve', 'fuses', 'normalise', 'onednn_convolve', 'pack_weight',
    'scale_shift_relu',
]

# Elements from which multiply-add-ReLU is faster as a convolution, in one pass over memory: below, setting that up
# costs more than it saves (measured on 2 cores of an AMD EPYC; a factor of four changes little).
CONVOLUTION_FROM = {torch.float32: 2 ** 21, torch.bfloat16: 2 ** 17}
HALF_PRECISION = (torch.bfloat16, torch.float16)
# A BatchNorm that divides by exactly 1: their sum is, in every type. An eps of 0 is refused by F.batch_norm of torch
# 2.11, and one below 1e-5 by cuDNN.
EPS = 2. ** -16
VARIANCE = 1. - EPS


class Geometry(NamedTuple):
    """How a convolution moves over a map."""
    padding: Tuple[int, int]
    stride: Tuple[int, int]
    dilation: Tuple[int, int]
    groups: int

    @classmethod
    def of(cls, conv: nn.Conv2d) -> 'Geometry':
        return cls(conv.padding, conv.stride, conv.dilation, conv.groups)


EACH_CHANNEL_ALONE = Geometry(padding=(0, 0), stride=(1, 1), dilation=(1, 1), groups=1)


def fuses(x: torch.Tensor) -> bool:
    """Whether oneDNN's fused convolutions take x: on a CPU, channels last, nothing recorded."""
    return (
        not torch.jit.is_tracing() and not torch.compiler.is_compiling()  # first: a size asked there is a guard on it
        and x.device.type == 'cpu' and knows(x.dtype) and x.is_contiguous(memory_format=torch.channels_last)
        and not (x.requires_grad and torch.is_grad_enabled()) and len(x) > 0)


@lru_cache
def knows(dtype: torch.dtype) -> bool:
    """Whether oneDNN is there and this processor has what it needs for a type."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


def pack_weight(weight: torch.Tensor, geometry: Geometry, x: torch.Tensor) -> torch.Tensor:
    """A weight laid out as oneDNN wants it for inputs like x, for `onednn_convolve`: else each call lays it out."""
    weight = weight.detach().to(memory_format=torch.channels_last)
    return torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, x.shape)


def onednn_convolve(
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: Optional[torch.Tensor],
        geometry: Geometry,
        plus: Optional[torch.Tensor] = None,
        relu: bool = False,
        overwrite: bool = False,
) -> torch.Tensor:
    """`convolve` for an x that `fuses`, as one kernel; its weight may be packed."""
    if plus is None:
        return torch.ops.mkldnn._convolution_pointwise(
            x, weight, bias, *geometry, 'relu' if relu else 'none', [], None)
    plus = plus.contiguous(memory_format=torch.channels_last)
    act = 'relu' if relu else None
    if overwrite:
        return torch.ops.mkldnn._convolution_pointwise_.binary(
            plus, x, weight, bias, *geometry, 'add', None, act, [], None)
    return torch.ops.mkldnn._convolution_pointwise.binary(
        x, plus, weight, bias, *geometry, 'add', None, act, [], None)


def convolve(
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: Optional[torch.Tensor],
        geometry: Geometry,
        plus: Optional[torch.Tensor] = None,
        relu: bool = False,
        overwrite: bool = False,
) -> torch.Tensor:
    """conv(x) + plus, rectified if `relu`.

    Args:
        x: (N, in_chs, H, W).
        weight: (out_chs, in_chs / groups, k, k), of x's type.
        bias: (out_chs,), or None.
        geometry: Of the convolution, which pads by zeros.
        plus: Of the output's shape and type, or None.
        relu: Rectify the sum.
        overwrite: The result may take the place of `plus`, which saves fetching new memory; x must not be `plus`.
    """
    if fuses(x):
        return onednn_convolve(x, weight, bias, geometry, plus, relu, overwrite)
    padding, stride, dilation, groups = geometry
    y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    if plus is not None:
        y = y.add_(plus)
    return y.relu_() if relu else y


def scale_shift_relu(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """ReLU(scale * x + shift), for each channel.

    Args:
        x: (N, C, H, W).
        scale: (C,), of x's type, or in float32 where x has half the precision.
        shift: As scale.
    """
    if fuses(x) and x.numel() >= CONVOLUTION_FROM[x.dtype]:
        weight = scale.to(x.dtype).view(-1, 1, 1, 1)
        return onednn_convolve(x, weight, shift, EACH_CHANNEL_ALONE._replace(groups=x.shape[1]), relu=True)
    if x.dtype not in HALF_PRECISION:
        return torch.addcmul(shift.view(-1, 1, 1), x, scale.view(-1, 1, 1)).relu_()
    # a BatchNorm of mean 0 that divides by 1 multiplies and adds in float32
    mean, var = torch.zeros_like(scale), torch.full_like(scale, VARIANCE)
    return F.batch_norm(x, mean, var, scale, shift, False, 0., EPS).relu_()


def normalise(
        mean: torch.Tensor,
        invstd: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        dtype: torch.dtype,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """Scale and shift, (C,) each, that make weight * (x - mean) * invstd + bias of an x of type `dtype`.

    Where that is half precision the scale is one that it can hold, so that the mean is taken off exactly.
    """
    scale = weight * invstd
    if dtype in HALF_PRECISION:
        scale = scale.to(dtype).to(scale.dtype)
    return scale, torch.addcmul(bias, mean, scale, value=-1)
