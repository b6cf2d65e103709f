"""cuDNN's fused convolutions on a GPU: the bias, a tensor added and the ReLU in the convolution's own pass.

PyTorch's modules have cuDNN make the convolution alone; two of its operators, meant for frozen graphs, have it go on.
cuDNN has no such kernel for every shape, and says so only when it is asked to run one: each kind of convolution is
tried once, beside the plain one.
"""
from typing import Dict, Optional

import torch

from . import plain
from .plain import Geometry

__all__ = ['convolve', 'takes']

TOLERANCE = 0.05  # of the largest value: tells a kernel that does something else from one that rounds otherwise
sound: Dict[tuple, bool] = {}  # what came of trying, by the kind of convolution


def takes(x: torch.Tensor, weight: torch.Tensor, bias: Optional[torch.Tensor], geometry: Geometry, relu: bool) -> bool:
    """Whether there may be a kernel: for a bias and a ReLU, without groups, in channels-last memory on a GPU."""
    return (
        relu and bias is not None and x.is_cuda and geometry.groups == 1
        and (x.dtype == torch.float32 or x.dtype in plain.HALF_PRECISION) and weight.dtype == x.dtype == bias.dtype
        and x.numel() > 0 and x.is_contiguous(memory_format=torch.channels_last)
        and torch.backends.cudnn.enabled and not torch.backends.cudnn.deterministic
        and not torch.is_autocast_enabled('cuda'))  # which does not know these operators


def convolve(
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        geometry: Geometry,
        plus: Optional[torch.Tensor] = None,
) -> Optional[torch.Tensor]:
    """ReLU(conv(x) + bias + plus), as `timm_preact.kernels.convolve`; None where cuDNN has no kernel for that."""
    kind = (x.shape, weight.shape, x.dtype, x.device, geometry, plus is None)
    known = sound.get(kind)
    if known is None:
        if torch.cuda.is_current_stream_capturing():  # where nothing can be tried
            return None
        known = sound[kind] = is_sound(x, weight, bias, geometry, plus)
    return run(x, weight, bias, geometry, plus) if known else None


def run(
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        geometry: Geometry,
        plus: Optional[torch.Tensor],
) -> torch.Tensor:
    padding, stride, dilation, groups = geometry
    if plus is None:
        return torch.ops.aten.cudnn_convolution_relu(x, weight, bias, stride, padding, dilation, groups)
    return torch.ops.aten.cudnn_convolution_add_relu(x, weight, plus, 1., bias, stride, padding, dilation, groups)


def is_sound(
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        geometry: Geometry,
        plus: Optional[torch.Tensor],
) -> bool:
    """Whether `run` does what it should, in memory that held NaN before: without `plus` its operator has cuDNN add 0
    times what the output held."""
    expected = plain.convolve(x, weight, bias, geometry, plus, relu=True)
    torch.full_like(expected, float('nan'))  # freed at once: the next tensor of this size takes its place
    try:
        y = run(x, weight, bias, geometry, plus)
    except torch.OutOfMemoryError:
        raise
    except RuntimeError:
        return False
    allowed = TOLERANCE * torch.linalg.vector_norm(expected, float('inf'))
    return bool(expected.sub_(y).abs_().max() <= allowed)
