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
            if 'layer_names' not in root.attrs and 'layers' in root:
                raise WeightsError(f"{path} is of Keras 3's save_weights, which names no layer: load it into its "
                                   f"network there, and write that as a whole with model.save('network.h5').")
            data = {
                f'{layer}.{leaf}': array
                for layer in map(_text, root.attrs['layer_names'])
                for leaf, array in _arrays(root[layer]).items()
            }
            if sum(array.nbytes for array in data.values()) > path.stat().st_size:
                raise ValueError('it is smaller than its tensors')
            return {key: _tensor(array) for key, array in data.items()}
    except (OSError, KeyError, ValueError, TypeError, AttributeError, RuntimeError) as e:
        if isinstance(e, WeightsError):
            raise
        raise WeightsError(f'{path} is no whole file of Keras weights ({e}): fetch it again.') from e


def _text(name: Any) -> str:
    return name.decode() if isinstance(name, bytes) else str(name)


def _arrays(group: Any) -> Dict[str, Any]:
    """A layer's data sets by PyTorch's names; nothing is read yet."""
    arrays = {}
    for name in map(_text, group.attrs['weight_names']):
        array = group[name]
        if array.external or array.is_virtual or array.file != group.file:
            raise ValueError(f'{name} is not in the file')
        arrays[LEAVES[name.rpartition('/')[2].partition(':')[0]]] = array
    return arrays


def _tensor(array: Any) -> torch.Tensor:
    values = np.asarray(array[()], dtype=np.float32)
    if values.ndim > 1:  # (height, width, in, out) or (in, out)
        values = values.transpose(*((3, 2, 0, 1) if values.ndim == 4 else (1, 0)))
    return torch.from_numpy(np.ascontiguousarray(values))
