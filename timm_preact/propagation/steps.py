"""The way back through a network, unit by unit, with the gradient and its part through the shortcuts alone."""
import math
from contextlib import contextmanager
from functools import partial
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

import torch
import torch.nn.functional as F
from timm.utils import unwrap_model
from torch import nn

from ..errors import UserError
from ..unit import Factor
from .paths import PATHS, residual_units, times

__all__ = ['END', 'Step', 'walk']

END = 'end'  # the step of what leaves the last unit


class Step(NamedTuple):
    """A unit on the way back. Tensors are (N, C, H, W).

    Attributes:
        name: Name of the unit in the network, `END` for what leaves the last one.
        stream: Its input x.
        gradient: dE/dx, E being the mean cross-entropy of the batch.
        direct: The part of `gradient` that came through the shortcuts alone; all of it at `END`.
        shortcut: What the addition gets from the shortcut, factor included. None at `END`, as are the others.
        branch: What it gets from the branch.
        factor: What the merge multiplies h(x) by: a number, or a tensor of the shape of h(x).
        dead: Share of the unit's ReLU channels that are zero at all positions of all images; NaN without ReLU.
        loss: E, at `END` alone.
    """
    name: str
    stream: torch.Tensor
    gradient: torch.Tensor
    direct: torch.Tensor
    shortcut: Optional[torch.Tensor] = None
    branch: Optional[torch.Tensor] = None
    factor: Optional[Factor] = None
    dead: float = math.nan
    loss: Optional[float] = None


class Visit(NamedTuple):
    """A unit on the way forward. `out` is a leaf of autograd: units cut its graph into pieces."""
    name: str
    unit: nn.Module
    seed: int
    x: torch.Tensor
    out: torch.Tensor


def walk(
        model: nn.Module,
        images: torch.Tensor,
        labels: torch.Tensor,
        training: bool = True,
        seed: int = 0,
) -> Iterator[Step]:
    """Go back through a network with its gradient, from `END` to the first unit; the network is left as it was.

    Forward keeps the inputs of units alone, each unit runs again on the way back. Close the iterator, or go through it,
    to have the network's mode and running statistics back.

    Args:
        model: A chain of units: ours, or timm's of resnet and resnetv2, with anything before, between and after.
        images: (N, C, H, W), normalised as the network wants them.
        labels: int64 (N,), from 0 to the number of classes - 1.
        training: Run as in training: BatchNorm by the batch, dropout active. False runs as in evaluation.
        seed: Of dropout and stochastic depth.

    Raises:
        UserError: There are no units, or they are no chain; weights or images hold NaN or infinity; every image is
            constant; a label is no class; the classifier passes no gradient on; torch.inference_mode is on.
    """
    if torch.is_inference_mode_enabled():
        raise UserError('there are no gradients in torch.inference_mode: leave it, or call measure.')
    model = unwrap_model(model)
    units = residual_units(model)
    check_finite(model)
    check_images(images)
    images = images.detach().requires_grad_()  # so that a path around the first unit is seen
    visits: List[Visit] = []

    def visit(name: str, unit: nn.Module, x: torch.Tensor) -> torch.Tensor:
        unit_seed = seed + 1 + len(visits)
        with graph_of(unit_seed, x.device), torch.no_grad():
            paths = PATHS[type(unit)](unit, x)
            out = paths.post(times(paths.factor, paths.shortcut) + paths.branch)
        visits.append(Visit(name, unit, unit_seed, x, out.requires_grad_()))
        return out

    with as_it_was(model, training):
        with graph_of(seed, images.device):
            with in_place_of(units, visit):
                logits = model(images)
            if not visits:
                raise UserError(f'{type(model).__name__} does not run its residual units: there is nothing to measure.')
            check_labels(model, logits, labels)
            loss = F.cross_entropy(logits, labels)
        (gradient,) = carry(loss, visits, [None])
        if not gradient.any():
            raise UserError('the classifier passes no gradient on: give it weights that are not zero.')
        direct = gradient
        yield Step(END, visits[-1].out.detach(), gradient, direct, loss=loss.item())
        while visits:
            name, unit, unit_seed, x, _ = visits.pop()
            leaf = x.detach().requires_grad_()
            with graph_of(unit_seed, x.device):
                with relu_channels() as (dead, channels):
                    paths = PATHS[type(unit)](unit, leaf)
                    shortcut = times(paths.factor, paths.shortcut)
                    out = paths.post(shortcut + paths.branch)
                factor = paths.factor.detach() if isinstance(paths.factor, torch.Tensor) else paths.factor
                alone = paths.post(times(factor, paths.shortcut) + paths.branch.detach())
            (gradient,) = torch.autograd.grad(out, leaf, gradient, retain_graph=True)
            (direct,) = torch.autograd.grad(alone, leaf, direct)
            yield Step(name, leaf.detach(), gradient, direct, shortcut.detach(), paths.branch.detach(), factor,
                       sum(dead.values()) / sum(channels.values()) if channels else math.nan)
            if visits:
                gradient, direct = carry(x, visits, [gradient, direct])


def carry(target: torch.Tensor, visits: List[Visit], gradients: Sequence[Optional[torch.Tensor]]) -> List[torch.Tensor]:
    """From gradients of `target` to those of what left the last unit visited, of which alone it is to be made.

    Raises:
        UserError: It is made of what left another unit too, or not of this one.
    """
    outs = [x for x in (visits[0].x, *(visit.out for visit in visits)) if x.requires_grad]
    if target is outs[-1]:
        return list(gradients)
    carried = []
    for gradient in gradients:
        *earlier, last = torch.autograd.grad(
            target, outs, gradient, retain_graph=True, allow_unused=True) if target.requires_grad else [None]
        if last is None or any(other is not None for other in earlier):
            raise UserError(f'what follows {visits[-1].name} does not read that unit alone: only networks whose units '
                            f'are a chain can be measured.')
        carried.append(last)
    return carried


@contextmanager
def graph_of(seed: int, device: torch.device) -> Iterator[None]:
    """Autograd records inside, and chance is that of `seed`; outside nothing of it is left."""
    cuda = [device] if device.type == 'cuda' else []
    with torch.random.fork_rng(cuda), torch.enable_grad():
        # not torch.manual_seed, which on a machine without a GPU leaves a note for one at each call
        torch.default_generator.manual_seed(seed)
        if cuda:
            torch.cuda.default_generators[device.index].manual_seed(seed)
        yield


@contextmanager
def as_it_was(model: nn.Module, training: bool) -> Iterator[None]:
    """The mode asked for inside; modes and buffers (running statistics) as they were outside."""
    modes = [(module, module.training) for module in model.modules()]
    buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
    model.train(training)
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


@contextmanager
def in_place_of(units: Dict[str, nn.Module], visit: Callable) -> Iterator[None]:
    """Calls of a unit, compiled or not, run visit(name, unit, x) inside."""
    before = [(unit._compiled_call_impl, vars(unit).get('forward')) for unit in units.values()]
    for name, unit in units.items():
        unit._compiled_call_impl = None
        unit.forward = partial(visit, name, unit)
    try:
        yield
    finally:
        for unit, (compiled, forward) in zip(units.values(), before, strict=True):
            unit._compiled_call_impl = compiled
            del unit.forward
            if forward is not None:
                unit.forward = forward


@contextmanager
def relu_channels() -> Iterator[Tuple[Dict[nn.Module, int], Dict[nn.Module, int]]]:
    """Of each ReLU that runs inside, how many channels are dead, and how many there are."""
    dead: Dict[nn.Module, int] = {}
    channels: Dict[nn.Module, int] = {}

    def look(module: nn.Module, args: Any, output: torch.Tensor) -> None:
        if isinstance(module, (nn.ReLU, nn.ReLU6)):
            highest = output.detach().amax((0, *range(2, output.ndim)))
            dead[module], channels[module] = int((highest <= 0).sum()), len(highest)

    handle = nn.modules.module.register_module_forward_hook(look)
    try:
        yield dead, channels
    finally:
        handle.remove()


def check_finite(model: nn.Module) -> None:
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise UserError(f'{name} holds NaN or infinity: give weights that are finite.')


def check_images(images: torch.Tensor) -> None:
    if len(images) == 0:
        raise UserError('there are no images: give at least one.')
    if not images.isfinite().all():
        raise UserError('the images hold NaN or infinity: give images that are finite.')
    if (images.amax((2, 3)) == images.amin((2, 3))).all():
        raise UserError('every image is constant, there is no signal in it: give real images.')


def check_labels(model: nn.Module, logits: Any, labels: torch.Tensor) -> None:
    if not isinstance(logits, torch.Tensor) or logits.ndim != 2 or getattr(model, 'num_classes', None) == 0:
        raise UserError('the network does not end with one classifier: create it with num_classes and pooling.')
    if labels.shape != logits.shape[:1] or labels.min() < 0 or labels.max() >= logits.shape[1]:
        raise UserError(f'labels must be {len(logits)} whole numbers from 0 to {logits.shape[1] - 1}: give the labels '
                        f'of these images for a network of as many classes.')
