"""The residual unit of "Identity Mappings in Deep Residual Networks" (He et al., ECCV 2016, arXiv:1603.05027).

A unit computes (Eq. 1 and 2 of the paper)

    y = merge(h(x), F(x)),    x' = f(y)

with h the shortcut, F the residual branch and f what stands after the addition. The paper's five activation
placements (Fig. 4) are permutations of the same convolutions (c), BatchNorms (n) and ReLUs (a): each is written here
as three strings, and a dictionary of them replaces five classes. The merges of its Table 1 (Fig. 2) are a second
dictionary. Everything that selects a variant is plain data, so that YAML and config.json round-trip.
"""
import math
from collections import OrderedDict
from typing import Any, Callable, Dict, NamedTuple, Optional, Tuple, Union

import torch
import torch.nn.functional as F
from timm.layers import DropPath, create_act_layer
from torch import nn
from torch.autograd import forward_ad
from torch.nn.modules.module import _has_any_global_hook

from .memory import can_make_again, has_watched_parts, norm_act_convs

__all__ = [
    'Add', 'ConstantScaling', 'DropoutShortcut', 'Factor', 'MERGES', 'PLACEMENTS', 'Placement', 'ResidualUnit',
    'ShortcutGate', 'ZeroPadShortcut', 'create_norm_act', 'create_shortcut', 'replicate',
]


Factor = Union[float, torch.Tensor]


class Placement(NamedTuple):
    """Where the activations of a unit stand (Fig. 4), over c (convolution), n (BatchNorm) and a (ReLU).

    Attributes:
        pre: Before the branch. A placement with one needs the same before the head, and a stem without it.
        tail: After the last convolution of the branch.
        post: After the addition: f of Eq. 2, the identity where it is empty.
    """
    pre: str
    tail: str
    post: str

    def branch(self, num_convs: int) -> str:
        """The branch with `num_convs` convolutions as a string, e.g. 'nacnac' for full pre-activation and two."""
        return self.pre + 'cna' * (num_convs - 1) + 'c' + self.tail

    @property
    def stem(self) -> str:
        """What follows a convolutional stem so that the first unit reads what every later one reads."""
        return 'na'[:2 - len(self.pre)]

    @property
    def projection_norm(self) -> bool:
        """Whether a projection shortcut has a BatchNorm: only where no activation precedes it."""
        return not self.pre


PLACEMENTS: Dict[str, Placement] = {
    'orig': Placement(pre='', tail='n', post='a'),  # Fig. 4(a), the unit of "Deep Residual Learning"
    'bn_after_add': Placement(pre='', tail='', post='na'),  # Fig. 4(b)
    'relu_before_add': Placement(pre='', tail='na', post=''),  # Fig. 4(c)
    'relu_only': Placement(pre='a', tail='n', post=''),  # Fig. 4(d)
    'full': Placement(pre='na', tail='', post=''),  # Fig. 4(e), the proposed unit
}


class Merge(nn.Module):
    """What becomes of h(x) and F(x): each is multiplied by its factor, and they are added up."""

    def __init__(self, scales: Tuple[float, float] = (1., 1.)):
        super().__init__()
        self.scales = scales  # the factors of freshly initialised weights, as far as they are known before any image

    def factors(self, shortcut: torch.Tensor) -> Tuple[Factor, Factor]:
        """What multiplies h(x), given here, and F(x): numbers, or tensors of their shape."""
        return self.scales


class Add(Merge):
    """h(x) + F(x), Eq. 1."""

    def __init__(self, channels: int, device=None, dtype=None):
        super().__init__()

    def forward(self, shortcut: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return shortcut + residual


class ConstantScaling(Merge):
    """Fig. 2(b): both paths scaled by constants."""

    def __init__(self, channels: int, shortcut: float = 0.5, residual: float = 0.5, device=None, dtype=None):
        super().__init__((shortcut, residual))
        self.shortcut = shortcut
        self.residual = residual

    def forward(self, shortcut: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return shortcut * self.shortcut + residual * self.residual


class ShortcutGate(Merge):
    """Fig. 2(d), shortcut-only gating: (1 - g) h(x) + F(x), g = sigmoid(W h(x) + b), a 1x1 convolution.

    The gate reads h(x), not x, so that it also fits where a unit changes shape (the paper does not say what its gates
    do there).
    """

    def __init__(self, channels: int, bias: float = -6., device=None, dtype=None):
        super().__init__(self.weigh(1 / (1 + math.exp(-bias))))
        self.bias = bias
        self.gate = nn.Conv2d(channels, channels, 1, device=device, dtype=dtype)

    @staticmethod
    def weigh(g: Factor) -> Tuple[Factor, Factor]:
        return 1 - g, 1.

    def factors(self, shortcut: torch.Tensor) -> Tuple[Factor, Factor]:
        return self.weigh(self.gate(shortcut).sigmoid())

    def forward(self, shortcut: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        g = self.gate(shortcut).sigmoid()
        return (1 - g) * shortcut + residual


class ExclusiveGate(ShortcutGate):
    """Fig. 2(c), exclusive gating as in Highway networks: (1 - g) h(x) + g F(x)."""

    @staticmethod
    def weigh(g: Factor) -> Tuple[Factor, Factor]:
        return 1 - g, g

    def forward(self, shortcut: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        g = self.gate(shortcut).sigmoid()
        return (1 - g) * shortcut + g * residual


class DropoutShortcut(Merge):
    """Fig. 2(f): dropout on the output of the shortcut."""

    def __init__(self, channels: int, p: float = 0.5, device=None, dtype=None):
        super().__init__()
        self.dropout = nn.Dropout(p)

    def factors(self, shortcut: torch.Tensor) -> Tuple[Factor, Factor]:
        return self.dropout(torch.ones_like(shortcut)), 1.

    def forward(self, shortcut: torch.Tensor, residual: torch.Tensor) -> torch.Tensor:
        return self.dropout(shortcut) + residual


MERGES: Dict[str, Callable[..., nn.Module]] = {
    'add': Add,
    'const_scale': ConstantScaling,
    'excl_gate': ExclusiveGate,
    'shortcut_gate': ShortcutGate,
    'dropout_shortcut': DropoutShortcut,
}


class ZeroPadShortcut(nn.Module):
    """Option A of "Deep Residual Learning": subsample, append zero channels after the kept ones; no parameters.

    Maps (N, in_chs, H, W) to (N, out_chs, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(self, in_chs: int, out_chs: int, stride: int = 1):
        super().__init__()
        if out_chs < in_chs:
            raise ValueError(f"shortcut 'A' only appends channels: it cannot go from {in_chs} to {out_chs}.")
        self.stride = stride
        self.pad = out_chs - in_chs
        self.kept = in_chs / out_chs

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.pad(x[:, :, ::self.stride, ::self.stride], [0, 0, 0, 0, 0, self.pad])


def create_norm_act(spec: str, channels: int, norm_layer: Callable, act_layer: Any, **dd) -> nn.Module:
    """What 'na', 'n', 'a' or '' stands for. A lone activation is never in place: it may read the shortcut's tensor."""
    if spec == '':
        return nn.Identity()
    if spec == 'a':
        return create_act_layer(act_layer, inplace=False)
    try:
        return norm_layer(channels, **({} if spec == 'na' else {'apply_act': False}), **dd)
    except ValueError as e:
        raise ValueError(
            f'norm_layer cannot normalise {channels} channels ({e}): pass a callable that can, for example '
            f'norm_layer=functools.partial(timm.layers.GroupNormAct, num_groups=8).'
        ) from e


def create_shortcut(
        option: str,
        in_chs: int,
        out_chs: int,
        stride: int = 1,
        transition: bool = False,
        norm: bool = False,
        bias: bool = False,
        norm_layer: Optional[Callable] = None,
        **dd,
) -> nn.Module:
    """The shortcut h of a unit by its option in "Deep Residual Learning", section 4.1.

    Args:
        option: 'A' zero-padding where the shape changes, 'B' a 1x1 projection there, 'C' a projection in every unit.
        in_chs: Channels read.
        out_chs: Channels returned.
        stride: Subsampling of both spatial dimensions.
        transition: Count as a change of shape, where dilation stands for the stride that would make it one.
        norm: Follow a projection with a norm.
        bias: Give a projection a bias.
        norm_layer: What makes that norm.
    """
    changes_shape = in_chs != out_chs or stride != 1 or transition
    if option == 'C' or (option == 'B' and changes_shape):
        shortcut = OrderedDict(conv=nn.Conv2d(in_chs, out_chs, 1, stride=stride, bias=bias, **dd))
        if norm:
            shortcut['norm'] = create_norm_act('n', out_chs, norm_layer, None, **dd)
        return nn.Sequential(shortcut)
    return ZeroPadShortcut(in_chs, out_chs, stride) if changes_shape else nn.Identity()


class ResidualUnit(nn.Module):
    """One residual unit, x' = f(merge(h(x), F(x))): any placement, kernel list, shortcut and merge of the paper.

    Shape: (N, in_chs, H, W) to (N, out_chs, ceil(H / stride), ceil(W / stride)).
    """

    def __init__(
            self,
            in_chs: int,
            out_chs: int,
            kernels: Tuple[int, ...] = (3, 3),
            bottle_ratio: float = 1.,
            stride: int = 1,
            stride_on: str = '1x1',
            dilation: int = 1,
            first_dilation: Optional[int] = None,
            placement: str = 'full',
            shortcut: str = 'B',
            activated_shortcut: bool = True,
            projection_norm: Optional[bool] = None,
            biases: Tuple[str, ...] = (),
            merge: str = 'add',
            merge_kwargs: Optional[Dict[str, Any]] = None,
            drop_path: float = 0.,
            recompute_norms: bool = False,
            act_layer: Any = 'relu',
            norm_layer: Optional[Callable] = None,
            device=None,
            dtype=None,
    ):
        """
        Args:
            in_chs: Channels of x.
            out_chs: Channels of x'.
            kernels: Kernel sizes of the branch: (3,) one-layer, (3, 3) basic, (1, 3, 1) bottleneck.
            bottle_ratio: Width of the convolutions before the last one, as a share of out_chs.
            stride: Spatial stride of the unit.
            stride_on: Which convolution has it, '1x1' or '3x3': the first one of that kernel (else the first).
            dilation: Dilation of the 3x3 convolutions.
            first_dilation: Dilation up to and including the convolution that has the stride.
            placement: A key of PLACEMENTS.
            shortcut: 'A', 'B' or 'C', see `create_shortcut`.
            activated_shortcut: The shortcut reads pre(x), not x. True or False makes no difference where pre is empty.
            projection_norm: A projection has a norm; None leaves it to the placement.
            biases: Convolutions with a bias: 'inner' all of the branch but its last, 'last' that one, 'shortcut' a
                projection.
            merge: A key of MERGES.
            merge_kwargs: Arguments of the merge, e.g. dict(bias=-7.) for a gate.
            drop_path: Probability of dropping the branch (stochastic depth).
            recompute_norms: Train in about half the memory, see `timm_preact.memory`.
            act_layer: Activation, by timm's name or a class.
            norm_layer: Makes a norm with activation, as `timm.layers.get_norm_act_layer` returns.
        """
        super().__init__()
        dd = {'device': device, 'dtype': dtype}
        layers = dict(norm_layer=norm_layer, act_layer=act_layer)
        place = PLACEMENTS[placement]
        self.activated_shortcut = activated_shortcut
        self.recompute_norms = recompute_norms

        self.pre = create_norm_act(place.pre, in_chs, **layers, **dd)

        strided = next((i for i, k in enumerate(kernels) if f'{k}x{k}' == stride_on), 0)
        self.residual = nn.Sequential()
        prev_chs = in_chs
        for i, kernel in enumerate(kernels):
            is_last = i + 1 == len(kernels)
            chs = out_chs if is_last else int(out_chs * bottle_ratio)
            conv_dilation = (first_dilation or dilation) if i <= strided else dilation
            self.residual.add_module(f'conv{i + 1}', nn.Conv2d(
                prev_chs,
                chs,
                kernel,
                stride=stride if i == strided else 1,
                padding=conv_dilation * (kernel // 2),
                dilation=conv_dilation if kernel > 1 else 1,
                bias=('last' if is_last else 'inner') in biases,
                **dd,
            ))
            after = place.tail if is_last else 'na'
            if after:
                self.residual.add_module(f'norm{i + 1}', create_norm_act(after, chs, **layers, **dd))
            prev_chs = chs

        self.shortcut = create_shortcut(
            shortcut,
            in_chs,
            out_chs,
            stride,
            transition=first_dilation not in (None, dilation),
            norm=place.projection_norm if projection_norm is None else projection_norm,
            bias='shortcut' in biases,
            norm_layer=norm_layer,
            **dd,
        )
        self.drop_path = DropPath(drop_path) if drop_path > 0. else nn.Identity()
        self.merge = MERGES[merge](out_chs, **(merge_kwargs or {}), **dd)
        self.post = create_norm_act(place.post, out_chs, **layers, **dd)

    def combine(self, x: torch.Tensor, a: torch.Tensor) -> torch.Tensor:
        """f(merge(h(x), F(x))), given x and a = pre(x)."""
        shortcut = self.shortcut(a if self.activated_shortcut else x)
        return self.post(self.merge(shortcut, self.drop_path(self.residual(a))))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.jit.is_scripting():
            if self.recompute_norms and self.is_unrecorded(x):
                return self.forward_recomputing(x)
        return self.combine(x, self.pre(x))

    @torch.jit.unused
    def is_unrecorded(self, x: torch.Tensor) -> bool:
        """Return True if only reverse-mode autograd follows the operators on x.

        There is no hook, no tracer, no transform of torch.func or forward-mode autograd, which need the modules' own
        operators, and no compiler, which recomputes by itself.
        """
        return not (
            torch.compiler.is_compiling() or torch.jit.is_tracing() or isinstance(x, torch.fx.Proxy)
            or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0
            or _has_any_global_hook() or has_watched_parts(self))

    @torch.jit.unused
    def forward_recomputing(self, x: torch.Tensor) -> torch.Tensor:
        """`forward`, with each BN-ReLU that a convolution follows made again in backward."""
        first, *layers = self.residual
        projects = self.activated_shortcut and isinstance(self.shortcut, nn.Sequential)
        convs = [first, self.shortcut.conv] if projects else [first]
        if can_make_again(x, self.pre, convs):
            a, y, *projected = norm_act_convs(x, self.pre, convs)
        else:
            a = self.pre(x)
            y, projected = first(a), []
        if projected:
            shortcut = projected[0]
            for layer in list(self.shortcut)[1:]:
                shortcut = layer(shortcut)
        else:
            shortcut = self.shortcut(a if self.activated_shortcut else x)
        while layers:
            layer = layers.pop(0)
            if not layers or not can_make_again(y, layer, layers[:1]):
                y = layer(y)
                continue
            conv = layers.pop(0)
            if not layers and type(self.merge) is Add and not isinstance(self.drop_path, DropPath):
                return self.post(norm_act_convs(y, layer, [conv], plus=shortcut)[1])
            _, y = norm_act_convs(y, layer, [conv])
        return self.post(self.merge(shortcut, self.drop_path(y)))


def replicate(module: nn.Module) -> nn.Module:
    """Another unit of the paper's own layers, several times faster than building it or than copy.deepcopy.

    Vectors and buffers are copied; the values of weights with more than one dimension are undefined until initialised.
    Of layers that others wrote nothing is known: such units are built.
    """
    twin = module.__new__(type(module))
    state = twin.__dict__ = vars(module).copy()
    for key, value in state.items():
        if isinstance(value, (dict, set)):
            state[key] = value.copy() if value else type(value)()
    for key, child in module._modules.items():
        twin._modules[key] = replicate(child)
    for key, p in module._parameters.items():
        if p is not None:
            twin._parameters[key] = nn.Parameter(torch.empty_like(p) if p.ndim > 1 else p.detach().clone())
    for key, buffer in module._buffers.items():
        if buffer is not None:
            twin._buffers[key] = buffer.clone()
    return twin
