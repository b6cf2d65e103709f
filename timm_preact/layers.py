"""A network of ours as the kernels of `timm_preact.kernels.blocks` see it: maps in memory, and layers between them.

What stands before a convolution is never stored: a layer reads a map through its norm and its ReLU (`View`). Where the
activations of a placement stand decides nothing but which norm and which ReLU a view has, and whether the addition is
the epilogue of a convolution or, behind a norm of the branch or in a merge that is no plain sum, a layer of its own.
"""
from dataclasses import dataclass, field
from typing import List, NamedTuple, Optional, Tuple, Union

from timm.layers import BatchNormAct2d
from torch import nn

from .preact_resnet import PreActResNet
from .unit import MERGES, Add, DropoutShortcut, ResidualUnit, ShortcutGate, ZeroPadShortcut

__all__ = ['Conv', 'IMAGE_CHANNELS', 'Layers', 'Map', 'Merge', 'Norm', 'Shortcut', 'Unfit', 'View', 'layers_of']

IMAGE_CHANNELS = 16  # that a map of images has, zeros behind the colours: no product is narrower
WIDTHS = {1: (16, 32, 64, 128, 256), 3: (16, 32, 64)}  # channels that a convolution may read and write, by its kernel


class Unfit(Exception):
    """What the kernels do not take; PyTorch's modules do."""


@dataclass(eq=False)
class Norm:
    """A BatchNorm, or a gate's bias, of `channels` on maps of `pixels`."""
    name: str
    channels: int
    pixels: int
    is_bias: bool = False


@dataclass(eq=False)
class Map:
    """A stored activation of (height, width, channels) an image.

    Attributes:
        view: Through what it is read, besides as it is.
        readers: The layers that read it, in their order, and through what.
    """
    height: int
    width: int
    channels: int
    view: Optional['View'] = None
    readers: List[Tuple[object, 'View']] = field(default_factory=list)

    @property
    def shape(self) -> Tuple[int, int, int]:
        return self.height, self.width, self.channels

    @property
    def norm(self) -> Optional[Norm]:
        return self.view and self.view.norm


class View(NamedTuple):
    """A map through a norm, a ReLU, both or neither."""
    map: Map
    norm: Optional[Norm] = None
    relu: bool = False

    @property
    def is_raw(self) -> bool:
        return self.norm is None and not self.relu


class Shortcut(NamedTuple):
    """h(x): a view, or what option A (`pads`) makes of it."""
    view: View
    pads: bool = False
    stride: int = 1


@dataclass(eq=False)
class Conv:
    """out = conv(source) + plus."""
    name: str
    source: View
    out: Map
    kernel: int
    stride: int
    plus: Optional[Shortcut] = None


@dataclass(eq=False)
class Merge:
    """out = h and F merged, elementwise, by a key of MERGES; h alone without `branch`."""
    name: str
    shortcut: Shortcut
    branch: Optional[View]
    out: Map
    kind: str = 'add'
    gate: Optional[Map] = None
    bias: Optional[Norm] = None
    drop: float = 0.


class Layers(NamedTuple):
    """A network: its layers in their order, and what the head reads."""
    images: Map
    layers: List[Union[Conv, Merge]]
    norms: List[Norm]
    head: View
    classes: int
    eps: float
    momentum: float


class Tracer:
    """Writes down what a network does to a map of images."""

    def __init__(self):
        self.layers: List[Union[Conv, Merge]] = []
        self.norms: List[Norm] = []
        self.constants = set()

    def read(self, layer: object, view: View) -> None:
        if not view.is_raw:
            if view.map.view not in (None, view):
                raise Unfit('a map is read through two norms')
            view.map.view = view
        view.map.readers.append((layer, view))

    def through(self, view: View, module: nn.Module, name: str) -> View:
        """What a norm, a ReLU, both or nothing makes of a view."""
        if type(module) is nn.Identity:
            return view
        if type(module) is nn.ReLU:
            return view._replace(relu=True)
        if (type(module) is not BatchNormAct2d or type(module.act) not in (nn.ReLU, nn.Identity) or not module.affine
                or module.running_mean is None or module.momentum is None or type(module.drop) is not nn.Identity):
            raise Unfit(f'{name} is neither a BatchNorm nor a ReLU')
        if not view.is_raw:
            raise Unfit(f'{name} follows another norm')
        norm = Norm(name, view.map.channels, view.map.height * view.map.width)
        self.norms.append(norm)
        self.constants.add((module.eps, module.momentum))
        return View(view.map, norm, type(module.act) is nn.ReLU)

    def conv(self, module: nn.Module, source: View, name: str, plus: Optional[Shortcut] = None,
             gate: bool = False) -> Map:
        (kernel, width), (stride, _) = module.kernel_size, module.stride
        read, written = source.map.channels, module.out_channels
        if (type(module) is not nn.Conv2d or kernel != width or kernel not in WIDTHS or module.groups > 1
                or module.dilation != (1, 1) or module.stride not in ((1, 1), (2, 2)) or module.padding_mode != 'zeros'
                or module.padding != (kernel // 2,) * 2 or (module.bias is not None) != gate):
            raise Unfit(f'{name} is no plain convolution of 1x1 or 3x3')
        if read not in WIDTHS[kernel] or written not in WIDTHS[kernel]:
            raise Unfit(f'{name} goes from {read} to {written} channels')
        if source.map.height % stride or source.map.width % stride:
            raise Unfit(f'{name} halves a map of {source.map.height}x{source.map.width}')
        out = Map(source.map.height // stride, source.map.width // stride, written)
        layer = Conv(name, source, out, kernel, stride, plus)
        self.read(layer, source)
        if plus is not None:
            self.read(layer, plus.view)
        self.layers.append(layer)
        return out

    def merge(self, name: str, shortcut: Shortcut, branch: Optional[View], out: Map, module: nn.Module = None) -> View:
        layer = Merge(name, shortcut, branch, out)
        if isinstance(module, ShortcutGate):
            if shortcut.pads:  # the gate convolves what option A makes: it is stored
                copied = self.merge(name, shortcut, None, Map(*out.shape))
                shortcut = layer.shortcut = Shortcut(copied)
            layer.gate = self.conv(module.gate, shortcut.view, f'{name}.gate', gate=True)
            layer.bias = Norm(f'{name}.gate', out.channels, out.height * out.width, is_bias=True)
            self.norms.append(layer.bias)
            self.read(layer, View(layer.gate))
        if module is not None:
            kinds = [kind for kind, merge in MERGES.items() if type(module) is merge]
            if not kinds:
                raise Unfit(f'{name} is no merge of the paper')
            layer.kind = kinds[0]
        if isinstance(module, DropoutShortcut):
            layer.drop = module.dropout.p
        self.read(layer, shortcut.view)
        if branch is not None:
            self.read(layer, branch)
        self.layers.append(layer)
        return View(out)

    def unit(self, unit: ResidualUnit, x: View, name: str) -> View:
        if type(unit) is not ResidualUnit or type(unit.drop_path) is not nn.Identity:
            raise Unfit(f'{name} is no unit of the paper')
        a = self.through(x, unit.pre, f'{name}.pre')
        read = a if unit.activated_shortcut else x
        *layers, last = named = list(unit.residual.named_children())
        tail = ()
        if not isinstance(last[1], nn.Conv2d):
            *layers, last = layers
            tail = named[-1]
        y = a
        for child, module in layers:
            at = f'{name}.residual.{child}'
            y = View(self.conv(module, y, at)) if isinstance(module, nn.Conv2d) else self.through(y, module, at)
        shortcut = Shortcut(read)
        if isinstance(unit.shortcut, ZeroPadShortcut):
            shortcut = Shortcut(read, True, unit.shortcut.stride)
        elif not isinstance(unit.shortcut, nn.Identity):
            projected = View(self.conv(unit.shortcut.conv, read, f'{name}.shortcut.conv'))
            if hasattr(unit.shortcut, 'norm'):
                projected = self.through(projected, unit.shortcut.norm, f'{name}.shortcut.norm')
            shortcut = Shortcut(projected)
        normed = shortcut.view.norm is not None and not shortcut.view.map.readers  # a projection's own
        if type(unit.merge) is Add and not tail and not normed:
            out = View(self.conv(last[1], y, f'{name}.residual.{last[0]}', plus=shortcut))
        else:
            branch = View(self.conv(last[1], y, f'{name}.residual.{last[0]}'))
            shape = branch.map.shape
            if tail:
                branch = self.through(branch, tail[1], f'{name}.residual.{tail[0]}')
            out = self.merge(f'{name}.merge', shortcut, branch, Map(*shape), unit.merge)
        return self.through(out, unit.post, f'{name}.post')


def layers_of(model: nn.Module, height: int, width: int) -> Layers:
    """The layers of a network for images of a size.

    Raises:
        Unfit: The kernels lack something that it has.
    """
    if type(model) is not PreActResNet or model.stem_pools or model.in_chans != 3:
        raise Unfit('it is no network of the paper for CIFAR')
    if (model.grad_checkpointing or model.drop_rate or model.num_classes < 2
            or model.head.global_pool.pool_type != 'avg'):
        raise Unfit('its head or its checkpointing is another')
    tracer, images = Tracer(), Map(height, width, IMAGE_CHANNELS)
    stem = View(tracer.conv(model.stem.conv, View(images), 'stem.conv'))
    x = tracer.through(stem, model.stem.norm, 'stem.norm')
    for i, stage in enumerate(model.stages):
        for j, unit in enumerate(stage.blocks):
            x = tracer.unit(unit, x, f'stages.{i}.blocks.{j}')
    head = tracer.through(x, model.norm, 'norm')
    tracer.read(None, head)
    if len(tracer.constants) != 1:
        raise Unfit('its norms differ in eps or momentum')
    (eps, momentum), = tracer.constants
    for layer in tracer.layers:
        check_order(layer)
    return Layers(images, tracer.layers, tracer.norms, head, model.num_classes, eps, momentum)


def check_order(layer: Union[Conv, Merge]) -> None:
    """The gradient of a map is complete when that of its first reader through its norm is: nothing comes after it.

    Raises:
        Unfit: Something would.
    """
    out = layer.out
    main = [reader for reader, view in out.readers if view == (out.view or View(out))]
    if not main or out.readers[0][0] is not main[0]:
        raise Unfit(f'what follows {layer.name} is read in another order')
