"""A unit's layers in fewer passes over memory, where the machine has a kernel for it.

One file a machine: `onednn` on a CPU, `cudnn` and `triton` on a GPU, and `plain`, which says in PyTorch's operators
what the others compute and runs anywhere. Which one runs is chosen here, by the tensor: nobody who calls knows a
machine. Where a graph is recorded (autograd, TorchScript, a compiler, export) that is always `plain`.
"""
import warnings
from functools import lru_cache
from types import ModuleType
from typing import Any, Callable, Optional, Tuple

import torch

from . import cudnn, onednn, plain
from .onednn import PackedWeight
from .plain import EPS, HALF_PRECISION, INTERPRETED, VARIANCE, Geometry, normalise

__all__ = [
    'EPS', 'HALF_PRECISION', 'VARIANCE', 'Geometry', 'PackedWeight', 'autocast_dtype', 'cast', 'convolve',
    'convolve_for_next', 'fuses', 'has_triton', 'joins', 'normalise', 'norm_relu', 'norm_relu_backward',
    'scale_shift_relu',
]


def is_recorded(x: torch.Tensor) -> bool:
    """Return True if autograd, a tracer, a compiler or a transform of torch.func follows the operators on x."""
    return (torch.jit.is_tracing() or torch.compiler.is_compiling()  # first: a size asked later is a guard on it
            or torch._C._are_functorch_transforms_active() or x.requires_grad and torch.is_grad_enabled())


def autocast_dtype(x: torch.Tensor) -> torch.dtype:
    """Return the type in which a convolution of x computes: x's own, or that of autocast, which leaves float64."""
    if not torch._C._is_any_autocast_enabled() or x.dtype == torch.float64:
        return x.dtype
    kind = x.device.type
    is_on = torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)
    return torch.get_autocast_dtype(kind) if is_on else x.dtype


def cast(x: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return x in another type; x itself where it has that type, without calling an operator."""
    return x if x.dtype == dtype else x.to(dtype)


def fuses(x: torch.Tensor) -> bool:
    """Return True if a convolution of x on a CPU can add a tensor to its output and apply ReLU in the same kernel."""
    return not is_recorded(x) and onednn.takes(x)


def on_gpu(x: torch.Tensor) -> bool:
    """Whether Triton's kernels run on x."""
    return not is_recorded(x) and has_triton(x.device) and gpu().takes(x)


def has_triton(device: torch.device) -> bool:
    """Whether Triton's kernels run on a device: `triton`, and `blocks`, which train several networks at once."""
    if device.type != 'cuda' and not INTERPRETED:
        return False
    return gpu() is not None and gpu().works and gpu().runs_on(device)


@lru_cache
def gpu() -> Optional[ModuleType]:
    """The module of Triton's kernels, imported when it is asked for: that takes a quarter of a second.

    None without Triton, which PyTorch brings along on Linux alone.
    """
    try:
        from . import triton
    except ImportError:
        return None
    return triton


def joins(x: torch.Tensor) -> bool:
    """Whether `convolve_for_next` saves a pass over memory."""
    return on_gpu(x)


def attempt(kernel: Callable, *args: Any) -> Any:
    """What one of Triton's kernels returns; None, with a warning and for good, where it does not compile."""
    try:
        return kernel(*args)
    except Exception as e:  # Triton's, its compiler's and the driver's errors share no class
        if isinstance(e, torch.OutOfMemoryError):
            raise
        gpu().works = False
        reason = ' '.join(str(e).split())[:200]
        warnings.warn(f"Triton's kernels do not run here ({type(e).__name__}: {reason}): PyTorch's own run from now "
                      f"on.", RuntimeWarning, stacklevel=3)
        return None


def convolve(
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: Optional[torch.Tensor],
        geometry: Geometry,
        plus: Optional[torch.Tensor] = None,
        relu: bool = False,
        overwrite: bool = False,
        packed: Optional[PackedWeight] = None,
) -> torch.Tensor:
    """Compute conv(x) + plus, followed by ReLU if `relu`, in the type of autocast where that is enabled.

    Args:
        x: (N, in_chs, H, W).
        weight: (out_chs, in_chs / groups, k, k), of x's type without autocast.
        bias: (out_chs,), or None.
        geometry: Padding (by zeros), stride, dilation and groups of the convolution.
        plus: Tensor of the output's shape that is added to it, or None.
        relu: Apply ReLU to the sum.
        overwrite: The result may overwrite `plus`, which saves allocating memory; x must not be `plus`.
        packed: Keeps the weight in the layout of a CPU's kernels from call to call.
    """
    x = cast(x, autocast_dtype(x))
    if plus is not None and plus.dtype != x.dtype:
        y = convolve(x, weight, bias, geometry, packed=packed) + plus
        return y.relu_() if relu else y
    if is_recorded(x):
        return plain.convolve(x, weight, bias, geometry, plus, relu)
    if onednn.takes(x):
        weight = packed(weight, geometry, x) if packed else cast(weight, x.dtype)
        bias = None if bias is None else cast(bias, x.dtype)
        return onednn.convolve(x, weight, bias, geometry, plus, relu, overwrite)
    if relu and cudnn.takes(x, weight, bias, geometry, relu):
        y = cudnn.convolve(x, weight, bias, geometry, plus)
        if y is not None:
            return y
    if (bias is not None or plus is not None or relu) and on_gpu(x):
        y = plain.convolve(x, weight, None, geometry)
        if gpu().takes(y) and attempt(gpu().finish_convolution, y, bias, plus, relu) is not None:
            return y
    return plain.convolve(x, weight, bias, geometry, plus, relu)


def convolve_for_next(
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: Optional[torch.Tensor],
        geometry: Geometry,
        plus: torch.Tensor,
        scale: torch.Tensor,
        shift: torch.Tensor,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """y = conv(x) + plus, and ReLU(scale * y + shift): what a unit leaves, and what the next one reads of it first.

    Args:
        x, weight, bias, geometry, plus: Of `convolve`.
        scale, shift: Of `scale_shift_relu`, for y.
    """
    if on_gpu(x):
        y = plain.convolve(x, weight, None, geometry)
        if gpu().takes(y):
            a = attempt(gpu().finish_for_next, y, bias, plus, scale, shift)
            if a is not None:
                return y, a
    y = convolve(x, weight, bias, geometry, plus)
    return y, scale_shift_relu(y, scale, shift)


def scale_shift_relu(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """ReLU(scale * x + shift), for each channel.

    Args:
        x: (N, C, H, W).
        scale: (C,), of x's type, or in float32 where x has half the precision.
        shift: As scale.
    """
    y = None
    if fuses(x):
        y = onednn.scale_shift_relu(x, scale, shift)
    elif on_gpu(x):
        y = attempt(gpu().scale_shift_relu, x, scale, shift)
    return plain.scale_shift_relu(x, scale, shift) if y is None else y


def norm_relu(
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor,
        running: Tuple[torch.Tensor, torch.Tensor, Optional[torch.Tensor]],
        momentum: float,
        eps: float,
) -> Tuple[torch.Tensor, torch.Tensor]:
    """ReLU(BatchNorm(x)) of a BatchNorm in training, whose running statistics move.

    Args:
        x: (N, C, H, W).
        weight: (C,).
        bias: (C,).
        running: Mean and variance, (C,), changed in place by `momentum`, and the number of batches so far, or None.
        momentum: Share of the new statistics.
        eps: Added to the variance.

    Returns:
        (N, C, H, W), and what backward wants of it, (4, C) in float32 at least: mean, 1 / deviation, and the scale and
        the shift that make of x what stands before the ReLU.
    """
    made = attempt(gpu().norm_relu, x, weight, bias, running, momentum, eps) if on_gpu(x) else None
    if made is not None:
        return made
    stats = plain.norm_statistics(x, weight, bias, running, momentum, eps)
    return scale_shift_relu(x, stats[2], stats[3]), stats


def norm_relu_backward(
        x: torch.Tensor,
        weight: torch.Tensor,
        stats: torch.Tensor,
        backward: Callable[[torch.Tensor, Optional[slice]], torch.Tensor],
) -> Tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """The gradients of `norm_relu` with respect to x, weight and bias.

    Args:
        x: What the norm read, (N, C, H, W).
        weight: The norm's, (C,).
        stats: Of `norm_relu`.
        backward: Is given what `norm_relu` made of some images, made again, and which they are, None for all of them;
            returns the gradient with respect to it, of the same shape. Every image is in one call.
    """
    if on_gpu(x):
        a = attempt(gpu().apply_norm, x, stats)
        if a is not None:
            grad = backward(a, None)
            del a
            gradients = attempt(gpu().norm_backward, grad, x, weight, stats)
            if gradients is not None:
                return gradients
            grad = torch.ops.aten.threshold_backward(grad, plain.scale_shift_relu(x, stats[2], stats[3]), 0)
            return plain.norm_backward(grad, x, weight, stats)
    grad, at_once = torch.empty_like(x), onednn.images_at_once(x) if x.device.type == 'cpu' else len(x)
    for start in range(0, len(x), at_once):
        part = slice(start, start + at_once)
        a = scale_shift_relu(x[part], stats[2], stats[3])
        torch.ops.aten.threshold_backward(
            backward(a, part if at_once < len(x) else None), a, 0, grad_input=grad[part])
        del a
    return plain.norm_backward(grad, x, weight, stats)
