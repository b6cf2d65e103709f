"""Training in half the memory: what a BatchNorm and its ReLU make of a tensor is not kept for backward but made again.

A convolution's backward reads its input a = ReLU(BN(x)), and the BatchNorm's reads x: a network keeps both. But a is
one cheap pass over x once BatchNorm's mean and deviation are known, so `norm_act_convs` keeps x alone, one tensor a
convolution, and makes a anew in backward. Only the memory changes: the values are those of the modules it stands in
for, and running statistics are updated once. It goes with autocast, DistributedDataParallel, checkpointing and capture
as a CUDA graph, since nothing in it waits for the device. A compiler decides itself what it keeps: while one traces, a
unit runs as its modules. So it does where a norm is a SyncBatchNorm, whose statistics are not of this process alone.

`checkpoint_units` keeps still less: the input of every few units, between which forward runs again.
"""
from contextlib import contextmanager, nullcontext
from typing import Callable, Dict, Iterator, List, Optional, Sequence, Tuple

import torch
from timm.layers import BatchNormAct2d
from torch import nn
from torch.autograd.function import once_differentiable
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from .kernels import Geometry, autocast_dtype, cast, convolve, norm_relu, norm_relu_backward

__all__ = [
    'bytes_kept', 'can_make_again', 'checkpoint_units', 'frozen_statistics', 'has_watched_parts', 'is_watched',
    'norm_act_convs', 'run_again_in_backward',
]


def is_watched(module: nn.Module) -> bool:
    """Whether somebody looks into a module, or changed what it does: a hook on it or in it, or a forward of its own."""
    state = vars(module)
    if (state['_forward_pre_hooks'] or state['_forward_hooks'] or state['_backward_pre_hooks']
            or state['_backward_hooks'] or 'forward' in state):
        return True
    return has_watched_parts(module)


def has_watched_parts(module: nn.Module) -> bool:
    """Whether somebody looks on inside a module: its own hooks see what goes in and comes out alone."""
    for child in vars(module)['_modules'].values():  # a loop, since every unit asks at every step
        if child is not None and is_watched(child):
            return True
    return False


def can_make_again(x: torch.Tensor, norm: nn.Module, convs: Sequence[nn.Module]) -> bool:
    """Return True if `norm_act_convs` can replace these modules on x: same values, gradients and running statistics.

    That is so for a BatchNorm that normalises by the batch and updates its running statistics by a fixed momentum,
    followed by ReLU alone, and for plain zero-padding convolutions. Classes are compared exactly. In every other state
    of the modules (evaluation mode, `track_running_stats=False`, momentum None, a missing parameter or buffer, types
    that differ) the modules run themselves.
    """
    if type(norm) is not BatchNormAct2d:
        return False
    dtypes = {None if tensor is None else tensor.dtype for tensor in (
        norm.weight, norm.bias, norm.running_mean, norm.running_var)}
    return (
        x.ndim == 4 and len(x) > 0 and norm.training and norm.track_running_stats and torch.is_grad_enabled()
        and type(norm.act) is nn.ReLU and type(norm.drop) is nn.Identity and norm.momentum is not None
        and dtypes in ({x.dtype}, {torch.float32})
        and all(type(conv) is nn.Conv2d and conv.padding_mode == 'zeros' and not isinstance(conv.padding, str)
                and all(p is None or autocast_dtype(p) == autocast_dtype(x) for p in (conv.weight, conv.bias))
                for conv in convs))


class NormActConvs(torch.autograd.Function):
    """a = ReLU(BN(x)) and convolutions of a, the first added to `plus`; backward is left x and BN's statistics."""

    @staticmethod
    def forward(ctx, x, weight, bias, plus, running, momentum, eps, geometries, *parameters):
        a, stats = norm_relu(x, weight, bias, running, momentum, eps)
        parameters = [None if p is None else cast(p, autocast_dtype(p)) for p in parameters]
        ctx.geometries = geometries
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(x, weight, stats, *parameters)
        outputs = []
        for kernel, offset, geometry in zip(parameters[::2], parameters[1::2], geometries, strict=True):
            outputs.append(convolve(cast(a, kernel.dtype), kernel, offset, geometry, None if outputs else plus))
        return a, *outputs

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_a, *grads):
        x, weight, stats, *parameters = ctx.saved_tensors
        if grad_a is None and all(grad is None for grad in grads):
            return (None,) * len(ctx.needs_input_grad)
        grad_parameters: List[Optional[torch.Tensor]] = [None] * len(parameters)

        def backward_of_convs(a: torch.Tensor, part: Optional[slice]) -> torch.Tensor:
            """The gradient with respect to a; that of the parameters grows."""
            def of_these(grad: Optional[torch.Tensor]) -> Optional[torch.Tensor]:
                return grad if part is None or grad is None else grad[part]

            total = of_these(grad_a)
            for i, (grad, (padding, stride, dilation, groups)) in enumerate(zip(grads, ctx.geometries, strict=True)):
                if grad is None:
                    continue
                kernel, offset = parameters[2 * i:2 * i + 2]
                of_a, *of_parameters = torch.ops.aten.convolution_backward(
                    of_these(grad), cast(a, kernel.dtype), kernel, None if offset is None else offset.shape, stride,
                    padding, dilation, False, (0, 0), groups,
                    (True, ctx.needs_input_grad[8 + 2 * i], offset is not None))
                of_a = cast(of_a, a.dtype)
                total = of_a if total is None else of_a.add_(total)
                for j, of_parameter in enumerate(of_parameters, 2 * i):
                    grad_parameters[j] = (
                        of_parameter if grad_parameters[j] is None else grad_parameters[j].add_(of_parameter))
            return total

        grad_x, grad_weight, grad_bias = norm_relu_backward(x, weight, stats, backward_of_convs)
        grad_plus = grads[0] if ctx.needs_input_grad[3] else None
        return grad_x, grad_weight, grad_bias, grad_plus, None, None, None, None, *grad_parameters


def norm_act_convs(
        x: torch.Tensor,
        norm: BatchNormAct2d,
        convs: Sequence[nn.Conv2d],
        plus: Optional[torch.Tensor] = None,
) -> Tuple[torch.Tensor, ...]:
    """a = norm(x), then conv(a) for each conv; what autograd keeps is x, where the modules would keep x and a.

    Args:
        x: (N, C, H, W), in any memory format, inside autocast or not.
        norm: Its running statistics are updated as by calling it.
        convs: Over C channels; with the norm they are what `can_make_again` takes. No hook of theirs runs.
        plus: Added to the first one's output.

    Raises:
        ValueError: A channel has one value alone: the variance of a batch is of two at least.
    """
    if x.numel() == x.shape[1]:
        raise ValueError(f'Expected more than 1 value per channel when training, got input size {x.shape}')
    running = (norm.running_mean, norm.running_var, norm.num_batches_tracked)
    parameters = [p for conv in convs for p in (conv.weight, conv.bias)]
    geometries = [Geometry.of(conv) for conv in convs]
    return NormActConvs.apply(
        x, norm.weight, norm.bias, plus, running, norm.momentum, norm.eps, geometries, *parameters)


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """BatchNorms in `module` normalise by their batch and leave their running statistics alone."""
    norms = [norm for norm in module.modules() if isinstance(norm, _BatchNorm)]
    before = [(norm.momentum, norm.num_batches_tracked) for norm in norms]
    for norm in norms:
        norm.momentum, norm.num_batches_tracked = 0., None
    try:
        yield
    finally:
        for norm, (momentum, count) in zip(norms, before, strict=True):
            norm.momentum, norm.num_batches_tracked = momentum, count


def run_again_in_backward(function: Callable, module: nn.Module, *args: torch.Tensor) -> torch.Tensor:
    """function(*args), of which autograd keeps the arguments; function runs `module`.

    Unlike torch's and timm's checkpointing by itself, this updates running statistics once.
    """
    if torch.compiler.is_compiling():  # a compiler runs updates once, and takes no context
        return checkpoint(function, *args, use_reentrant=False)
    return checkpoint(
        function, *args, use_reentrant=False, context_fn=lambda: (nullcontext(), frozen_statistics(module)))


def checkpoint_units(units: nn.Sequential, x: torch.Tensor, every: int = 1) -> torch.Tensor:
    """Run `units` one after the other; autograd keeps the input of every `every`-th and runs those between again."""
    for start in range(0, len(units), every):
        segment = units[start:start + every]
        x = run_again_in_backward(segment, segment, x)
    return x


def bytes_kept(model: nn.Module, compute: Callable[[], torch.Tensor]) -> Tuple[int, torch.Tensor]:
    """Bytes of the tensors that autograd keeps for backward while `compute` runs, and what it returns.

    Counted exactly, by saved-tensor hooks: each storage once, parameters and buffers of `model` left out.
    """
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    kept: Dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor.detach()  # its own node's output would hold the node, and the graph, for ever

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        result = compute()  # while it lives so does all that is kept: no address comes twice
    return sum(kept.values()), result
