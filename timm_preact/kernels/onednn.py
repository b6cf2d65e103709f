"""oneDNN's fused convolutions on a CPU.

PyTorch convolves there with oneDNN, which can add a tensor to a convolution's output and rectify it before it is
written to memory; PyTorch's own compiler uses that, its modules do not. A BatchNorm with known statistics and its ReLU
are such a convolution too, of one weight a channel.
"""
import math
from functools import lru_cache
from typing import Any, NamedTuple, Optional, Tuple

import torch

from .plain import EACH_CHANNEL_ALONE, Geometry

__all__ = ['PackedWeight', 'convolve', 'images_at_once', 'scale_shift_relu', 'takes']

# Elements from which multiply-add-ReLU is faster as a convolution, in one pass over memory: below, setting that up
# costs more than it saves (measured on 2 cores of an AMD EPYC; a factor of four changes little).
CONVOLUTION_FROM = {torch.float32: 2 ** 21, torch.bfloat16: 2 ** 17}
CACHE = 2 ** 22  # bytes of a tensor that a CPU core's cache keeps until the next kernel reads it
SAMPLES = 256  # values of a weight that are compared at each call, or one a channel if it has more channels


def takes(x: torch.Tensor) -> bool:
    """Whether these kernels know a tensor: on a CPU, of a type that it multiplies, channels last, not empty."""
    return (x.device.type == 'cpu' and knows(x.dtype) and x.is_contiguous(memory_format=torch.channels_last)
            and len(x) > 0)


@lru_cache
def knows(dtype: torch.dtype) -> bool:
    """Whether oneDNN is there and this processor has what it needs for a type."""
    if not torch.backends.mkldnn.is_available():
        return False
    return dtype == torch.float32 or (dtype == torch.bfloat16 and torch.ops.mkldnn._is_mkldnn_bf16_supported())


class Packed(NamedTuple):
    """A weight in oneDNN's layout, and what shows whether it is still that of the weight."""
    weight: torch.Tensor
    version: int
    address: int
    samples: Any  # a NumPy view of the weight's memory
    values: bytes
    packed: torch.Tensor


class PackedWeight:
    """Keeps the weight of a convolution in oneDNN's layout until the weight changes; without it each call reorders it.

    A change is found by comparing the tensor object, its version counter (which in-place operators, optimizers and
    `load_state_dict` increment), its address (`p.data = ...`) and a sample of its values, because writing through
    `p.data` in place does not increment the counter. The comparison takes 2 to 5 microseconds.

    Copies and pickles of it are empty, and it hides the packed tensor, which has no storage, from exporters.
    """

    def __init__(self) -> None:
        self.kept: Optional[Packed] = None

    def __call__(self, weight: torch.Tensor, geometry: Geometry, x: torch.Tensor) -> torch.Tensor:
        """Return `weight` in the type of x, packed for inputs like x."""
        kept = self.kept
        if kept is not None and kept.packed.dtype == x.dtype and kept.weight is weight and (
                kept.version == weight._version and kept.address == weight.data_ptr()
                and kept.samples.tobytes() == kept.values):
            return kept.packed
        packed = pack(weight, geometry, x)
        if weight.is_inference():  # which has no version counter
            return packed
        samples = sample(weight)
        self.kept = Packed(weight, weight._version, weight.data_ptr(), samples, samples.tobytes(), packed)
        return packed

    def __deepcopy__(self, memo: dict) -> 'PackedWeight':
        return PackedWeight()

    def __reduce__(self) -> Tuple[type, tuple]:
        return PackedWeight, ()


def pack(weight: torch.Tensor, geometry: Geometry, x: torch.Tensor) -> torch.Tensor:
    """Return `weight` in the type of x and in oneDNN's layout for inputs like x."""
    weight = weight.detach().to(x.dtype, memory_format=torch.channels_last)
    return torch.ops.mkldnn._reorder_convolution_weight(weight, *geometry, x.shape)


def sample(weight: torch.Tensor) -> Any:
    """Return a NumPy view of evenly spaced values of a weight (out_chs, in_chs, k, k), as integers.

    There are `SAMPLES` at least, if the weight has as many, and one for every output and every input channel.
    """
    is_channels_last = weight.is_contiguous(memory_format=torch.channels_last)
    flat = (weight.detach().permute(0, 2, 3, 1) if is_channels_last else weight.detach()).flatten()
    integers = {2: torch.int16, 4: torch.int32, 8: torch.int64}[weight.element_size()]
    step = max(1, len(flat) // max(SAMPLES, *weight.shape[:2]))
    while math.gcd(step, weight[0].numel()) > 1:  # else every sample of a filter is of the same input channels
        step -= 1
    return flat.view(integers)[::step].numpy()


def convolve(
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: Optional[torch.Tensor],
        geometry: Geometry,
        plus: Optional[torch.Tensor] = None,
        relu: bool = False,
        overwrite: bool = False,
) -> torch.Tensor:
    """`timm_preact.kernels.convolve`, as one kernel; its weight may be packed."""
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


def scale_shift_relu(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> Optional[torch.Tensor]:
    """`timm_preact.kernels.scale_shift_relu`, None where a map is too small for it to be faster."""
    if x.numel() < CONVOLUTION_FROM[x.dtype]:
        return None
    weight = scale.to(x.dtype).view(-1, 1, 1, 1)
    return convolve(x, weight, shift, EACH_CHANNEL_ALONE._replace(groups=x.shape[1]), relu=True)


def images_at_once(x: torch.Tensor) -> int:
    """How many images to work on at once, so that what is made of them is read from the cache again."""
    return max(1, CACHE * len(x) // (x.numel() * x.element_size()))
