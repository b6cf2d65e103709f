"""How other implementations name what we name: one table a source, read in both directions.

A row maps a module of ours to theirs. S, U and I stand for the numbers of stage and unit, counted from 0, and of a
layer in its branch, counted from 1; {s+1} in a name of theirs is the stage counted from 1. Mapping fails loudly: every
tensor of the source is used exactly once and has the shape that our network expects, up to the input channels and the
classes, which timm adapts. Names and shapes are not all: where a source pads a shortcut with zero channels on both
sides of the others, its channels stand in another order than ours, which has the zeros behind.
"""
import re
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import torch
from torch import nn

from . import WeightsError

__all__ = ['KEY_MAPS', 'OURS', 'KeyMap', 'LayoutError', 'from_ours', 'source_of', 'to_ours']


class LayoutError(WeightsError):
    """Tensors that do not make up the network they are meant for."""


class KeyMap(NamedTuple):
    """Names of one source.

    Attributes:
        title: The source, for messages.
        mark: A tensor of theirs that no other source has, or only together with one of `absent`.
        modules: Module of ours -> module of theirs; empty where theirs are ours.
        names: What follows the depth in registered names that compute what the source's networks do, as a regular
            expression: other names may have the same tensors.
        absent: Tensors that theirs have not, and other people's with the mark have.
        conv_head: The classifier is a 1x1 convolution there.
        bias_optional: A convolution without bias stands for one with zeros.
        wide_norm: Early files have four times the channels in the last norm of a branch; only the first ones count.
        centred_shortcuts: Option A has as many zero channels before the others as behind them.
        model_args: Constructor arguments that give a registered name this layout.
    """
    title: str
    mark: str
    modules: Dict[str, str]
    names: str = r'\w*'
    absent: Tuple[str, ...] = ()
    conv_head: bool = False
    bias_optional: bool = False
    wide_norm: bool = False
    centred_shortcuts: bool = False
    model_args: Dict[str, Any] = {}

    def names_tensors(self, state_dict: Dict[str, torch.Tensor]) -> bool:
        """Whether these tensors have the source's names."""
        return self.mark in state_dict and not any(name in state_dict for name in self.absent)

    def rename(self, key: str) -> str:
        """Their name of a tensor of ours."""
        if not self.modules:
            return key
        module, _, leaf = key.rpartition('.')
        numbers = [int(n) for n in re.findall(r'\d+', module)] + [0, 0, 0]
        s, u, i = numbers[:3]
        row = re.sub(r'(?<=conv|norm)\d$', 'I', re.sub(r'stages\.\d+\.blocks\.\d+', 'stages.S.blocks.U', module))
        if row not in self.modules:
            raise LayoutError(f'{self.title} has nothing that could be {key}.')
        counts = {'s': s, 's+1': s + 1, 's+2': s + 2, 's+4': s + 4, 's+5': s + 5, 'u': u, 'u+1': u + 1, 'i': i,
                  'i+1': i + 1, **{f'3i-{n}': 3 * i - n for n in (1, 2, 3)}, '3i': 3 * i}
        return f'{self.modules[row].format(**counts)}.{leaf}'


_PYTORCHCV = {
    'stages.S.blocks.U.pre': 'features.stage{s+1}.unit{u+1}.body.conv1.bn',
    'stages.S.blocks.U.residual.convI': 'features.stage{s+1}.unit{u+1}.body.conv{i}.conv',
    'stages.S.blocks.U.residual.normI': 'features.stage{s+1}.unit{u+1}.body.conv{i+1}.bn',
    'stages.S.blocks.U.shortcut.conv': 'features.stage{s+1}.unit{u+1}.identity_conv',
    'norm': 'features.post_activ.bn',
    'head.fc': 'output',
}

KEY_MAPS: Dict[str, KeyMap] = {
    'pytorchcv_imagenet': KeyMap('pytorchcv (ImageNet)', mark='features.init_block.conv.weight', modules={
        'stem.conv': 'features.init_block.conv',
        'stem.norm': 'features.init_block.bn',
        **_PYTORCHCV,
    }, names=''),
    'pytorchcv_cifar': KeyMap('pytorchcv (CIFAR)', mark='features.init_block.weight', modules={
        'stem.conv': 'features.init_block',
        **_PYTORCHCV,
    }, names='_pcv'),
    # Modules counted from 0; a unit is a Sequential of a ConcatTable (branch, shortcut) and a CAddTable
    'fair': KeyMap("FAIR's preresnet", mark='4.0.0.0.0.weight', modules={
        'stem.conv': '0',
        'stem.norm': '1',
        'stages.S.blocks.U.pre': '{s+4}.{u}.0.0.0',
        'stages.S.blocks.U.residual.convI': '{s+4}.{u}.0.0.{3i-1}',
        'stages.S.blocks.U.residual.normI': '{s+4}.{u}.0.0.{3i}',
        'stages.S.blocks.U.shortcut.conv': '{s+4}.{u}.0.1.0',
        'stages.S.blocks.U.shortcut.norm': '{s+4}.{u}.0.1.1',
        'norm': '9',
        'head.fc': '13',
    }, names='_fb', bias_optional=True, wide_norm=True),
    'keras': KeyMap('Keras ResNetV2', mark='conv2_block1_preact_bn.weight', modules={
        'stem.conv': 'conv1_conv',
        'stages.S.blocks.U.pre': 'conv{s+2}_block{u+1}_preact_bn',
        'stages.S.blocks.U.residual.convI': 'conv{s+2}_block{u+1}_{i}_conv',
        'stages.S.blocks.U.residual.normI': 'conv{s+2}_block{u+1}_{i}_bn',
        'stages.S.blocks.U.shortcut.conv': 'conv{s+2}_block{u+1}_0_conv',
        'norm': 'post_bn',
        'head.fc': 'predictions',
    }, names='_keras'),
    # features.0 is a BatchNorm on the image, see `timm_preact.weights.mxnet.fold_input_norm`
    'gluon': KeyMap('MXNet Gluon resnet_v2', mark='features.5.0.bn1.weight', modules={
        'stem.conv': 'features.1',
        'stem.norm': 'features.2',
        'stages.S.blocks.U.pre': 'features.{s+5}.{u}.bn1',
        'stages.S.blocks.U.residual.convI': 'features.{s+5}.{u}.conv{i}',
        'stages.S.blocks.U.residual.normI': 'features.{s+5}.{u}.bn{i+1}',
        'stages.S.blocks.U.shortcut.conv': 'features.{s+5}.{u}.downsample',
        'norm': 'features.9',
        'head.fc': 'output',
    }, names=''),
    'timm_resnetv2': KeyMap('timm resnetv2', mark='stages.0.blocks.0.norm1.weight', modules={
        'stem.conv': 'stem.conv',
        'stages.S.blocks.U.pre': 'stages.{s}.blocks.{u}.norm1',
        'stages.S.blocks.U.residual.convI': 'stages.{s}.blocks.{u}.conv{i}',
        'stages.S.blocks.U.residual.normI': 'stages.{s}.blocks.{u}.norm{i+1}',
        'stages.S.blocks.U.shortcut.conv': 'stages.{s}.blocks.{u}.downsample.conv',
        'norm': 'norm',
        'head.fc': 'head.fc',
    }, names=r'(_timm|(?<=152))', conv_head=True, model_args=dict(stem_norm=False)),
    'torchvision': KeyMap('torchvision resnet', mark='layer1.0.conv1.weight', modules={
        'stem.conv': 'conv1',
        'stem.norm': 'bn1',
        'stages.S.blocks.U.residual.convI': 'layer{s+1}.{u}.conv{i}',
        'stages.S.blocks.U.residual.normI': 'layer{s+1}.{u}.bn{i}',
        'stages.S.blocks.U.shortcut.conv': 'layer{s+1}.{u}.downsample.0',
        'stages.S.blocks.U.shortcut.norm': 'layer{s+1}.{u}.downsample.1',
        'head.fc': 'fc',
    }, names='_orig(_chen)?', absent=('linear.weight', 'linear.bias')),
    # Four stages, and a shortcut is a module of its own: akamaster's have the same names in three stages
    'kuangliu': KeyMap('pytorch-cifar ResNet', mark='layer4.0.shortcut.1.weight', modules={
        'stem.conv': 'conv1',
        'stem.norm': 'bn1',
        'stages.S.blocks.U.residual.convI': 'layer{s+1}.{u}.conv{i}',
        'stages.S.blocks.U.residual.normI': 'layer{s+1}.{u}.bn{i}',
        'stages.S.blocks.U.shortcut.conv': 'layer{s+1}.{u}.shortcut.0',
        'stages.S.blocks.U.shortcut.norm': 'layer{s+1}.{u}.shortcut.1',
        'head.fc': 'linear',
    }, names='_orig_kuang'),
    'kuangliu_preact': KeyMap('pytorch-cifar PreActResNet', mark='layer4.0.shortcut.0.weight', modules={
        'stem.conv': 'conv1',
        'stages.S.blocks.U.pre': 'layer{s+1}.{u}.bn1',
        'stages.S.blocks.U.residual.convI': 'layer{s+1}.{u}.conv{i}',
        'stages.S.blocks.U.residual.normI': 'layer{s+1}.{u}.bn{i+1}',
        'stages.S.blocks.U.shortcut.conv': 'layer{s+1}.{u}.shortcut.0',
        'norm': 'bn',  # of forks, with final_norm=True
        'head.fc': 'linear',
    }, names='_kuang', absent=('layer4.0.shortcut.1.weight',)),
    'weiaicunzai': KeyMap('pytorch-cifar100 ResNet', mark='conv2_x.0.residual_function.0.weight', modules={
        'stem.conv': 'conv1.0',
        'stem.norm': 'conv1.1',
        'stages.S.blocks.U.residual.convI': 'conv{s+2}_x.{u}.residual_function.{3i-3}',
        'stages.S.blocks.U.residual.normI': 'conv{s+2}_x.{u}.residual_function.{3i-2}',
        'stages.S.blocks.U.shortcut.conv': 'conv{s+2}_x.{u}.shortcut.0',
        'stages.S.blocks.U.shortcut.norm': 'conv{s+2}_x.{u}.shortcut.1',
        'head.fc': 'fc',
    }, names='_orig_kuang'),
    # Statistics, since branches of other networks of the repository begin with a convolution of that name
    'weiaicunzai_preact': KeyMap('pytorch-cifar100 PreActResNet', mark='stage1.0.residual.0.running_mean', modules={
        'stem.conv': 'pre.0',
        'stem.norm': 'pre.1',
        'stages.S.blocks.U.pre': 'stage{s+1}.{u}.residual.0',
        'stages.S.blocks.U.residual.convI': 'stage{s+1}.{u}.residual.{3i-1}',
        'stages.S.blocks.U.residual.normI': 'stage{s+1}.{u}.residual.{3i}',
        'stages.S.blocks.U.shortcut.conv': 'stage{s+1}.{u}.shortcut',
        'head.fc': 'linear',
    }, names='_wei'),
    # Three stages without projections: other people's have the same names and more
    'akamaster': KeyMap('pytorch_resnet_cifar10', mark='layer1.0.conv1.weight', modules={
        'stem.conv': 'conv1',
        'stem.norm': 'bn1',
        'stages.S.blocks.U.residual.convI': 'layer{s+1}.{u}.conv{i}',
        'stages.S.blocks.U.residual.normI': 'layer{s+1}.{u}.bn{i}',
        'head.fc': 'linear',
    }, names='_orig', absent=('fc.weight', 'fc.bias', 'layer4.0.conv1.weight', 'layer2.0.shortcut.0.weight'),
        centred_shortcuts=True),
}

OURS = KeyMap('timm_preact', mark='stem.conv.weight', modules={})


def source_of(state_dict: Dict[str, torch.Tensor]) -> Optional[str]:
    """The key of KEY_MAPS that names these tensors, None if none does."""
    return next((source for source, keymap in KEY_MAPS.items() if keymap.names_tensors(state_dict)), None)


def to_ours(
        state_dict: Dict[str, torch.Tensor],
        source: Optional[str],
        model: nn.Module,
) -> Dict[str, torch.Tensor]:
    """Their tensors by our names.

    Args:
        state_dict: By their names; convolutions (out, in, height, width), classifier (classes, features).
        source: A key of KEY_MAPS, None for tensors by our names, which are checked alone.
        model: The network they are for, on any device. Its input channels and classes may differ from theirs.

    Raises:
        LayoutError: A tensor is missing, left over, or of another shape.
    """
    keymap = KEY_MAPS.get(source, OURS)
    expected = model.state_dict()
    head = {f'head.fc.{leaf}': state_dict.get(keymap.rename(f'head.fc.{leaf}')) for leaf in ('weight', 'bias')}
    left, ours = dict(state_dict), {}
    for key, target in {**head, **expected}.items():  # a model without classes takes the head as it is
        theirs = keymap.rename(key)
        tensor = left.pop(theirs, None)
        if tensor is None and (key.endswith('tracked') or (keymap.bias_optional and re.search(r'conv\d?\.bias$', key))):
            tensor = torch.zeros(target.shape, dtype=target.dtype)
        if tensor is None:
            would_be = f', which would be {key},' if keymap.modules else ''
            raise LayoutError(f'{keymap.title}: {theirs}{would_be} is missing.')
        shape = tuple(tensor.shape)
        if key == 'head.fc.weight' and keymap.conv_head:
            tensor = tensor.flatten(1)
        if keymap.wide_norm and '.residual.norm2.' in key and tensor.ndim == 1 and len(tensor) == 4 * len(target):
            tensor = _narrow(tensor, theirs)
        if target is not tensor and _fixed_sizes(key, tensor) != _fixed_sizes(key, target):
            raise LayoutError(
                f'{keymap.title}: {theirs} has the shape {shape}, {key} has {tuple(target.shape)}.')
        ours[key] = tensor
    if len(ours['head.fc.weight']) != len(ours['head.fc.bias']):
        raise LayoutError(f'{keymap.title}: the classifier has another number of weights than of biases.')
    if left:
        raise LayoutError(f'{keymap.title}: {len(left)} tensors have no place, {next(iter(left))} for one.')
    return _reorder(ours, back=False) if keymap.centred_shortcuts else ours


def _fixed_sizes(key: str, tensor: torch.Tensor) -> Tuple[int, ...]:
    """The shape but for input channels and classes."""
    if key == 'stem.conv.weight':
        return tensor.shape[:1] + tensor.shape[2:]
    return tensor.shape[1:] if key.startswith('head.fc.') else tensor.shape


def _reorder(state_dict: Dict[str, torch.Tensor], back: bool) -> Dict[str, torch.Tensor]:
    """Tensors by our names with the channels of every stage in our order, or `back` in that of centred shortcuts.

    Ours has the channels that a shortcut carries first and those that it fills with zeros behind, stage after stage.
    What a unit computes in between is its own affair and stays as it is.
    """
    branch = re.compile(r'stages\.(\d+)\.blocks\.(\d+)\.residual\.(conv|norm)(\d)\.')
    last = max(int(match[4]) for match in map(branch.match, state_dict) if match)
    orders = _orders(state_dict, last)
    if back:
        orders = [[order.index(channel) for channel in range(len(order))] for order in orders]
    reordered = {}
    for key, tensor in state_dict.items():
        if match := branch.match(key):
            stage, unit, layer = int(match[1]), int(match[2]), int(match[4])
            if layer == last and tensor.ndim:
                tensor = tensor[orders[stage]]
            before = stage - (unit == 0)
            if match[3] == 'conv' and layer == 1 and before >= 0:
                tensor = tensor[:, orders[before]]
        elif key == 'head.fc.weight':
            tensor = tensor[:, orders[-1]]
        reordered[key] = tensor
    return reordered


def _orders(state_dict: Dict[str, torch.Tensor], last: int) -> List[List[int]]:
    """Where each channel of a stage of ours stands among those of centred shortcuts, stage by stage.

    Args:
        state_dict: By our names.
        last: The number of a branch's last convolution.
    """
    orders: List[List[int]] = []
    order = list(range(len(state_dict['stem.conv.weight'])))
    while (key := f'stages.{len(orders)}.blocks.0.residual.conv{last}.weight') in state_dict:
        channels = len(state_dict[key])
        before = (channels - len(order)) // 2
        kept = [before + channel for channel in order]
        order = kept + sorted(set(range(channels)) - set(kept))
        orders.append(order)
    return orders


def _narrow(tensor: torch.Tensor, name: str) -> torch.Tensor:
    channels = len(tensor) // 4
    rest = tensor[channels:]
    untouched = {'running_mean': 0., 'running_var': 1.}.get(name.rpartition('.')[2])
    if untouched is not None and not torch.allclose(rest, torch.full_like(rest, untouched), atol=1e-2):
        raise LayoutError(f'{name} has {len(tensor)} channels of statistics where {channels} are expected.')
    return tensor[:channels]


def from_ours(state_dict: Dict[str, torch.Tensor], source: str) -> Dict[str, torch.Tensor]:
    """Our tensors by their names: the inverse of `to_ours`.

    Args:
        state_dict: Of one of our networks in their layout.
        source: A key of KEY_MAPS.

    Raises:
        LayoutError: They have nothing that could be one of the tensors.
    """
    keymap = KEY_MAPS[source]
    if keymap.centred_shortcuts:
        state_dict = _reorder(state_dict, back=True)
    theirs = {keymap.rename(key): tensor for key, tensor in state_dict.items()}
    head = keymap.rename('head.fc.weight')
    if keymap.conv_head and head in theirs:
        theirs[head] = theirs[head][:, :, None, None]
    return theirs
