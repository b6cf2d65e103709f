"""R networks of one shape as one: what `timm_preact.kernels.blocks` launches for a step of all of them.

Parameters, gradients and momenta are one flat float32 matrix each, (R, P): first the weights, then the vectors. A step
is a fixed list of launches on buffers that stay in their place, made once: forward, backward, update.
"""
from collections import defaultdict
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import torch
from torch import nn

from timm_preact.layers import IMAGE_CHANNELS, Conv, Map, Merge, Norm, Shortcut, Unfit, View, layers_of
from train.batches import Batches, EpochPlan
from train.recipe import Recipe, average_decay, count_steps

try:
    import timm_preact.kernels.blocks as blocks
except ImportError:  # without Triton nothing is launched from here
    blocks = None

__all__ = ['Replicas']

CLASSES = (16, 32, 64, 128)  # that a classifier is padded to
ELEMENTS = 2 ** 31  # of a map: offsets are 32-bit integers
ELEMENTWISE = 4096  # elements of a tile of a layer without products
SUMS_AT_ONCE = 8192  # partial sums that one load brings
FLAT = 1024  # parameters of a program that updates or lays them out
WEIGHTS = 128  # of a program that adds up a weight's gradient


class Tiling(NamedTuple):
    """How a convolution is cut: blocks of height x width pixels, `blocks` of them a program."""
    height: int
    width: int
    blocks: int
    warps: int
    stages: int


# By the larger number of channels, for 3x3 kernels with stride 1: what was fastest on an H100 with 5 replicas in a
# prototype of these kernels; `benchmarks.gpu` measures others
FORWARD = {16: Tiling(2, 2, 128, 4, 3), 32: Tiling(2, 2, 64, 4, 2), 64: Tiling(1, 1, 64, 4, 3)}
BACKWARD = {16: Tiling(1, 2, 128, 4, 2), 32: Tiling(1, 2, 128, 4, 2), 64: Tiling(1, 1, 128, 4, 2)}
WEIGHT = {16: Tiling(1, 2, 64, 4, 3), 32: Tiling(1, 2, 64, 8, 2), 64: Tiling(1, 1, 64, 4, 3)}
STRIDED = Tiling(2, 2, 64, 8, 2)  # the backward of stride 2
POINTWISE = Tiling(1, 1, 64, 4, 3)
WIDE = Tiling(1, 1, 64, 8, 3)  # the weight's gradient of 1x1 kernels on more than 128 channels: its sums fill registers
# Programs of a group that share the tiles of a weight's gradient, by channels: enough to fill a card with one network
# and the same for any number of them, so that sums do not depend on it
WEIGHT_PROGRAMS = {16: 64, 32: 32, 64: 16}


class Window(NamedTuple):
    """What a block reads: `taps` rows of `columns` pixels' channels, `per_row` of them side by side in a window row."""
    taps: int
    per_row: int
    columns: int

    @classmethod
    def of(cls, kernel: int, tiling: Tiling, channels: int, halved: bool = False) -> 'Window':
        """`halved`: the block's pixels are of a map twice the size of that which is read."""
        if kernel == 1:
            columns = min(channels, 64)
            return cls(channels // columns, 1, columns)
        if halved:
            return cls(tiling.height // 2 + 1, 1, (tiling.width // 2 + 1) * channels)
        if tiling.width == 1:
            return cls((tiling.height + 2) * 3, 3, channels)
        return cls(tiling.height + 2, 1, (tiling.width + 2) * channels)


@dataclass
class Buffer:
    """A gradient, and how many will still read it."""
    tensor: torch.Tensor
    shape: Tuple[int, int, int]
    users: int = 1


LAG = 4  # weights' gradients that may still be under way when the next is set aside

# Stand in a launch's arguments for the room for partial sums, which is made when the largest is known
SUMS, WEIGHT_SUMS = object(), object()


class Launch(NamedTuple):
    """A kernel with its grid, its arguments and its constants, to be called as often as one likes."""
    kernel: Any
    grid: Tuple[int, ...]
    args: Tuple[Any, ...]
    constants: Dict[str, Any]

    def __call__(self) -> None:
        self.kernel[self.grid](*self.args, **self.constants)


class Aside(NamedTuple):
    """Launches that nothing waits for until the update: on a GPU they run beside the others."""
    launches: Tuple[Launch, ...]


class Await(NamedTuple):
    """Here what was set aside as the `index`-th must be done."""
    index: int


def next_power_of_2(n: int) -> int:
    return 1 << (n - 1).bit_length()


@lru_cache
def places_of_weights(kernel: int, stride: int, inputs: int, outputs: int, tiling: Tiling,
                      forward: bool) -> torch.Tensor:
    """Which weight of (kernel, kernel, inputs, outputs) stands where in a product's second factor; -1 for none.

    (taps, columns, the block's outputs), see `Window`; outputs are inputs in the backward of a convolution.
    """
    read, written = (inputs, outputs) if forward else (outputs, inputs)
    halved = not forward and stride > 1
    window = Window.of(kernel, tiling, read, halved)
    t = torch.arange(window.taps, dtype=torch.int32)[:, None, None]
    k = torch.arange(window.columns, dtype=torch.int32)[None, :, None]
    n = torch.arange(tiling.height * tiling.width * written, dtype=torch.int32)[None, None, :]
    if kernel == 1:
        row = column = torch.zeros(1, 1, 1, dtype=torch.int32)
        source, target = t * window.columns + k, n
    else:
        by, bx, target = n // (tiling.width * written), n // written % tiling.width, n % written
        wy, wx, source = t // window.per_row, t % window.per_row + k // read, k % read
        if forward:
            row, column = wy - by, wx - bx
        elif halved:
            row, column = by + 1 - 2 * wy, bx + 1 - 2 * wx
        else:
            row, column = by - wy + 2, bx - wx + 2
    ci, co = (source, target) if forward else (target, source)
    ok = (row >= 0) & (row < kernel) & (column >= 0) & (column < kernel)
    return torch.where(ok, ((row * kernel + column) * inputs + ci) * outputs + co, -1)


class Replicas:
    """R networks of one shape in training.

    Args:
        models: The networks, equal but for the values of their parameters and the factors of their merges.
        recipe: How they are trained, all alike.
        train: Training images on the device.
        test: Test images.
        device: A GPU; a CPU in Triton's interpreter.
        dtype: Of activations and of what they are multiplied by.

    Attributes:
        rates: Learning rates, (R,).
        places: Where in its plan each stands, int32 (R,).
        plan: what `EpochPlan` has of every place of the epoch, in its order, int32 (6, R, N).
        seeds: Of dropout's masks, int32 (R,).
        loss_sum: Sum of the steps' losses, (R,).

    Raises:
        Unfit: The kernels do not take the network, the images or the batch.
    """

    def __init__(self, models: Sequence[nn.Module], recipe: Recipe, train: Batches, test: Batches, device: torch.device,
                 dtype: torch.dtype = torch.bfloat16):
        self.R, self.recipe, self.device, self.dtype = len(models), recipe, device, dtype
        self.batch = recipe.batch_size
        self.average_decay = average_decay(recipe, count_steps(recipe, len(train.labels)))
        self.images = recipe.bn_group or self.batch
        if self.batch % self.images:
            raise Unfit(f'groups of {self.images} images do not divide a batch of {self.batch}')
        self.G = self.batch // self.images
        self.size = train.images.shape[1:3]
        self.net = layers_of(models[0], *self.size)
        if self.net.classes > CLASSES[-1]:
            raise Unfit(f'{self.net.classes} classes are more than {CLASSES[-1]}')
        self.classes = next(width for width in CLASSES if width >= self.net.classes)
        largest = max(h * w * c for h, w, c in (layer.out.shape for layer in self.net.layers))
        if max(largest, self.size[0] * self.size[1] * IMAGE_CHANNELS) * self.batch * self.R >= ELEMENTS:
            raise Unfit(f'maps of {self.R} times {self.batch} images have {ELEMENTS} elements or more')
        if any(norm.pixels * self.images == 1 for norm in self.net.norms):
            raise Unfit('a norm sees one value of a channel')
        self.lay_out_parameters()
        self.allocate(train, test)
        for i, layer in enumerate(self.net.layers):
            if isinstance(layer, Merge) and layer.kind == 'const_scale':
                self.scales[i] = torch.tensor([model.get_submodule(layer.name).scales for model in models])
        self.training = [*self.forward(evaluate=False), *self.backward(), *self.update()]
        self.testing = self.forward(evaluate=True)
        self.make_room_for_sums()
        self.side = torch.cuda.Stream(device) if device.type == 'cuda' else None

    def lay_out_parameters(self) -> None:
        """Where each parameter begins, by name."""
        self.at: Dict[str, int] = {}
        size = 0

        def place(name: str, count: int) -> None:
            nonlocal size
            self.at[name] = size
            size += count

        for layer in self.convs:
            place(f'{layer.name}.weight', layer.kernel ** 2 * layer.source.map.channels * layer.out.channels)
        self.features = self.net.head.map.channels
        place('head.fc.weight', self.features * self.classes)
        self.decayed = size
        for norm in self.net.norms:
            if not norm.is_bias:
                place(f'{norm.name}.weight', norm.channels)
            place(f'{norm.name}.bias', norm.channels)
        place('head.fc.bias', self.classes)
        self.used, self.P = size, (size + 63) // 64 * 64
        if self.recipe.decay_all:
            self.decayed = self.used
        self.running_at: Dict[str, int] = {}
        self.V = 0
        self.statistics_at: Dict[Norm, int] = {}
        self.statistics_size = 0
        for norm in self.net.norms:
            if not norm.is_bias:
                self.running_at[norm.name] = self.V
                self.V += norm.channels
            self.statistics_at[norm] = self.statistics_size
            self.statistics_size += self.R * self.G * blocks.ROWS.value * norm.channels

    @property
    def convs(self) -> List[Conv]:
        return [layer for layer in self.net.layers if isinstance(layer, Conv)]

    def allocate(self, train: Batches, test: Batches) -> None:
        R, single = self.R, dict(dtype=torch.float32, device=self.device)
        integer = dict(dtype=torch.int32, device=self.device)
        self.values, self.grads, self.momenta = (torch.zeros(R, self.P, **single) for _ in range(3))
        self.running = torch.zeros(R, 2, self.V, **single)
        self.averages, self.running_averages = (torch.zeros_like(tensor) for tensor in (self.values, self.running))
        self.coefs, self.backs = (torch.zeros(max(1, self.statistics_size), **single) for _ in range(2))
        self.rates, self.loss_sum = torch.zeros(R, **single), torch.zeros(R, **single)
        self.scales = torch.ones(len(self.net.layers), R, 2, **single)
        self.places, self.seeds = torch.zeros(R, **integer), torch.zeros(R, **integer)
        self.mean, self.std = train.mean.contiguous(), train.std.contiguous()
        self.train, self.test = ((b.images.contiguous(), b.labels.contiguous()) for b in (train, test))
        self.plan = torch.zeros(len(EpochPlan._fields), R, len(train.labels), **integer)
        self.test_order = torch.arange(len(test.labels), **integer).repeat(R, 1)
        self.test_order = nn.functional.pad(self.test_order, (0, -len(test.labels) % self.batch))
        self.labels = torch.zeros(R, self.batch, **integer)
        self.pooled, self.dpooled = (torch.zeros(R, self.batch, self.features, **single) for _ in range(2))
        self.logits, self.dlogits = (torch.zeros(R, self.batch, self.classes, **single) for _ in range(2))
        self.losses = torch.zeros(R, self.batch, **single)
        self.free: Dict[Tuple[int, int, int], List[torch.Tensor]] = defaultdict(list)
        self.maps = {self.net.images: self.take(self.net.images.shape)}
        self.maps.update({layer.out: self.take(layer.out.shape) for layer in self.net.layers})
        self.table = torch.tensor([[
            self.statistics_at[norm], -1 if norm.is_bias else self.at[f'{norm.name}.weight'],
            self.at[f'{norm.name}.bias'], self.running_at.get(norm.name, -1), norm.channels, norm.pixels,
        ] for norm in self.net.norms], **integer)
        self.expanded_at: Dict[Tuple[str, str], int] = {}
        index = []
        size = 0
        for layer in self.convs:
            for way in ('forward', 'backward'):
                self.expanded_at[layer.name, way] = size
                index.append(self.expansion(layer, way).flatten())
                size += index[-1].numel()
        self.index = torch.cat(index).to(**integer)
        self.expanded = torch.zeros(R, size, dtype=self.dtype, device=self.device)
        self.partial_size = self.weight_partial_size = 1
        self.counter = torch.zeros(R * self.G * 8, **integer)

    def take(self, shape: Tuple[int, int, int]) -> torch.Tensor:
        """A map's buffer (R, G, images, H, W, C), one that was given back if there is."""
        if self.free[shape]:
            return self.free[shape].pop()
        return torch.zeros(self.R, self.G, self.images, *shape, dtype=self.dtype, device=self.device)

    def release(self, buffer: Optional[Buffer]) -> None:
        if buffer is not None:
            buffer.users -= 1
            if buffer.users == 0:
                self.free[buffer.shape].append(buffer.tensor)

    def make_room_for_sums(self) -> None:
        rooms = {SUMS: torch.empty(self.partial_size, device=self.device),
                 WEIGHT_SUMS: torch.empty(self.weight_partial_size, device=self.device)}

        def roomy(launch: Launch) -> Launch:
            return launch._replace(args=tuple(
                rooms[arg] if arg is SUMS or arg is WEIGHT_SUMS else arg for arg in launch.args))

        for items in (self.training, self.testing):
            items[:] = [Aside(tuple(map(roomy, item.launches))) if isinstance(item, Aside)
                        else item if isinstance(item, Await) else roomy(item) for item in items]

    @property
    def launches(self) -> List[Launch]:
        """All of a step and of a test."""
        found = []
        for item in (*self.training, *self.testing):
            found += item.launches if isinstance(item, Aside) else [] if isinstance(item, Await) else [item]
        return found

    # ---- what the kernels are told --------------------------------------------------------------------------------

    def tiling(self, layer: Conv, table: Dict[int, Tiling], height: int, width: int) -> Tiling:
        """Of a convolution's output or input of a size."""
        if layer.kernel == 1:
            return WIDE if table is WEIGHT and layer.source.map.channels > 128 else POINTWISE
        tiling = table[max(layer.source.map.channels, layer.out.channels)]
        if layer.stride > 1:
            tiling = tiling._replace(height=1, width=1) if table is FORWARD else STRIDED
        if height % tiling.height or width % tiling.width:
            tiling = tiling._replace(height=1, width=1)
        if self.dtype == torch.float32:  # twice the bytes
            tiling = tiling._replace(blocks=tiling.blocks // 2, stages=1)
        return tiling

    def expansion(self, layer: Conv, way: str) -> torch.Tensor:
        """Which parameter stands where in what a convolution multiplies by, (taps, columns, block's outputs); -1: 0."""
        read, written, forward = layer.source.map.channels, layer.out.channels, way == 'forward'
        shape = layer.out if forward else layer.source.map
        tiling = self.tiling(layer, FORWARD if forward else BACKWARD, shape.height, shape.width)
        places = places_of_weights(layer.kernel, layer.stride, read, written, tiling, forward)
        return torch.where(places < 0, -1, places + self.at[f'{layer.name}.weight'])

    def value(self, name: str) -> torch.Tensor:
        """The first replica's parameter; the others' are P further each."""
        return self.values.view(-1)[self.at.get(name, 0):]

    def of_norm(self, norm: Optional[Norm]) -> Dict[str, torch.Tensor]:
        at = self.statistics_at.get(norm, 0)
        name = norm.name if norm else ''
        return dict(coef=self.coefs[at:], back=self.backs[at:], gamma=self.value(f'{name}.weight'),
                    beta=self.value(f'{name}.bias'))

    def partial(self, tiles: int, channels: int, sets: int = 1) -> object:
        """Room for sums of tiles; shared by all kernels, made when the largest is known."""
        self.partial_size = max(self.partial_size, sets * self.R * self.G * tiles * 2 * channels)
        return SUMS

    def sums_at_once(self, tiles: int, channels: int) -> Dict[str, Any]:
        """How many tiles' sums one load brings, and whether these are all."""
        most = SUMS_AT_ONCE // channels
        return dict(TB=min(most, next_power_of_2(tiles)), ONCE=tiles <= most)

    def groups(self, tiles: int, more: int = 1) -> Tuple[int, int, int]:
        return tiles, self.R * self.G, more

    # ---- forward --------------------------------------------------------------------------------------------------

    def forward(self, evaluate: bool) -> List[Launch]:
        """A batch's images, all layers and the classifier with its loss."""
        launches = [self.load_images(evaluate)]
        if evaluate:
            launches.append(Launch(
                blocks.fixed_statistics_kernel, (len(self.net.norms), self.R * self.G),
                (self.table, self.values, self.running, self.coefs, self.P, self.V, self.net.eps),
                dict(G=self.G, C=self.widest, num_warps=2)))
        for i, layer in enumerate(self.net.layers):
            launches.append(self.convolve(layer, not evaluate) if isinstance(layer, Conv)
                            else self.merge(layer, i, not evaluate))
        view = self.net.head
        pixels = view.map.height * view.map.width
        launches.append(Launch(
            blocks.pool_kernel, self.groups(self.images),
            (self.maps[view.map], self.of_norm(view.norm)['coef'], self.pooled, self.images, pixels),
            dict(C=self.features, BM=next_power_of_2(pixels), NORM=view.norm is not None, RELU=view.relu,
                 num_warps=self.head_warps)))
        launches.append(Launch(
            blocks.logits_kernel, (-(-self.batch // 16), self.R),
            (self.pooled, self.value('head.fc.weight'), self.value('head.fc.bias'), self.labels, self.logits,
             self.losses, self.dlogits, self.dpooled, self.P, self.batch, self.net.classes,
             float(self.recipe.label_smoothing)),
            dict(C=self.features, CLASSES=self.classes, BM=16, K=min(32, self.features))))
        return launches

    @property
    def widest(self) -> int:
        return max(norm.channels for norm in self.net.norms)

    @property
    def head_warps(self) -> int:
        """That hold an image's last map in registers."""
        return 4 if self.features <= 64 else 16

    def load_images(self, evaluate: bool) -> Launch:
        images, labels = self.test if evaluate else self.train
        plan = [self.test_order] * len(self.plan) if evaluate else list(self.plan)
        height, width = self.size
        rows = max(1, ELEMENTWISE // (next_power_of_2(width) * IMAGE_CHANNELS))
        return Launch(
            blocks.augment_kernel, (self.batch, self.R, -(-height // rows)),
            (images, labels, *plan, self.places, self.mean, self.std, self.maps[self.net.images], self.labels,
             plan[0].shape[1], self.batch),
            dict(H=height, W=width, C=IMAGE_CHANNELS, RB=rows, WB=next_power_of_2(width),
                 HOLE=self.recipe.cutout, MEAN_IMAGE=self.mean.ndim == 3, AUGMENT=not evaluate))

    def shortcut_constants(self, shortcut: Optional[Shortcut], prefix: str) -> Dict[str, Any]:
        view = shortcut.view if shortcut else None
        return {f'{prefix}_NORM': bool(view and view.norm), f'{prefix}_RELU': bool(view and view.relu)}

    def convolve(self, layer: Conv, statistics: bool) -> Launch:
        source, out, plus = layer.source, layer.out, layer.plus
        tiling = self.tiling(layer, FORWARD, out.height, out.width)
        window = Window.of(layer.kernel, tiling, source.map.channels)
        pixels = tiling.height * tiling.width
        columns = pixels * out.channels if pixels > 1 else min(out.channels, 64)
        rows = self.images * out.height * out.width // pixels
        tiles, splits = -(-rows // tiling.blocks), pixels * out.channels // columns
        read, mine = self.of_norm(source.norm), self.of_norm(out.norm)
        added = self.of_norm(plus.view.norm if plus else None)
        return Launch(
            blocks.convolution_kernel, self.groups(tiles, splits),
            (self.maps[source.map], read['coef'], self.expanded.view(-1)[self.expanded_at[layer.name, 'forward']:],
             self.maps[out], mine['coef'], mine['gamma'], mine['beta'],
             self.maps[plus.view.map] if plus else self.maps[out], added['coef'],
             self.partial(tiles, out.channels), self.counter, self.P, self.expanded.shape[1], self.images,
             self.net.eps, int(statistics)),
            dict(G=self.G, H=out.height, W=out.width, CI=source.map.channels, CO=out.channels, S=layer.stride,
                 KS=layer.kernel, BH=tiling.height, BW=tiling.width, BM=tiling.blocks, BN=columns, T=window.taps,
                 TW=window.per_row, K=window.columns, NORM=source.norm is not None, RELU=source.relu,
                 PLUS=0 if plus is None else 2 if plus.pads else 1, **self.shortcut_constants(plus, 'PLUS'),
                 PC=plus.view.map.channels if plus else 1, PS=plus.stride if plus else 1, STATS=out.norm is not None,
                 **self.sums_at_once(tiles, columns // pixels), num_warps=tiling.warps, num_stages=tiling.stages))

    def merge_constants(self, layer: Merge) -> Dict[str, Any]:
        shortcut, out, branch = layer.shortcut, layer.out, layer.branch
        return dict(
            G=self.G, H=out.height, W=out.width, C=out.channels, BM=ELEMENTWISE // out.channels, PAD=shortcut.pads,
            HC=shortcut.view.map.channels, HS=shortcut.stride, **self.shortcut_constants(shortcut, 'H'),
            F_NORM=bool(branch and branch.norm), F_RELU=bool(branch and branch.relu),
            GATE={'shortcut_gate': 1, 'excl_gate': 2}.get(layer.kind, 0), DROP=layer.drop > 0., num_warps=8)

    def merge(self, layer: Merge, i: int, statistics: bool) -> Launch:
        out, branch = layer.out, layer.branch
        constants = self.merge_constants(layer)
        if not statistics:
            constants['DROP'] = False
        pixels = self.images * out.height * out.width
        tiles = -(-pixels // constants['BM'])
        mine = self.of_norm(out.norm)
        return Launch(
            blocks.merge_kernel, self.groups(tiles),
            (*self.merge_inputs(layer, i), self.maps[out], mine['coef'], mine['gamma'], mine['beta'],
             self.partial(tiles, out.channels), self.counter, self.P, pixels, self.net.eps, float(layer.drop), i,
             int(statistics)),
            dict(constants, F=branch is not None, STATS=out.norm is not None,
                 **self.sums_at_once(tiles, out.channels)))

    def merge_inputs(self, layer: Merge, i: int) -> Tuple[torch.Tensor, ...]:
        """h and F with their norms' statistics, the gate and its bias, the factors and the seeds."""
        h, f = layer.shortcut.view, layer.branch or layer.shortcut.view
        return (self.maps[h.map], self.of_norm(h.norm)['coef'], self.maps[f.map], self.of_norm(f.norm)['coef'],
                self.maps[layer.gate or h.map], self.of_norm(layer.bias)['beta'], self.scales[i],
                self.seeds)

    # ---- backward -------------------------------------------------------------------------------------------------

    def backward(self) -> List[Launch]:
        """From the logits' gradients to those of all parameters."""
        self.items: List[Union[Launch, Aside, Await]] = []
        self.asides: List[Buffer] = []  # what was set aside reads them
        self.gradients: Dict[Map, Buffer] = {}  # complete ones
        self.pending: Dict[Map, Tuple[Buffer, Shortcut]] = {}  # of a map's view, by those readers that came already
        self.raw: Dict[Map, Buffer] = {}  # of the map itself, beside its view
        self.classify_backward()
        for i, layer in reversed(list(enumerate(self.net.layers))):
            if isinstance(layer, Conv):
                self.convolve_backward(layer)
            else:
                self.merge_backward(layer, i)
        self.items.append(Await(len(self.asides) - 1))
        for buffer in self.asides[-LAG:]:
            self.release(buffer)
        self.items.append(Launch(
            blocks.norms_kernel, (len(self.net.norms), self.R),
            (self.table, self.coefs, self.backs, self.running, self.grads, self.P, self.V, self.images,
             self.net.momentum), dict(G=self.G, C=self.widest, num_warps=2)))
        return self.items

    def classify_backward(self) -> None:
        view, rows = self.net.head, 16
        self.items.append(Launch(
            blocks.classifier_kernel, (self.features // rows, self.R),
            (self.pooled, self.dlogits, self.losses, self.gradient('head.fc.weight'), self.gradient('head.fc.bias'),
             self.loss_sum, self.P, self.batch),
            dict(C=self.features, CLASSES=self.classes, BM=32, K=rows)))
        mine = self.of_norm(view.norm)
        pixels = view.map.height * view.map.width
        dx = self.buffer(view.map)
        self.items.append(Launch(
            blocks.head_backward_kernel, self.groups(self.images),
            (self.dpooled, self.maps[view.map], mine['coef'], mine['back'], mine['gamma'], dx.tensor,
             self.partial(self.images, self.features), self.counter, self.P, self.images, pixels),
            dict(G=self.G, C=self.features, BM=next_power_of_2(pixels), NORM=view.norm is not None, RELU=view.relu,
                 TB=self.sums_at_once(self.images, self.features)['TB'], num_warps=self.head_warps)))
        self.complete(view, dx)

    def gradient(self, name: str) -> torch.Tensor:
        return self.grads.view(-1)[self.at[name]:]

    def buffer(self, like: Map) -> Buffer:
        return Buffer(self.take(like.shape), like.shape)

    def give(self, shortcut: Shortcut, buffer: Buffer) -> None:
        """A reader's gradient of what it read: kept until the map's first reader has its own."""
        view = shortcut.view
        buffer.users += 1
        if view == (view.map.view or View(view.map)):
            if view.map in self.pending:
                raise Unfit('a map has too many readers')
            self.pending[view.map] = buffer, shortcut
        else:
            if view.map in self.raw or shortcut.pads:
                raise Unfit('a map has too many readers')
            self.raw[view.map] = buffer

    def complete(self, view: View, dz: Buffer) -> None:
        """All gradients of a view are in dz, before its ReLU: make that of its map of it."""
        if view.norm is None:
            self.gradients[view.map] = dz
            return
        raw, mine = self.raw.pop(view.map, None), self.of_norm(view.norm)
        pixels = self.images * view.map.height * view.map.width
        dx = dz if dz.users == 1 else self.buffer(view.map)
        rows = ELEMENTWISE // view.map.channels
        self.items.append(Launch(
            blocks.norm_backward_kernel, self.groups(-(-pixels // rows)),
            (dz.tensor, self.maps[view.map], mine['coef'], mine['back'], raw.tensor if raw else dz.tensor, dx.tensor,
             pixels), dict(C=view.map.channels, BM=rows, RAW=raw is not None)))
        self.release(raw)
        if dx is not dz:
            self.release(dz)
        self.gradients[view.map] = dx

    def convolve_backward(self, layer: Conv) -> None:
        source, out = layer.source, layer.out
        dy = self.gradients.pop(out)
        if layer.plus is not None:
            self.hand_on(layer.plus, dy, layer)
        self.weight_gradient(layer, dy)
        if source.map is not self.net.images:
            main = source == (source.map.view or View(source.map))
            finishes = main and source.map.readers[0][0] is layer
            add, how = (self.pending.pop(source.map, None) if main else None) or (None, None)
            if not main and source.map in self.raw:
                add, how = self.raw.pop(source.map), Shortcut(source)
            raw = self.raw.pop(source.map, None) if finishes and source.norm is None else None
            dx = self.buffer(source.map)
            self.items.append(self.input_gradient(layer, dy, dx, add, how, raw, finishes))
            self.release(add)
            self.release(raw)
            if finishes:
                self.complete(source, dx)
            else:
                self.give(Shortcut(source), dx)
                self.release(dx)
        self.release(dy)

    def hand_on(self, shortcut: Shortcut, gradient: Buffer, layer: object) -> None:
        """The gradient of h: to its other readers, or, where nobody else reads it, as that of its map."""
        view = shortcut.view
        if view.is_raw and not shortcut.pads and view.map.view is None and view.map.readers[0][0] is layer:
            gradient.users += 1
            self.gradients[view.map] = gradient
        else:
            self.give(shortcut, gradient)

    def input_gradient(self, layer: Conv, dy: Buffer, dx: Buffer, add: Optional[Buffer], how: Optional[Shortcut],
                       raw: Optional[Buffer], finishes: bool) -> Launch:
        source, out = layer.source, layer.out
        height, width, read = source.map.shape
        tiling = self.tiling(layer, BACKWARD, height, width)
        window = Window.of(layer.kernel, tiling, out.channels, layer.stride > 1)
        pixels = tiling.height * tiling.width
        columns = pixels * read if pixels > 1 else min(read, 64)
        tiles = -(-(self.images * height * width // pixels) // tiling.blocks)
        mine = self.of_norm(source.norm)
        return Launch(
            blocks.convolution_backward_kernel, self.groups(tiles, pixels * read // columns),
            (dy.tensor, self.expanded.view(-1)[self.expanded_at[layer.name, 'backward']:], dx.tensor,
             self.maps[source.map], mine['coef'], mine['back'], mine['gamma'], (add or dx).tensor, (raw or dx).tensor,
             self.partial(tiles, read), self.counter, self.P, self.expanded.shape[1], self.images),
            dict(G=self.G, H=height, W=width, CI=read, CO=out.channels, S=layer.stride, KS=layer.kernel,
                 BH=tiling.height, BW=tiling.width, BM=tiling.blocks, BN=columns, T=window.taps, TW=window.per_row,
                 K=window.columns, NORM=source.norm is not None, RELU=source.relu, FINISH=finishes,
                 ADD=0 if add is None else 2 if how.pads else 1,
                 AC=add.shape[2] if add else 1, AS=how.stride if how else 1, RAW=raw is not None,
                 TB=self.sums_at_once(tiles, columns // pixels)['TB'], num_warps=tiling.warps,
                 num_stages=tiling.stages))

    def weight_gradient(self, layer: Conv, dy: Buffer) -> None:
        source, out = layer.source, layer.out
        height, width, read = source.map.shape
        tiling = self.tiling(layer, WEIGHT, height, width)
        window = Window.of(layer.kernel, tiling, out.channels, layer.stride > 1)
        rows = self.images * height * width // (tiling.height * tiling.width)
        tiles = -(-rows // tiling.blocks)
        programs = min(tiles, WEIGHT_PROGRAMS[min(64, max(read, out.channels))])
        taps = 1 if layer.kernel == 1 or layer.stride > 1 else 3
        block = tiling.height * tiling.width * read
        self.weight_partial_size = max(self.weight_partial_size,
                                       self.R * self.G * programs * window.taps * block * window.columns)
        cut = dict(CI=read, CO=out.channels, S=layer.stride, KS=layer.kernel, BH=tiling.height, BW=tiling.width,
                   T=window.taps, TW=window.per_row, K=window.columns)
        sums = Launch(
            blocks.weight_kernel, self.groups(programs, window.taps // taps),
            (dy.tensor, self.maps[source.map], self.of_norm(source.norm)['coef'], WEIGHT_SUMS, self.images, tiles),
            dict(cut, G=self.G, H=height, W=width, BM=tiling.blocks, TAPS=taps, NORM=source.norm is not None,
                 RELU=source.relu, num_warps=tiling.warps, num_stages=tiling.stages))
        weights = layer.kernel ** 2 * read * out.channels
        total = Launch(
            blocks.reduce_weight_kernel, (-(-weights // WEIGHTS), self.R),
            (WEIGHT_SUMS, self.gradient(f'{layer.name}.weight'), self.P, self.G * programs),
            dict(cut, BLOCK=WEIGHTS, PB=16))
        dy.users += 1
        self.asides.append(dy)
        self.items.append(Aside((sums, total)))
        if len(self.asides) > LAG:
            self.items.append(Await(len(self.asides) - 1 - LAG))
            self.release(self.asides[-1 - LAG])

    def merge_backward(self, layer: Merge, i: int) -> None:
        dy = self.gradients.pop(layer.out)
        h, f = layer.shortcut.view, layer.branch
        if f is None:
            self.hand_on(layer.shortcut, dy, layer)
            self.release(dy)
            return
        constants = self.merge_constants(layer)
        own = h.map.readers[0][0] is layer  # h is a projection that nothing else reads
        write_h = layer.kind != 'add'
        write_f = f.relu or layer.kind in ('const_scale', 'excl_gate')
        dh, df = (self.buffer(layer.out) if write else dy for write in (write_h, write_f))
        dz = self.buffer(layer.out) if layer.gate is not None else dy
        of_h, of_f, bias = self.of_norm(h.norm), self.of_norm(f.norm), self.of_norm(layer.bias)
        pixels = self.images * layer.out.height * layer.out.width
        tiles = -(-pixels // constants['BM'])
        inputs = self.merge_inputs(layer, i)
        self.items.append(Launch(
            blocks.merge_backward_kernel, self.groups(tiles),
            (dy.tensor, inputs[0], inputs[1], of_h['back'], of_h['gamma'], dh.tensor, inputs[2], inputs[3],
             of_f['back'], of_f['gamma'], df.tensor, inputs[4], inputs[5], dz.tensor, bias['back'], *inputs[6:],
             self.partial(tiles, layer.out.channels, 3), self.counter, self.P, pixels, float(layer.drop), i),
            dict(constants, WRITE_H=write_h, H_SUMS=own and h.norm is not None, WRITE_F=write_f,
                 TB=self.sums_at_once(tiles, layer.out.channels)['TB'])))
        if layer.gate is not None:
            self.gradients[layer.gate] = dz
        if not write_f:
            df.users += 1
        if own and h.norm is not None:
            if not write_h:
                dh.users += 1
            self.complete(h, dh)
        else:
            self.hand_on(layer.shortcut, dh, layer)
            if write_h:
                self.release(dh)
        self.complete(f, df)
        self.release(dy)

    # ---- update ---------------------------------------------------------------------------------------------------

    def update(self) -> List[Launch]:
        recipe = self.recipe
        return [
            Launch(blocks.sgd_kernel, (-(-self.used // FLAT), self.R),
                   (self.values, self.grads, self.momenta, self.rates, self.P, self.used, self.decayed,
                    float(recipe.momentum), float(recipe.weight_decay)), dict(NESTEROV=recipe.nesterov, BLOCK=FLAT)),
            self.expand(),
            *self.update_averages(),
        ]

    def update_averages(self) -> List[Launch]:
        return [Launch(blocks.average_kernel, (-(-mine.numel() // FLAT),),
                       (mine, average, 1 - self.average_decay, mine.numel()), dict(BLOCK=FLAT))
                for mine, average in self.averaged() if self.average_decay]

    def averaged(self) -> Tuple[Tuple[torch.Tensor, torch.Tensor], ...]:
        """What is averaged, and its averages."""
        return (self.values, self.averages), (self.running, self.running_averages)

    def expand(self) -> Launch:
        size = self.expanded.shape[1]
        return Launch(blocks.expand_kernel, (-(-size // FLAT), self.R),
                      (self.values, self.index, self.expanded, self.P, size), dict(BLOCK=FLAT))

    # ---- for those who train --------------------------------------------------------------------------------------

    def named(self, flat: torch.Tensor) -> Dict[str, torch.Tensor]:
        """Views of a replica's parameters, gradients or momenta (P,), by the network's names and of its shapes."""
        found = {}
        for layer in self.convs:
            at, shape = self.at[f'{layer.name}.weight'], (layer.kernel, layer.kernel, layer.source.map.channels,
                                                          layer.out.channels)
            weight = flat[at:at + shape[0] * shape[1] * shape[2] * shape[3]].view(shape).permute(3, 2, 0, 1)
            found[f'{layer.name}.weight'] = weight[:, :3] if layer.source.map is self.net.images else weight
        at = self.at['head.fc.weight']
        weight = flat[at:at + self.features * self.classes].view(self.features, self.classes)
        found['head.fc.weight'] = weight[:, :self.net.classes].t()
        for norm in self.net.norms:
            for part in ('bias',) if norm.is_bias else ('weight', 'bias'):
                at = self.at[f'{norm.name}.{part}']
                found[f'{norm.name}.{part}'] = flat[at:at + norm.channels]
        at = self.at['head.fc.bias']
        found['head.fc.bias'] = flat[at:at + self.net.classes]
        return found

    def running_statistics(self, both: torch.Tensor) -> Dict[str, torch.Tensor]:
        """Views of a replica's running statistics (2, V), by the network's names."""
        return {f'{norm.name}.running_{which}': both[i, at:at + norm.channels]
                for norm in self.net.norms if not norm.is_bias for at in (self.running_at[norm.name],)
                for i, which in enumerate(('mean', 'var'))}

    def pairs(self, r: int, model: nn.Module, kept: nn.Module,
              momenta: Dict[str, torch.Tensor]) -> Iterator[Tuple[torch.Tensor, torch.Tensor]]:
        """Each momentum, parameter and running statistic of replica r, and their averages, beside the run's."""
        beside = [(self.named(self.momenta[r]), momenta)]
        networks = {kept: (self.averages, self.running_averages), model: (self.values, self.running)}  # or the same one
        for network, (values, running) in networks.items():
            beside += [(self.named(values[r]), dict(network.named_parameters())),
                       (self.running_statistics(running[r]), dict(network.named_buffers()))]
        for mine, theirs in beside:
            for name, tensor in mine.items():
                yield tensor, theirs[name]

    @torch.no_grad()
    def put(self, r: int, model: nn.Module, kept: nn.Module, momenta: Dict[str, torch.Tensor]) -> None:
        """Take up a network's parameters, running statistics and momenta as replica r, and those of its average.

        Args:
            r: Which replica.
            model: The network that trains.
            kept: That of the averaged weights; `model` where the recipe averages none.
            momenta: By the names of the parameters.
        """
        for mine, theirs in self.pairs(r, model, kept, momenta):
            mine.copy_(theirs)

    @torch.no_grad()
    def get(self, r: int, model: nn.Module, kept: nn.Module, momenta: Dict[str, torch.Tensor]) -> None:
        """Give them back."""
        for mine, theirs in self.pairs(r, model, kept, momenta):
            theirs.copy_(mine)

    def reset(self) -> None:
        """Forget all steps."""
        for tensor in (self.values, self.momenta, self.running, self.loss_sum, self.averages, self.running_averages):
            tensor.zero_()

    def compile(self) -> None:
        """Compile all kernels, before the first of them runs."""
        blocks.compile_side_by_side(self.launches)

    def step(self) -> None:
        """A step of all replicas, from `places`, `rates`, `plan` and `seeds`."""
        done = []
        for item in self.training:
            if isinstance(item, Aside):
                done.append(self.run_aside(item))
            elif isinstance(item, Await):
                if self.side is not None:
                    torch.cuda.current_stream(self.device).wait_event(done[item.index])
            else:
                item()

    def run_aside(self, item: Aside) -> Optional[torch.cuda.Event]:
        """Launch it on the other stream, behind what this one has been given; returns what tells that it is done."""
        if self.side is None:
            for launch in item.launches:
                launch()
            return None
        self.side.wait_event(torch.cuda.current_stream(self.device).record_event())
        with torch.cuda.stream(self.side):
            for launch in item.launches:
                launch()
            return self.side.record_event()

    def test_batch(self) -> None:
        """The logits of test images from `places` on, by running statistics, and their labels."""
        for launch in self.testing:
            launch()

    def exchange(self) -> None:
        """Let averages and what they are of take each other's places, where the recipe takes averages."""
        if self.average_decay:
            for mine, average in self.averaged():
                kept = mine.clone()
                mine.copy_(average)
                average.copy_(kept)
            self.expand()()

    def errors(self, test_batch: Optional[Callable[[], None]] = None) -> torch.Tensor:
        """Top-1 errors on the test images in percent, (R,), of the averaged weights if the recipe averages them.

        Args:
            test_batch: A graph's replay of what is here, if there is one.
        """
        count = len(self.test[1])
        self.exchange()
        correct = torch.zeros(self.R, dtype=torch.int64, device=self.device)
        for start in range(0, count, self.batch):
            self.places.fill_(start)
            (test_batch or self.test_batch)()
            found = self.logits[:, :count - start, :self.net.classes].argmax(2)
            correct += (found == self.labels[:, :count - start]).sum(1)
        self.exchange()
        return 100 * (count - correct) / count
