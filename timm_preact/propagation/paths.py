"""A residual unit taken apart: what its addition gets from the shortcut and from the branch, and what follows it."""
from typing import Any, Callable, Dict, NamedTuple

import torch
from timm.models import resnet, resnetv2
from timm.utils import unwrap_model
from torch import nn

from ..errors import UserError
from ..unit import Factor, ResidualUnit

__all__ = ['PATHS', 'Paths', 'post_of', 'residual_units', 'times']


class Paths(NamedTuple):
    """What a unit adds up, x' = post(factor * shortcut + branch).

    Attributes:
        shortcut: h(x).
        factor: What the merge multiplies h(x) by.
        branch: F(x), times its own factor.
        post: What follows the addition.
    """
    shortcut: torch.Tensor
    factor: Factor
    branch: torch.Tensor
    post: Callable[[torch.Tensor], torch.Tensor]


def times(factor: Factor, x: torch.Tensor) -> torch.Tensor:
    return x if isinstance(factor, float) and factor == 1. else factor * x


def paths_of_unit(unit: ResidualUnit, x: torch.Tensor) -> Paths:
    a = unit.pre(x)
    shortcut = unit.shortcut(a if unit.activated_shortcut else x)
    residual = unit.drop_path(unit.residual(a))
    on_shortcut, on_residual = unit.merge.factors(shortcut)
    return Paths(shortcut, on_shortcut, times(on_residual, residual), unit.post)


def paths_of_pre_activation(block: nn.Module, x: torch.Tensor) -> Paths:
    """timm's: a projection reads the activated tensor, nothing follows the addition."""
    shortcut = x if block.downsample is None else block.downsample(block.norm1(x))
    return Paths(shortcut, 1., type(block).forward(block, x) - shortcut, nn.Identity())


def paths_of_post_activation(block: nn.Module, x: torch.Tensor) -> Paths:
    """timm's: its last activation follows the addition, and gets a copy of the sum, since it works in place."""
    post, sums = post_of(block), []
    handle = post.register_forward_pre_hook(lambda module, args: sums.append(args[0].clone()))
    try:
        type(block).forward(block, x)
    finally:
        handle.remove()
    shortcut = x if block.downsample is None else block.downsample(x)
    return Paths(shortcut, 1., sums[0] - shortcut, post)


# The residual units that can be taken apart: ours, and those of timm's resnet and resnetv2.
PATHS: Dict[type, Callable[[Any, torch.Tensor], Paths]] = {
    ResidualUnit: paths_of_unit,
    resnetv2.PreActBasic: paths_of_pre_activation,
    resnetv2.PreActBottleneck: paths_of_pre_activation,
    resnetv2.Bottleneck: paths_of_post_activation,
    resnet.Bottleneck: paths_of_post_activation,
    resnet.BasicBlock: paths_of_post_activation,
}


def post_of(unit: nn.Module) -> nn.Module:
    """What follows the addition in a unit of PATHS."""
    if isinstance(unit, ResidualUnit):
        return unit.post
    if PATHS[type(unit)] is paths_of_pre_activation:
        return nn.Identity()
    return unit.act3 if hasattr(unit, 'act3') else unit.act2


def residual_units(model: nn.Module) -> Dict[str, nn.Module]:
    """The units of `model` by name, in the order of its modules.

    Raises:
        UserError: There is none, or one of a class derived from a unit's, which may be anything.
    """
    units = {}
    for name, module in unwrap_model(model).named_modules():
        if type(module) in PATHS:
            units[name] = module
        elif isinstance(module, tuple(PATHS)):
            kind, base = type(module).__name__, type(module).__mro__[1].__name__
            raise UserError(f'{name} is a {kind}, derived from {base}: only units of that class itself can be taken '
                            f'apart.')
    if not units:
        raise UserError(f'{type(model).__name__} has no residual units that can be taken apart: give a network of '
                        f"ours, one built of timm_preact.unit.ResidualUnit, or one of timm's resnet and resnetv2.")
    return units
