"""Initial weights as in the paper's code, and BatchNorm statistics that keep an untrained net finite at any depth.

With He initialisation a convolution maps an input of second moment E[x^2] to an output of variance
2 * in_chs / out_chs * E[x^2], so the variance of the stream is known before any image is seen: it grows by a constant
with each unit as long as each branch begins by normalising. In eval mode an untrained BatchNorm does not normalise:
it divides by sqrt(running_var) = 1, the variance doubles with each unit instead, and a few hundred units overflow
float32. So running_var starts at the variance that the initialisation implies for its place. Training overwrites it and
never reads it: trained weights are the same to the bit.
"""
import math
from typing import Iterator, NamedTuple

import torch
from torch import nn

from .unit import ResidualUnit, ShortcutGate, ZeroPadShortcut

__all__ = ['Moments', 'imply_running_var', 'init_weights']


class Moments(NamedTuple):
    """Mean and variance of a feature map, over images, positions, channels and initial weights."""
    mean: float
    var: float

    @property
    def second(self) -> float:
        return self.mean ** 2 + self.var

    def scale(self, factor: float) -> 'Moments':
        return Moments(self.mean * factor, self.var * factor ** 2)

    def add(self, other: 'Moments') -> 'Moments':
        return Moments(self.mean + other.mean, self.var + other.var)

    def rectify(self) -> 'Moments':
        """After a ReLU, taking the map as Gaussian."""
        std = math.sqrt(self.var)
        if std == 0.:
            return Moments(max(self.mean, 0.), 0.)
        density = math.exp(-0.5 * (self.mean / std) ** 2) / math.sqrt(2 * math.pi)
        below = 0.5 * (1 + math.erf(self.mean / std / math.sqrt(2)))
        mean = std * density + self.mean * below
        second = self.second * below + self.mean * std * density
        return Moments(mean, max(second - mean ** 2, 0.))


@torch.no_grad()
def init_weights(model: nn.Module, zero_init_last: bool = False) -> None:
    """Initialise as KaimingHe/resnet-1k-layers does: convolutions N(0, 2 / (k * k * out_chs)), BatchNorms (1, 0), the
    classifier U(-1 / sqrt(in), 1 / sqrt(in)) with zero bias; running variances as this module's docstring says.

    Args:
        model: A network with stem, stages and norm. Layers that others wrote stay as their constructors made them.
        zero_init_last: Start each branch at zero, through its last norm if it ends in one, else its last convolution.
    """
    if all(parameter.is_meta for parameter in model.parameters()):
        return  # there are no values, and PyTorch takes longer over none than a CPU over them
    modules = list(_known_modules(model))
    for module in modules:
        _init_layer(module)
    for module in modules:
        if isinstance(module, ShortcutGate):
            nn.init.constant_(module.gate.bias, module.bias)
        elif zero_init_last and isinstance(module, ResidualUnit):
            nn.init.zeros_(module.residual[-1].weight)
    imply_running_var(model, zero_init_last)


def _known_modules(module: nn.Module) -> Iterator[nn.Module]:
    """A module and those in it, but for what others wrote, such as a norm_layer of the user's: that stays as made."""
    yield module
    for child in module.children():
        if type(child).__module__.partition('.')[0] in ('torch', 'timm', __name__.partition('.')[0]):
            yield from _known_modules(child)


def _init_layer(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d):
        module.weight.normal_(0, math.sqrt(2 / (math.prod(module.kernel_size) * module.out_channels)))
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif isinstance(module, nn.Linear):
        bound = 1 / math.sqrt(module.in_features)
        nn.init.uniform_(module.weight, -bound, bound)
        nn.init.zeros_(module.bias)
    elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm)):
        module.reset_parameters()


@torch.no_grad()
def imply_running_var(model: nn.Module, zero_init_last: bool = False) -> None:
    """Set every running_var to the second moment that freshly initialised weights give its input."""
    stream = Moments(0., 1.)  # a normalised image
    for name in ('stem', 'stages', 'norm'):
        stream = _propagate(getattr(model, name), stream, zero_init_last)


def _propagate(module: nn.Module, x: Moments, zero_init_last: bool) -> Moments:
    """What `module` makes of x in eval mode, with freshly initialised weights; sets running_var on the way."""
    if isinstance(module, nn.Identity):
        return x
    if isinstance(module, ResidualUnit):
        a = _propagate(module.pre, x, zero_init_last)
        shortcut = _propagate(module.shortcut, a if module.activated_shortcut else x, zero_init_last)
        residual = _propagate(module.residual, a, zero_init_last)
        if zero_init_last:
            residual = Moments(0., 0.)
        on_shortcut, on_residual = module.merge.scales
        merged = shortcut.scale(on_shortcut).add(residual.scale(on_residual))
        return _propagate(module.post, merged, zero_init_last)
    if isinstance(module, nn.Conv2d):
        return Moments(0., 2 * module.in_channels / module.out_channels * x.second)
    if isinstance(module, ZeroPadShortcut):
        mean = x.mean * module.kept
        return Moments(mean, x.second * module.kept - mean ** 2)
    if getattr(module, 'running_var', None) is not None:
        module.running_var.fill_(x.second)
        x = x.scale(1 / math.sqrt(x.second + module.eps))
        return x if isinstance(getattr(module, 'act', None), nn.Identity) else x.rectify()
    if isinstance(module, nn.Sequential) or hasattr(module, 'blocks'):
        for child in module.children():
            x = _propagate(child, x, zero_init_last)
        return x
    return x.rectify() if isinstance(module, nn.ReLU) else x
