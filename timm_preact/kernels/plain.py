"""What the kernels compute, in PyTorch's plain operators: on any device, under any tracer, and with autograd."""
import os
from typing import NamedTuple, Optional, Tuple

import torch
import torch.nn.functional as F
from torch import nn

__all__ = [
    'EACH_CHANNEL_ALONE', 'EPS', 'HALF_PRECISION', 'INTERPRETED', 'VARIANCE', 'Geometry', 'convolve', 'norm_backward',
    'norm_statistics', 'normalise', 'scale_shift_relu',
]

HALF_PRECISION = (torch.bfloat16, torch.float16)
INTERPRETED = os.environ.get('TRITON_INTERPRET') == '1'  # Triton's own switch: its kernels run on a CPU, for tests
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


def convolve(
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: Optional[torch.Tensor],
        geometry: Geometry,
        plus: Optional[torch.Tensor] = None,
        relu: bool = False,
) -> torch.Tensor:
    """`timm_preact.kernels.convolve`."""
    padding, stride, dilation, groups = geometry
    y = F.conv2d(x, weight, bias, stride, padding, dilation, groups)
    if plus is not None:
        y = y.add_(plus)
    return y.relu_() if relu else y


def scale_shift_relu(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """`timm_preact.kernels.scale_shift_relu`."""
    if x.dtype not in HALF_PRECISION:
        return torch.addcmul(shift.view(-1, 1, 1), x, scale.view(-1, 1, 1)).relu_()
    # a BatchNorm of mean 0 that divides by 1 multiplies and adds in float32
    mean, var = torch.zeros_like(scale), torch.full_like(scale, VARIANCE)
    return F.batch_norm(x, mean, var, scale, shift, False, 0., EPS).relu_()


def norm_statistics(
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        running: Tuple[torch.Tensor, torch.Tensor, Optional[torch.Tensor]],
        momentum: float,
        eps: float,
) -> torch.Tensor:
    """Mean, 1 / deviation, scale and shift of `timm_preact.kernels.norm_relu`, (4, C)."""
    running_mean, running_var, count = running
    if count is not None:
        count.add_(1)
    mean, var = torch.batch_norm_update_stats(x, running_mean, running_var, momentum)
    invstd = (var + eps).rsqrt_()
    return torch.stack((mean, invstd, *normalise(mean, invstd, weight, bias, x.dtype)))


def norm_backward(
        grad: torch.Tensor,
        x: torch.Tensor,
        weight: torch.Tensor,
        stats: torch.Tensor,
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """A BatchNorm's gradients with respect to x, weight and bias, given that with respect to its output."""
    return torch.ops.aten.native_batch_norm_backward(
        grad, x, weight, None, None, stats[0], stats[1], True, EPS, [True, True, True])  # its eps is in invstd already


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
