"""Weight files as their publishers write them, of the publishers' own implementations with random weights.

    published = publish_pytorchcv('preact_resnet20_pcv.cifar10', folder, images)
    published.original(images)  # logits of pytorchcv's network

Every affine parameter and bias is random, and the statistics of every BatchNorm are those of `images`: a tensor in the
wrong place shows in the logits. FAIR's network exists in Lua alone: `run_torch7` interprets its tree of modules.
"""
import gc
import os
import tempfile
import zipfile
from functools import partial
from pathlib import Path
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.torch7_writer import Storage, Tensor, flattened, module, write_torch7
from torch import nn

from timm_preact.catalog import depth_of
from timm_preact.weights import digest_of
from timm_preact.weights.sources import SOURCES
from timm_preact.weights.torch7 import TorchObject

__all__ = [
    'OriginalResNet', 'Published', 'bias_free', 'fair_network', 'fill', 'import_keras', 'publish_akamaster',
    'publish_chenyaofo', 'publish_fair', 'publish_keras', 'publish_pytorchcv', 'rebuilt', 'run_torch7',
    'spell_weights', 'stored', 'unfolded', 'widened', 'with_running_std', 'write_fair',
]

BN_EPS = 1e-5


class Published(NamedTuple):
    """A file that somebody published, and what it holds.

    Attributes:
        name: 'name.tag' that it is registered under.
        file: Where a download of it lies.
        checksum: As in CHECKSUMS, None where the publisher states none.
        original: The publisher's network: images (N, 3, H, W) to logits.
    """
    name: str
    file: Path
    checksum: Optional[str]
    original: Callable[[torch.Tensor], torch.Tensor]


def fill(model: nn.Module, images: torch.Tensor) -> nn.Module:
    """Give a network random affine parameters and biases, and its norms the statistics of `images`; in eval mode."""
    torch.manual_seed(1)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            nn.init.uniform_(layer.weight, 0.5, 1.5)
            nn.init.normal_(layer.bias, std=0.2)
            layer.momentum = 1.
        elif getattr(layer, 'bias', None) is not None:
            nn.init.normal_(layer.bias, std=0.1)
    with torch.no_grad():
        model.train()(images)
    return model.eval()


def _download(name: str, folder: Path) -> Path:
    return Path(folder) / SOURCES[name].url.rpartition('/')[2]


# pytorchcv


def publish_pytorchcv(
        name: str, folder: Path, images: torch.Tensor, compression: int = zipfile.ZIP_STORED) -> Published:
    """A .pth.zip with the state dict of pytorchcv's network; the checksum is of the .pth."""
    provider = pytest.importorskip('pytorchcv.model_provider')
    torch.manual_seed(0)
    model = fill(provider.get_model(SOURCES[name].upstream), images)
    archive = _download(name, folder)
    with tempfile.TemporaryDirectory() as temporary:
        file = Path(temporary) / archive.name.removesuffix('.zip')
        torch.save(model.state_dict(), file)
        with zipfile.ZipFile(archive, 'w', compression) as members:
            members.write(file, file.name)
        checksum = f'sha1:{digest_of(file, "sha1")}'
    return Published(name, archive, checksum, model)


# akamaster and chenyaofo


class OriginalResNet(nn.Module):
    """A network for CIFAR as "Deep Residual Learning" describes it, with the names of tensors that both use.

    Where the shape changes, akamaster's carries every other pixel between zero channels, a quarter of them on each
    side; chenyaofo's has a projection with a norm.
    """

    def __init__(self, depth: int, classes: int = 10, padded: bool = True):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)
        before = 16
        for stage, channels in enumerate((16, 32, 64)):
            units = nn.Sequential()
            for _ in range((depth - 2) // 6):
                units.append(OriginalUnit(before, channels, padded))
                before = channels
            self.add_module(f'layer{stage + 1}', units)
        self.add_module('linear' if padded else 'fc', nn.Linear(64, classes))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        *stem, first, second, third, classifier = self.children()
        x = F.relu(stem[1](stem[0](x)))
        return classifier(third(second(first(x))).mean((2, 3)))


class OriginalUnit(nn.Module):
    """Two convolutions and a shortcut around them."""

    def __init__(self, before: int, channels: int, padded: bool):
        super().__init__()
        stride = 1 if before == channels else 2
        self.conv1, self.bn1 = nn.Conv2d(before, channels, 3, stride, 1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.bn2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False), nn.BatchNorm2d(channels)
        if before != channels and not padded:
            self.downsample = nn.Sequential(
                nn.Conv2d(before, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        if hasattr(self, 'downsample'):
            x = self.downsample(x)
        elif x.shape != branch.shape:
            x = x[:, :, ::2, ::2]
            nothing = x.new_zeros(len(x), (branch.shape[1] - x.shape[1]) // 2, *x.shape[2:])
            x = torch.cat([nothing, x, nothing], 1)
        return F.relu(x + branch)


def publish_akamaster(name: str, folder: Path, images: torch.Tensor) -> Published:
    """A .th as an old PyTorch wrote it: the state dict of a module in parallel, without counters, and its accuracy."""
    torch.manual_seed(0)
    model = fill(OriginalResNet(depth_of(name.partition('.')[0])), images)
    tensors = {f'module.{key}': tensor for key, tensor in model.state_dict().items() if not key.endswith('tracked')}
    file = _download(name, folder)
    torch.save(dict(state_dict=tensors, best_prec1=10.), file, _use_new_zipfile_serialization=False)
    return Published(name, file, f'sha256:{digest_of(file)[:8]}', model)


def publish_chenyaofo(name: str, folder: Path, images: torch.Tensor) -> Published:
    """A .pt with a state dict."""
    torch.manual_seed(0)
    architecture, _, tag = name.partition('.')
    model = fill(OriginalResNet(depth_of(architecture), int(tag.removeprefix('cifar')), padded=False), images)
    file = _download(name, folder)
    torch.save(model.state_dict(), file)
    return Published(name, file, f'sha256:{digest_of(file)[:8]}', model)


# Keras


def import_keras() -> Any:
    """Keras on PyTorch; what it writes on import goes to a temporary folder."""
    with tempfile.TemporaryDirectory() as temporary:
        os.environ.update(KERAS_BACKEND='torch', KERAS_HOME=temporary)
        return pytest.importorskip('keras')


def publish_keras(name: str, folder: Path, images: torch.Tensor) -> Published:
    """An .h5 with the weights of Keras's network, as Keras writes them; the network it returns has read it, in float64.

    The convolutions that open a branch are small: the statistics of the norms after them show its eps.
    """
    h5py = pytest.importorskip('h5py')
    keras = import_keras()
    from keras.src.legacy.saving.legacy_h5_format import save_weights_to_hdf5_group
    create = partial(getattr(keras.applications, SOURCES[name].upstream), weights=None, classifier_activation=None)
    keras.utils.set_random_seed(0)
    model = create()
    rng = np.random.default_rng(1)
    for layer in model.layers:
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.gamma.assign(rng.uniform(0.5, 1.5, layer.gamma.shape))
            layer.beta.assign(rng.normal(0, 0.2, layer.beta.shape))
            layer.momentum = 0.
        elif getattr(layer, 'bias', None) is not None:
            layer.bias.assign(rng.normal(0, 0.1, layer.bias.shape))
        if layer.name.endswith('_1_conv'):
            layer.kernel.assign(layer.kernel * 0.003)
    with torch.no_grad():
        model(images.permute(0, 2, 3, 1).contiguous(), training=True)
    file = _download(name, folder)
    with h5py.File(file, 'w') as root:
        save_weights_to_hdf5_group(root, model)
    spell_weights(file, ':0')
    del model, layer
    gc.collect()  # layers of Keras refer to each other

    keras.config.set_dtype_policy('float64')
    try:
        model = create()
    finally:
        keras.config.set_dtype_policy('float32')
    model.load_weights(file)

    def original(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(x.permute(0, 2, 3, 1).contiguous(), training=False).cpu()

    return Published(name, file, f'md5:{digest_of(file, "md5")}', original)


def spell_weights(file: Path, ending: str) -> None:
    """End the names of an .h5's weights in ':0', as the published files do, or in '', as Keras 3 writes them."""
    import h5py
    from keras.src.legacy.saving import legacy_h5_format
    with h5py.File(file, 'r+') as root:
        for group in root.values():
            names = legacy_h5_format.load_attributes_from_hdf5_group(group, 'weight_names')
            new = [f'{name.removesuffix(":0")}{ending}' for name in names]
            for old_name, new_name in zip(names, new, strict=True):
                if new_name != old_name:
                    group.move(old_name, new_name)
            legacy_h5_format.save_attributes_to_hdf5_group(group, 'weight_names', [name.encode() for name in new])


# FAIR


def fair_network(layers: Sequence[int] = (3, 24, 36, 3), classes: int = 1000) -> TorchObject:
    """The modules of the published resnet-200.t7, with random parameters and untouched statistics."""
    rng = np.random.default_rng(0)

    def normal(std: float, *shape: int) -> np.ndarray:
        return rng.normal(0, std, shape).astype(np.float32)

    def convolution(in_chs: int, out_chs: int, kernel: int, stride: int = 1) -> TorchObject:
        return module(
            'cudnn.SpatialConvolution', nInputPlane=in_chs, nOutputPlane=out_chs, kW=kernel, kH=kernel, dW=stride,
            dH=stride, padW=kernel // 2, padH=kernel // 2, groups=1,
            weight=normal((2 / (kernel * kernel * out_chs)) ** 0.5, out_chs, in_chs, kernel, kernel),
            bias=normal(0.1, out_chs))

    def norm(channels: int) -> TorchObject:
        return module(
            'cudnn.SpatialBatchNormalization', eps=BN_EPS, momentum=0.1, affine=True, nDim=4,
            weight=rng.uniform(0.5, 1.5, channels).astype(np.float32), bias=normal(0.2, channels),
            running_mean=np.zeros(channels, np.float32), running_var=np.ones(channels, np.float32))

    def relu() -> TorchObject:
        return module('cudnn.ReLU', inplace=True, mode='CUDNN_ACTIVATION_RELU')

    def sequential(*modules: TorchObject) -> TorchObject:
        return module('nn.Sequential', modules=list(modules), train=False)

    def unit(in_chs: int, chs: int, stride: int) -> TorchObject:
        branch = sequential(
            norm(in_chs), relu(), convolution(in_chs, chs, 1),
            norm(chs), relu(), convolution(chs, chs, 3, stride),
            norm(chs), relu(), convolution(chs, 4 * chs, 1))
        shortcut = module('nn.Identity') if in_chs == 4 * chs else sequential(
            convolution(in_chs, 4 * chs, 1, stride), norm(4 * chs))
        return sequential(module('nn.ConcatTable', modules=[branch, shortcut]), module('nn.CAddTable', inplace=True))

    stages, in_chs = [], 64
    for i, depth in enumerate(layers):
        chs = 64 << i
        units = []
        for j in range(depth):
            units.append(unit(in_chs, chs, 2 if i and j == 0 else 1))
            in_chs = 4 * chs
        stages.append(sequential(*units))
    return sequential(
        convolution(3, 64, 7, 2), norm(64), relu(),
        module('cudnn.SpatialMaxPooling', kW=3, kH=3, dW=2, dH=2, padW=1, padH=1, ceil_mode=False),
        *stages,
        module('nn.Copy', dontCast=True), norm(in_chs), relu(),
        module('cudnn.SpatialAveragePooling', kW=7, kH=7, dW=1, dH=1, padW=0, padH=0, count_include_pad=True),
        module('nn.View', size=Storage(np.array([in_chs])), numElements=in_chs, numInputDims=3),
        module('nn.Linear', weight=normal(0.02, classes, in_chs), bias=normal(0.1, classes)))


def run_torch7(network: TorchObject, x: Any, training: bool = False) -> Any:
    """What a tree of Lua modules, its tensors arrays, makes of `x`.

    Args:
        network: A container or a module.
        x: Images (N, 3, H, W), or what that module reads.
        training: Norms use the statistics of `x`, and keep them.
    """
    kind = network.class_name.rpartition('.')[2]
    fields = network.fields

    def tensor(name: str, count: Optional[int] = None) -> Optional[torch.Tensor]:
        return torch.from_numpy(fields[name][:count]).to(x.dtype) if name in fields else None

    def pairs(*names: str) -> List[tuple]:
        return [(fields[f'{name}H'], fields[f'{name}W']) for name in names]

    if kind == 'Sequential':
        for child in fields['modules']:
            x = run_torch7(child, x, training)
        return x
    if kind == 'ConcatTable':
        return [run_torch7(child, x, training) for child in fields['modules']]
    if kind == 'CAddTable':
        return sum(x)
    if kind in ('Identity', 'Copy'):
        return x
    if kind == 'ReLU':
        return x.clamp(min=0)
    if kind in ('SpatialConvolution', 'SpatialConvolutionMM'):
        kernel, stride, padding = pairs('k', 'd', 'pad')
        weight = tensor('weight').reshape(fields['nOutputPlane'], fields['nInputPlane'], *kernel)
        return F.conv2d(x, weight, tensor('bias'), stride, padding)
    if kind == 'SpatialBatchNormalization':
        channels = x.shape[1]  # the norm may have more: cuDNN reads the first ones
        if training:
            fields['running_mean'][:] = x.mean((0, 2, 3)).numpy()
            fields['running_var'][:] = x.var((0, 2, 3)).numpy()
        std = tensor('running_std', channels)  # one over it
        if std is None:
            std = (tensor('running_var', channels) + fields['eps']).rsqrt()
        scale = tensor('weight', channels) * std
        shift = tensor('bias', channels) - tensor('running_mean', channels) * scale
        return x * scale[:, None, None] + shift[:, None, None]
    if kind == 'SpatialMaxPooling':
        return F.max_pool2d(x, *pairs('k', 'd', 'pad'))
    if kind == 'SpatialAveragePooling':
        return F.avg_pool2d(x, *pairs('k', 'd', 'pad'))
    if kind == 'View':
        return x.reshape(-1, fields['numElements'])
    assert kind == 'Linear', kind
    return F.linear(x, tensor('weight'), tensor('bias'))


def rebuilt(network: TorchObject, change: Callable[[TorchObject], TorchObject]) -> TorchObject:
    """The tree with every module changed, children first; `network` stays as it is."""
    fields = dict(network.fields)
    if 'modules' in fields:
        fields['modules'] = [rebuilt(child, change) for child in fields['modules']]
    return change(TorchObject(network.class_name, fields))


def _is(network: TorchObject, kind: str) -> bool:
    return network.class_name.endswith(f'.{kind}')


def _changed(network: TorchObject, class_name: Optional[str] = None, **fields: Any) -> TorchObject:
    """With other fields; None removes one."""
    fields = {**network.fields, **fields}
    return module(class_name or network.class_name, **{k: value for k, value in fields.items() if value is not None})


def unfolded(network: TorchObject) -> TorchObject:
    """A convolution as SpatialConvolutionMM, whose weight has two dimensions."""
    if not _is(network, 'SpatialConvolution'):
        return network
    weight = network.fields['weight']
    return _changed(network, 'nn.SpatialConvolutionMM', weight=weight.reshape(len(weight), -1))


def bias_free(network: TorchObject) -> TorchObject:
    """A convolution without a bias."""
    return _changed(network, bias=None) if _is(network, 'SpatialConvolution') else network


def with_running_std(network: TorchObject) -> TorchObject:
    """A norm of the first version, with 1 / sqrt(var + eps) for its variance."""
    if not _is(network, 'SpatialBatchNormalization'):
        return network
    std = (network.fields['running_var'].astype(np.float64) + network.fields['eps']) ** -0.5
    return _changed(
        network, 'nn.SpatialBatchNormalization', running_std=std.astype(np.float32), running_var=None)


def widened(network: TorchObject) -> TorchObject:
    """A branch whose last norm has four times the channels, as files before May 2016; the rest is as it was made."""
    modules = network.fields.get('modules', [])
    if len(modules) != 9 or not _is(modules[6], 'SpatialBatchNormalization'):
        return network
    rest = dict(weight=1, bias=0, running_mean=0, running_var=1)
    wide = {name: np.pad(array, (0, 3 * len(array)), constant_values=rest[name])
            for name, array in modules[6].fields.items() if name in rest}
    return _changed(network, modules=[*modules[:6], _changed(modules[6], **wide), *modules[7:]])


def _leaves(network: TorchObject) -> List[TorchObject]:
    children = network.fields.get('modules')
    return [network] if children is None else [leaf for child in children for leaf in _leaves(child)]


def stored(network: TorchObject, kind: str = 'Cuda', gradients: bool = False) -> TorchObject:
    """The tree as a live network is saved: its parameters share a storage, as getParameters() leaves them.

    Args:
        network: Its tensors arrays.
        kind: Of the tensors: 'Cuda', 'Float' or 'Double'.
        gradients: With the buffers of the backward pass, which share another storage, and outputs that are empty.
    """
    owners = [(leaf, name) for leaf in _leaves(network) for name in ('weight', 'bias') if name in leaf.fields]
    parameters = [leaf.fields[name] for leaf, name in owners]
    new: Dict[int, Dict[str, Any]] = {id(leaf): {} for leaf in _leaves(network)}
    for (leaf, name), tensor in zip(owners, flattened(parameters, kind), strict=True):
        new[id(leaf)][name] = tensor
    if gradients:
        for (leaf, name), tensor in zip(owners, flattened([p + 1 for p in parameters], kind), strict=True):
            new[id(leaf)][f'grad{name.capitalize()}'] = tensor
        for leaf in _leaves(network):
            new[id(leaf)].update(output=Tensor(None, kind=kind), gradInput=Tensor(None, kind=kind), _type='torch.Cuda')
    for leaf in _leaves(network):
        for name, array in leaf.fields.items():
            if isinstance(array, np.ndarray) and name not in new[id(leaf)]:
                new[id(leaf)][name] = Tensor(Storage(array, kind), array.shape)

    def save(old: TorchObject) -> TorchObject:
        if id(old) in new:
            return _changed(old, **new[id(old)])
        return _changed(old, modules=[save(child) for child in old.fields['modules']])

    return save(network)


def publish_fair(name: str, folder: Path, images: torch.Tensor, layers: Sequence[int] = (3, 24, 36, 3)) -> Published:
    """A .t7 with FAIR's network, as `write_fair` writes it.

    Args:
        name: A key of SOURCES.
        folder: Where the file goes.
        images: For the statistics.
        layers: Number of units in each stage.
    """
    network = fair_network(layers)
    with torch.no_grad():
        run_torch7(network, images, training=True)
    return write_fair(name, folder, network)


def write_fair(
        name: str, folder: Path, network: TorchObject, variants: Sequence[Callable[[TorchObject], TorchObject]] = (),
        kind: str = 'Cuda', gradients: bool = False) -> Published:
    """A .t7 with a network.

    Args:
        name: A key of SOURCES.
        folder: Where the file goes.
        network: Its tensors arrays.
        variants: What else such files are like, one after the other: `unfolded`, `bias_free`, ...
        kind: Of the tensors.
        gradients: See `stored`.
    """
    for variant in variants:
        network = rebuilt(network, variant)
    file = write_torch7(_download(name, folder), stored(network, kind, gradients))

    def original(x: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return run_torch7(network, x)

    return Published(name, file, None, original)
