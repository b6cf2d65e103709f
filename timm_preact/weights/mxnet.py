"""Tensors of an MXNet Gluon network from its .params file, read without MXNet.

The format, of MXNet's NDArray::Save (src/ndarray/ndarray.cc), little-endian: uint64 0x112, uint64 0, uint64 number of
arrays, arrays, uint64 number of names, names (uint64 length, bytes). An array: uint32 0xF993FAC9 or, before MXNet 1.0,
0xF993FAC8; int32 storage type (the newer form alone, 0 dense), uint32 ndim, int64 sizes[ndim], int32 device, int32
device id, int32 type, elements.
"""
import struct
from pathlib import Path
from typing import Any, Dict, Tuple

import numpy as np
import torch

from . import WeightsError

__all__ = ['fold_input_norm', 'read_mxnet']

FILE, DENSE, DENSE_OLD = 0x112, 0xF993FAC9, 0xF993FAC8
TYPES = {0: np.dtype('<f4'), 1: np.dtype('<f8'), 2: np.dtype('<f2')}
MAX_NDIM = 8
LEAVES = {'gamma': 'weight', 'beta': 'bias'}
INPUT_NORM, INPUT_EPS = 'features.0', 1e-5


class _Reader:
    """Takes values off a buffer; nothing is allocated that the buffer does not hold."""

    def __init__(self, buffer: bytes):
        self.buffer = buffer
        self.at = 0

    def take(self, size: int) -> memoryview:
        if not 0 <= size <= len(self.buffer) - self.at:
            raise ValueError(f'{size} bytes at byte {self.at} are not there')
        self.at += size
        return memoryview(self.buffer)[self.at - size:self.at]

    def number(self, form: str) -> int:
        return struct.unpack(f'<{form}', self.take(struct.calcsize(f'<{form}')))[0]

    def array(self) -> np.ndarray:
        magic = self.number('I')
        if magic not in (DENSE, DENSE_OLD) or (magic == DENSE and self.number('i') != 0):
            raise ValueError(f'no dense array of MXNet 0.12 or newer at byte {self.at}')
        ndim = self.number('I')
        if not 1 <= ndim <= MAX_NDIM:
            raise ValueError(f'an array of {ndim} dimensions at byte {self.at}')
        sizes = [self.number('q') for _ in range(ndim)]
        self.take(8)  # where it was
        dtype = TYPES.get(self.number('i'))
        if dtype is None or min(sizes) < 1:
            raise ValueError(f'no array of floats at byte {self.at}')
        count = 1
        for size in sizes:
            count *= size
        return np.frombuffer(self.take(count * dtype.itemsize), dtype).reshape(sizes)


def read_mxnet(path: Path) -> Dict[str, torch.Tensor]:
    """State dict by Gluon's names: 'features.5.0.bn1.weight'.

    Raises:
        WeightsError: The file is no whole .params file, or has the names of Gluon before save_parameters.
    """
    reader = _Reader(path.read_bytes())
    try:
        if reader.number('Q') != FILE or reader.number('Q') != 0:
            raise ValueError('it does not begin as one')
        count = reader.number('Q')
        arrays = [reader.array() for _ in range(min(count, len(reader.buffer)))]
        names = [bytes(reader.take(reader.number('Q'))).decode() for _ in range(reader.number('Q') and count)]
        tensors = dict(zip(names, arrays, strict=True))
    except (ValueError, struct.error) as e:
        raise WeightsError(f'{path} is no whole .params file of MXNet ({e}): fetch it again.') from e
    if f'{INPUT_NORM}.running_mean' not in tensors:
        raise WeightsError(f'{path} does not hold a resnet_v2 as save_parameters of Gluon writes it: load it there and '
                           f'save it so.')
    return {_rename(name): torch.from_numpy(np.array(array, np.float32)) for name, array in tensors.items()}


def _rename(name: str) -> str:
    module, _, leaf = name.rpartition('.')
    return f'{module}.{LEAVES.get(leaf, leaf)}'


def fold_input_norm(state_dict: Dict[str, torch.Tensor], inputs: Dict[str, Any]) -> Tuple[Dict, Dict[str, Any]]:
    """Fold the BatchNorm that Gluon's nets apply to the image, which has no scale and no shift, into mean and std.

    Args:
        state_dict: By Gluon's names.
        inputs: mean and std by which Gluon prepares images.

    Returns:
        The other tensors, and the mean and std that do both.
    """
    left = {key: tensor for key, tensor in state_dict.items() if key.rpartition('.')[0] != INPUT_NORM}
    mean, var = (state_dict[f'{INPUT_NORM}.{leaf}'].double() for leaf in ('running_mean', 'running_var'))
    old_mean, old_std = (torch.tensor(inputs[key], dtype=torch.float64) for key in ('mean', 'std'))
    return left, dict(
        inputs, mean=tuple((old_mean + old_std * mean).tolist()),
        std=tuple((old_std * (var + INPUT_EPS).sqrt()).tolist()))
