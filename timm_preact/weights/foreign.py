"""Weight files that PyTorch cannot read."""
from pathlib import Path
from typing import Callable, Dict, Tuple

import torch

from .fair import read_fair
from .keras import read_keras
from .mxnet import read_mxnet

__all__ = ['FOREIGN', 'read_foreign']

# ending -> (reader, key of KEY_MAPS)
FOREIGN: Dict[str, Tuple[Callable[[Path], Dict[str, torch.Tensor]], str]] = {
    '.t7': (read_fair, 'fair'),
    '.h5': (read_keras, 'keras'),
    '.params': (read_mxnet, 'gluon'),
}


def read_foreign(path: Path) -> Tuple[Dict[str, torch.Tensor], str]:
    """(state dict by the source's names, key of KEY_MAPS) of a file that ends in a key of FOREIGN."""
    reader, source = FOREIGN[Path(path).suffix]
    return reader(Path(path)), source
