"""Tensors of a Keras network from its .h5 file: a group a layer, whose attribute weight_names names its data sets."""
from pathlib import Path
from typing import Any, Dict

import numpy as np
import torch

from . import WeightsError

__all__ = ['read_keras']

LEAVES = {
    'kernel': 'weight', 'bias': 'bias', 'gamma': 'weight', 'beta': 'bias', 'moving_mean': 'running_mean',
    'moving_variance': 'running_var',
}


def read_keras(path: Path) -> Dict[str, torch.Tensor]:
    """State dict by the names of the layers: 'conv1_conv.weight', convolutions (out, in, height, width).

    Raises:
        WeightsError: The package h5py is missing, or the file is no whole file of Keras weights.
    """
    try:
        import h5py
    except ImportError as e:
        raise WeightsError("reading .h5 files needs the package h5py: pip install 'timm-preact[keras]'.") from e
    try:
        with h5py.File(path, 'r') as file:
            root = file['model_weights'] if 'model_weights' in file else file
            layers = [_text(name) for name in root.attrs['layer_names']]
            return {
                f'{layer}.{leaf}': tensor
                for layer in layers
                for leaf, tensor in _tensors(root[layer], path.stat().st_size).items()
            }
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as e:
        if isinstance(e, WeightsError):
            raise
        raise WeightsError(f'{path} is no whole file of Keras weights ({e}): fetch it again.') from e


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _tensors(group: Any, file_size: int) -> Dict[str, torch.Tensor]:
    tensors = {}
    for name in map(_text, group.attrs['weight_names']):
        data = group[name]
        if data.external or data.is_virtual or data.nbytes > file_size:
            raise WeightsError(f'{group.file.filename}: {name} is not stored in the file: fetch the published file.')
        leaf = LEAVES[name.rpartition('/')[2].partition(':')[0]]
        array = np.asarray(data[()], dtype=np.float32)
        if array.ndim > 1:  # (height, width, in, out) or (in, out)
            array = array.transpose(*((3, 2, 0, 1) if array.ndim == 4 else (1, 0)))
        tensors[leaf] = torch.from_numpy(np.ascontiguousarray(array))
    return tensors
