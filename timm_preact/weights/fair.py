"""Tensors of a network that fb.resnet.torch trained, from its .t7 file.

The modules of the published resnet-200.t7 (weights of facebookarchive/fb.resnet.torch, as of its commit c530106):
convolution, BN, ReLU, max-pool, four stages, Copy, BN, ReLU, average-pool, View, Linear.
"""
from pathlib import Path
from typing import Any, Dict, Iterator, Tuple

import numpy as np
import torch

from .torch7 import Torch7Error, TorchObject, read_torch7

__all__ = ['read_fair']

CONTAINERS = ('Sequential', 'ConcatTable')
CONVOLUTIONS = ('SpatialConvolution', 'SpatialConvolutionMM')
NORMS = ('SpatialBatchNormalization', 'BatchNormalization')
WITHOUT_TENSORS = (
    'CAddTable', 'Copy', 'Identity', 'ReLU', 'SpatialAveragePooling', 'SpatialMaxPooling', 'View')
EPS = 1e-5
MAX_MODULES = 10_000  # a file may refer to a module many times


def read_fair(path: Path) -> Dict[str, torch.Tensor]:
    """State dict by the places of the modules, counted from 0: '4.0.0.0.0.weight'.

    Raises:
        Torch7Error: The file is no Torch7 file, or holds something other than such a network.
    """
    state_dict, left = {}, path.stat().st_size
    try:
        for number, (place, module) in enumerate(_leaves(read_torch7(path))):
            tensors = _tensors(module)
            left -= sum(array.nbytes for array in tensors.values())
            if left < 0 or number == MAX_MODULES:
                raise _Unexpected('it refers to its tensors or modules again and again')
            for leaf, array in _converted(module, tensors).items():
                state_dict[f'{place}.{leaf}'] = torch.from_numpy(np.array(array, dtype=np.float32))
    except _Unexpected as e:
        raise Torch7Error(f'{path} is no network of fb.resnet.torch ({e}): name a file like resnet-200.t7.') from e
    return state_dict


class _Unexpected(Exception):
    """Something that such a network does not have."""


def _class_of(module: Any) -> str:
    if not isinstance(module, TorchObject):
        raise _Unexpected('it holds something that is no module')
    return module.class_name.rpartition('.')[2]  # of nn, cudnn or cunn


def _leaves(module: Any, place: Tuple[str, ...] = ()) -> Iterator[Tuple[str, TorchObject]]:
    """(place, module) of the modules that are no containers, in order."""
    if len(place) > 8:
        raise _Unexpected('its modules nest without end')
    if _class_of(module) not in CONTAINERS:
        yield '.'.join(place), module
        return
    modules = module.fields.get('modules')
    if not isinstance(modules, dict) or not modules or list(modules) != list(range(1, len(modules) + 1)):
        raise _Unexpected('a container has no list of modules')
    for number, child in modules.items():
        yield from _leaves(child, (*place, str(number - 1)))


def _tensors(module: TorchObject) -> Dict[str, np.ndarray]:
    """The tensors of a module as they stand in the file; nothing is copied."""
    kind = _class_of(module)
    if kind in WITHOUT_TENSORS:
        return {}
    if kind not in (*CONVOLUTIONS, *NORMS, 'Linear'):
        raise _Unexpected(f'it has a module of the class {module.class_name!r:.60}')
    names = ('weight', 'bias', 'running_mean', 'running_var', 'running_std')
    tensors = {name: module.fields[name] for name in names if module.fields.get(name) is not None}
    if any(not isinstance(array, np.ndarray) or array.dtype.kind != 'f' for array in tensors.values()):
        raise _Unexpected(f'a {kind} has a weight that is no tensor of floats')
    return tensors


def _converted(module: TorchObject, tensors: Dict[str, np.ndarray]) -> Dict[str, np.ndarray]:
    """The tensors of a module as PyTorch has them."""
    kind = _class_of(module)
    if kind in CONVOLUTIONS and 'weight' in tensors and tensors['weight'].ndim == 2:
        return dict(tensors, weight=_unfold(module, tensors['weight']))
    if kind in NORMS:
        eps = module.fields.get('eps', EPS)
        if not isinstance(eps, float) or abs(eps - EPS) > 1e-9:
            raise _Unexpected(f'a {kind} has the eps {eps!r:.20}, not {EPS}')
        if 'running_std' in tensors:  # of the first version: 1 / sqrt(var + eps)
            std = np.array(tensors.pop('running_std'), np.float64)
            return dict(tensors, running_var=std ** -2 - eps)
    return tensors


def _unfold(module: TorchObject, weight: np.ndarray) -> np.ndarray:
    """(out, in * height * width) of SpatialConvolutionMM as (out, in, height, width)."""
    try:
        kernel = [int(module.fields[key]) for key in ('nInputPlane', 'kH', 'kW')]
        return weight.reshape(len(weight), *kernel)
    except (KeyError, TypeError, ValueError, OverflowError) as e:
        raise _Unexpected('a convolution does not say how its weight unfolds') from e
