"""The same function in fewer kernels, for a network that is done with training.

The order of a pre-activation unit leaves little to normalise: of a bottleneck's three BatchNorms two follow a
convolution and fold into its weights, and the third, on the stream, is a multiply-add and a ReLU. The addition goes
into the last convolution. `optimize` rewrites every unit so, of any placement, and any other convolution with a
BatchNorm behind it in a Sequential.
"""
import copy
from collections import OrderedDict
from typing import Dict, Optional, Tuple, Type

import torch
from timm.layers import BatchNormAct2d, SyncBatchNormAct, register_notrace_module
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.module import _has_any_global_hook

from .capture import capture_calls
from .compilation import compile_each
from .errors import UserError
from .kernels import (
    HALF_PRECISION,
    Geometry,
    PackedWeight,
    convolve,
    convolve_for_next,
    fuses,
    joins,
    normalise,
    scale_shift_relu,
)
from .memory import has_watched_parts, is_watched
from .unit import Add, DropoutShortcut, ResidualUnit

__all__ = ['FusedConv2d', 'FusedUnit', 'ScaleShift', 'check_eval', 'keep_hooks', 'optimize']

# What in eval mode is a multiply-add, and whether the class applies the activation that it may hold: torch's conversion
# to SyncBatchNorm leaves timm's in place and unused.
NORMS: Dict[Type[nn.Module], bool] = {
    nn.BatchNorm2d: False, nn.SyncBatchNorm: False, BatchNormAct2d: True, SyncBatchNormAct: True}


def optimize(
        model: nn.Module,
        dtype: Optional[torch.dtype] = None,
        channels_last: bool = True,
        compile: bool = False,
        cuda_graph: bool = False,
) -> nn.Module:
    """A copy of a network that computes the same, but for rounding, in less time; for inference alone.

    Args:
        model: A network of ours, or any with units of ours, in eval mode; features_only ones too.
        dtype: Type of weights and images, e.g. torch.bfloat16; None keeps the model's.
        channels_last: Lay weights out so; images may come in either format.
        compile: torch.compile each unit, on its first call; equal units share what is compiled.
        cuda_graph: Calls of the result replay a CUDA graph, recorded at the first call with images of a shape and type
            (eight of them, see `timm_preact.capture`): a small batch no longer waits for Python. Its methods, and
            copies of it, run kernel by kernel.

    Returns:
        A network of the same methods (`forward_features`, `forward_intermediates`, ...), other modules and no
        BatchNorm behind a convolution. On a CPU its kernels are oneDNN's fused ones, on a GPU cuDNN's and Triton's;
        where a graph is recorded by autograd or an exporter, plain operators.

    Raises:
        UserError: The model is in training mode, or shall become a CUDA graph and is not on a GPU.
    """
    check_eval(model, 'optimize')
    if cuda_graph and not all(p.is_cuda for p in model.parameters()):
        raise UserError("cuda_graph=True is for a network on a GPU: call model.to('cuda') before optimize.")
    model = rewrite(copy_of(model), dtype).requires_grad_(False)
    model.to(dtype=dtype, memory_format=torch.channels_last if channels_last else torch.preserve_format)
    for module in model.modules():
        if getattr(module, 'grad_checkpointing', False):
            module.grad_checkpointing = False  # there is no backward to run anything again in
    if compile:
        compile_each(module for module in model.modules() if isinstance(module, FusedUnit))
    if cuda_graph:
        capture_calls(model)
    return model


def check_eval(model: nn.Module, what: str) -> None:
    """Refuse a model in training mode, before `what`.

    Raises:
        UserError: It is, or a BatchNorm of it.
    """
    if model.training or any(module.training for module in model.modules() if isinstance(module, _BatchNorm)):
        raise UserError(f'a network in training mode normalises by its batch: call model.eval() before {what}.')


@register_notrace_module
class FusedConv2d(nn.Conv2d):
    """A convolution, a tensor added to its output, a ReLU of the sum: one kernel on a CPU, at most two on a GPU."""

    def __init__(self, conv: nn.Conv2d):
        """Take a convolution's shape and its parameters themselves."""
        super().__init__(
            conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,
            conv.groups, bias=False, padding_mode=conv.padding_mode, device='meta')
        self.weight, self.bias = conv.weight, conv.bias
        self.relu = False
        self.has_kernel = conv.padding_mode == 'zeros' and not isinstance(conv.padding, str)
        self.geometry = Geometry.of(conv)
        self.packed = PackedWeight()

    def fold(self, norm: _BatchNorm) -> None:
        """Do what `norm` does to the output."""
        scale, shift = scale_and_shift(norm)
        if self.bias is not None:
            shift = shift + scale * self.bias
        self.weight = nn.Parameter((self.weight * scale.view(-1, 1, 1, 1)).to(self.weight.dtype))
        self.bias = nn.Parameter(shift.to(self.weight.dtype))

    def forward(self, x: torch.Tensor, plus: Optional[torch.Tensor] = None, overwrite: bool = False) -> torch.Tensor:
        """Compute conv(x) + plus, then ReLU if `relu`; with `overwrite` in the memory of `plus` if that is faster."""
        if not torch.jit.is_scripting():
            if self.has_kernel and not isinstance(x, torch.fx.Proxy):
                return self.forward_fused(x, plus, overwrite)
        y = self._conv_forward(x, self.weight, self.bias)
        if plus is not None:
            y = y + plus
        return y.relu() if self.relu else y

    @torch.jit.unused
    def forward_fused(self, x: torch.Tensor, plus: Optional[torch.Tensor], overwrite: bool) -> torch.Tensor:
        return convolve(x, self.weight, self.bias, self.geometry, plus, self.relu, overwrite, self.packed)

    def forward_for_next(
            self, x: torch.Tensor, plus: torch.Tensor, norm: 'ScaleShift') -> Tuple[torch.Tensor, torch.Tensor]:
        """y = conv(x) + plus, and norm(y), rectified."""
        return convolve_for_next(x, self.weight, self.bias, self.geometry, plus, norm.scale, norm.shift)

    def _apply(self, fn, recurse=True):
        self.packed = PackedWeight()  # frees the memory of a packed weight of another type, or for another device
        return super()._apply(fn, recurse)


@register_notrace_module
class ScaleShift(nn.Module):
    """scale * x + shift for each channel, rectified if `relu`: a BatchNorm whose statistics are known.

    For images of half the precision both stay in float32, whatever the network is cast to.
    """

    def __init__(self, norm: _BatchNorm, dtype: Optional[torch.dtype] = None):
        super().__init__()
        precision = torch.promote_types(norm.running_var.dtype, torch.float32)
        scale, shift = (t.to(precision) for t in scale_and_shift(norm, dtype))
        self.scale, self.shift = nn.Parameter(scale), nn.Parameter(shift)
        self.relu = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.jit.is_scripting():
            if self.relu and not isinstance(x, torch.fx.Proxy):
                return scale_shift_relu(x, self.scale, self.shift)
        x = torch.addcmul(self.shift.view(-1, 1, 1), x, self.scale.view(-1, 1, 1)).to(x.dtype)
        return x.relu() if self.relu else x

    def _apply(self, fn, recurse=True):
        def keep_precision(tensor: torch.Tensor) -> torch.Tensor:
            cast = fn(tensor)
            return tensor.to(cast.device, torch.float32) if cast.dtype in HALF_PRECISION else cast

        return super()._apply(keep_precision, recurse)


class MergeAfter(nn.Module):
    """A branch's last layer, then a merge other than the addition that a convolution can take in."""

    def __init__(self, last: nn.Module, merge: nn.Module):
        super().__init__()
        self.last = last
        self.merge = merge

    def forward(self, x: torch.Tensor, shortcut: torch.Tensor, overwrite: bool = False) -> torch.Tensor:
        return self.merge(shortcut, self.last(x))


class FusedUnit(nn.Module):
    """A `ResidualUnit` for inference: every BatchNorm behind a convolution is in it, and so is the addition."""

    def __init__(self, unit: ResidualUnit, dtype: Optional[torch.dtype] = None):
        super().__init__()
        self.activated_shortcut = unit.activated_shortcut
        self.pre = rewrite(unit.pre, dtype)
        *layers, last = (layer for layer in rewrite(unit.residual, dtype) if not isinstance(layer, nn.Identity))
        self.residual = nn.Sequential(*layers)
        self.shortcut = rewrite(unit.shortcut, dtype)
        # the shortcut's tensor: a new one, or x, of which a branch of one layer may be at work still
        self.shortcut_is_new = not isinstance(unit.shortcut, nn.Identity)
        self.can_overwrite = not unit.activated_shortcut and (len(layers) > 0 or not isinstance(unit.pre, nn.Identity))
        self.post = rewrite(unit.post, dtype)
        if isinstance(last, FusedConv2d) and not last.relu and type(unit.merge) in (Add, DropoutShortcut):
            self.merge = last
            self.post = take_in_relu(last, self.post)
        else:
            self.merge = MergeAfter(last, rewrite(unit.merge, dtype))

    def combine(self, x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        """f(merge(h(x), F(x))), given x and a = pre(x)."""
        shortcut = self.shortcut(a if self.activated_shortcut else x)
        return self.post(self.merge(self.residual(a), shortcut))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.combine(x, self.pre(x))

    def forward_unseen(self, x: torch.Tensor, own: bool) -> torch.Tensor:
        """`forward` where no hook looks on: it overwrites the tensor of its shortcut, even x if that is its `own`."""
        a = self.pre(x)
        shortcut = self.shortcut(a if self.activated_shortcut else x)
        overwrite = self.shortcut_is_new or (own and self.can_overwrite)
        return self.post(self.merge(self.residual(a), shortcut, overwrite))

    def leads_to(self, unit: 'FusedUnit') -> bool:
        """Whether this one's last kernel can make what `unit` reads first."""
        return (isinstance(self.merge, FusedConv2d) and self.merge.has_kernel and not self.merge.relu
                and isinstance(self.post, nn.Identity) and isinstance(unit.pre, ScaleShift) and unit.pre.relu)

    def forward_for_next(
            self, x: torch.Tensor, a: torch.Tensor, norm: ScaleShift) -> Tuple[torch.Tensor, torch.Tensor]:
        """forward(x), given a = pre(x), and `norm` of it."""
        return self.merge.forward_for_next(self.residual(a), self.shortcut(a if self.activated_shortcut else x), norm)


class FusedUnits(nn.Sequential):
    """Units one after the other, which overwrite and work ahead where no hook would see it."""

    def __init__(self, units: Dict[str, FusedUnit]):
        super().__init__(OrderedDict(units))
        self.hooks = [hooks for unit in self for module in unit.modules()
                      for hooks in (module._forward_pre_hooks, module._forward_hooks)]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.jit.is_scripting():
            if self.is_unseen(x):
                return self.forward_joined(x) if joins(x) else self.forward_unseen(x)
        for unit in self:
            x = unit(x)
        return x

    @torch.jit.unused
    def is_unseen(self, x: torch.Tensor) -> bool:
        """Whether kernels run that can overwrite or reach into the next unit, and nobody looks on."""
        return (not isinstance(x, torch.fx.Proxy) and (fuses(x) or joins(x))
                and not any(self.hooks) and not _has_any_global_hook()
                and all(unit._compiled_call_impl is None for unit in self))

    @torch.jit.unused
    def forward_unseen(self, x: torch.Tensor) -> torch.Tensor:
        own = False
        for unit in self:
            x = unit.forward_unseen(x, own)
            own = True
        return x

    @torch.jit.unused
    def forward_joined(self, x: torch.Tensor) -> torch.Tensor:
        """The last kernel of a unit makes what the next one reads first, in the same pass over memory."""
        units = list(self)
        a = units[0].pre(x)
        for unit, following in zip(units, units[1:], strict=False):
            if unit.leads_to(following):
                x, a = unit.forward_for_next(x, a, following.pre)
            else:
                x = unit.combine(x, a)
                a = following.pre(x)
        return units[-1].combine(x, a)


def rewrite(module: nn.Module, dtype: Optional[torch.dtype] = None) -> nn.Module:
    """Return `module`, or its replacement in a network optimised for `dtype`; its children are rewritten in place.

    Hooks keep seeing what they saw. A module stays as it is if it has a class or a forward of its own, or if its weight
    or bias is computed at each call (pruning, weight_norm, spectral_norm).
    """
    kind = type(module) if is_plain(module) else None
    if kind is ResidualUnit and not has_watched_parts(module):
        new: nn.Module = FusedUnit(module, dtype)
    elif kind is nn.Conv2d:
        new = FusedConv2d(module)
    elif kind in NORMS and module.running_var is not None:
        new = ScaleShift(module, dtype)
        act = take_in_relu(new, activation_of(module))
        new = new if isinstance(act, nn.Identity) else nn.Sequential(new, act)
    else:
        new, conv = module, None
        for name, child in module.named_children():
            if conv is not None and can_fold(conv, child) and isinstance(module, nn.Sequential):
                conv.fold(child)
                setattr(module, name, take_in_relu(conv, activation_of(child)))
            else:
                setattr(module, name, rewrite(child, dtype))
            conv = getattr(module, name) if type(child) is nn.Conv2d else None
        if kind is nn.Sequential and len(module) and all(isinstance(unit, FusedUnit) for unit in module):
            new = FusedUnits(dict(module.named_children()))
    return keep_hooks(module, new)


def is_plain(module: nn.Module) -> bool:
    """Return True if a module has the forward of its class, and its weight and bias are parameters or missing."""
    own, buffers = vars(module).keys(), module._buffers.keys()
    return own.isdisjoint(('forward', '_conv_forward', 'weight', 'bias')) and buffers.isdisjoint(('weight', 'bias'))


def copy_of(model: nn.Module) -> nn.Module:
    """Return a deep copy; a weight that pruning or weight_norm computed with gradients is copied without its graph."""
    computed = [value for module in model.modules() for value in vars(module).values()
                if isinstance(value, torch.Tensor) and not value.is_leaf]
    return copy.deepcopy(model, {id(tensor): tensor.detach().clone() for tensor in computed})


def can_fold(conv: nn.Module, norm: nn.Module) -> bool:
    """Whether this is a BatchNorm that can go into the convolution before it, and nobody sees what is between them."""
    return (type(norm) in NORMS and norm.running_var is not None and isinstance(conv, FusedConv2d)
            and not is_watched(conv) and not is_watched(norm))


def activation_of(norm: _BatchNorm) -> nn.Module:
    """What a norm of NORMS does besides normalising."""
    return norm.act if NORMS[type(norm)] else nn.Identity()


def take_in_relu(layer: nn.Module, act: nn.Module) -> nn.Module:
    """Have `layer` rectify its output if `act` does; return what is left to do."""
    layer.relu = type(act) is nn.ReLU
    return nn.Identity() if layer.relu else act


def keep_hooks(old: nn.Module, new: nn.Module) -> nn.Module:
    """Move the hooks of `old`, such as timm's of features, to what stands for it."""
    if new is not old:
        for hooks in ('_forward_pre_hooks', '_forward_pre_hooks_with_kwargs', '_forward_hooks',
                      '_forward_hooks_with_kwargs', '_forward_hooks_always_called'):
            getattr(new, hooks).update(getattr(old, hooks))
    return new


def scale_and_shift(norm: _BatchNorm, dtype: Optional[torch.dtype] = None) -> Tuple[torch.Tensor, torch.Tensor]:
    """A BatchNorm in eval mode as scale * x + shift of an x of type `dtype`, (C,) in float64 each."""
    mean, var = norm.running_mean.double(), norm.running_var.double()
    weight, bias = (
        (norm.weight.double(), norm.bias.double()) if norm.affine else (torch.ones_like(mean), torch.zeros_like(mean)))
    return normalise(mean, (var + norm.eps).rsqrt(), weight, bias, dtype or norm.running_var.dtype)
