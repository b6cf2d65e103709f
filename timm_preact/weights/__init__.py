"""Weights that ship with the package, and how a weight file is verified before a tensor of it is used."""
import copy
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any, Dict, Optional, Tuple, Union

import torch
from torch import nn

from ..errors import UserError
from ..files import write_atomically

__all__ = [
    'CHECKSUMS', 'SHIPPED', 'WeightsError', 'export_model', 'read_weights', 'sha256_of', 'shipped_weights', 'verify',
    'verify_shipped',
]

SHIPPED = Path(__file__).parent / 'shipped'

# 'name.tag' -> sha256 of the file that must be loaded under it
CHECKSUMS: Dict[str, str] = {
    'preact_resnet20.cifar10': '8afdeb9b26f13b7e298803e488c5dd051a749de202c0fac69a2dac64f2d955f0',
}


class WeightsError(UserError):
    """A weight file that must not be loaded; the message says what to do."""


def shipped_weights(name: str) -> Optional[str]:
    """Path of the weights of 'name.tag' inside the package, None if none ship."""
    return str(SHIPPED / f'{name}.safetensors') if name in CHECKSUMS else None


def sha256_of(path: Union[str, Path]) -> str:
    """sha256 of a file, as hex."""
    digest = hashlib.sha256()
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def verify(path: Union[str, Path], sha256: str) -> None:
    """Raise WeightsError unless the file at `path` exists and has this sha256."""
    if not Path(path).is_file():
        raise WeightsError(f'{path} does not exist: install timm_preact again or name another weight file.')
    if sha256_of(path) != sha256:
        raise WeightsError(f'{path} is damaged (its sha256 is not {sha256[:12]}...): fetch or install it again.')


def verify_shipped(variant: str, pretrained_cfg: Any = None, overlay: Optional[Dict[str, Any]] = None) -> None:
    """Verify the shipped file that timm is about to load for `variant`, if it is one.

    Args:
        variant: Registered name, without tag.
        pretrained_cfg: What timm hands to an entry point: None, a tag, or a config.
        overlay: pretrained_cfg_overlay; a source named there replaces the shipped file, and is the user's own.
    """
    from timm.models import resolve_pretrained_cfg
    cfg = resolve_pretrained_cfg(variant, pretrained_cfg=pretrained_cfg, pretrained_cfg_overlay=overlay)
    name = f'{variant}.{cfg.tag}'
    if cfg.file and cfg.file == shipped_weights(name):
        verify(cfg.file, CHECKSUMS[name])


def export_model(model: nn.Module, folder: Path, model_args: Optional[Dict[str, Any]] = None) -> str:
    """Write model.safetensors and config.json, in timm's form, for `local-dir:folder` and the Hub.

    Args:
        model: A model that timm's factory made.
        folder: An existing folder.
        model_args: What create_model was given beside the name, for a reader to rebuild the model.

    Returns:
        The sha256 of model.safetensors, which config.json holds as well.
    """
    from timm.models import save_for_hf
    model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    with tempfile.TemporaryDirectory() as temporary:
        save_for_hf(model, temporary, model_args=model_args, safe_serialization=True)
        weights = Path(temporary) / 'model.safetensors'
        sha256 = sha256_of(weights)
        config = json.loads((Path(temporary) / 'config.json').read_text())
        write_atomically(folder / 'model.safetensors', weights.read_bytes())
        write_atomically(folder / 'config.json', json.dumps(dict(config, sha256=sha256), indent=2).encode())
    return sha256


def read_weights(path: Path) -> Tuple[Dict[str, torch.Tensor], Dict[str, Any]]:
    """State dict and config.json of weights that somebody saved; nothing is unpickled.

    Args:
        path: A folder with model.safetensors and config.json, a .safetensors file, or a checkpoint of timm's train.py.
            The config.json beside a file counts; where it has a sha256 the file is verified.

    Raises:
        WeightsError: The file is missing, damaged, or no weight file.
    """
    from timm.models import load_state_dict
    file = path / 'model.safetensors' if path.is_dir() else path
    if not file.is_file():
        raise WeightsError(f'{file} does not exist: name a weight file or a folder with model.safetensors.')
    config = {}
    if (file.parent / 'config.json').is_file():
        try:
            config = json.loads((file.parent / 'config.json').read_text())
        except ValueError as e:
            raise WeightsError(f"{file.parent / 'config.json'} is not JSON ({e}): restore or remove it.") from e
    if 'sha256' in config and file.name == 'model.safetensors':
        verify(file, config['sha256'])
    try:
        return load_state_dict(str(file), weights_only=True), config
    except Exception as e:  # safetensors, zipfile and torch each raise their own classes for a file that is no weights
        raise WeightsError(f'{file} is not a whole weight file ({type(e).__name__}): fetch it again, or name a '
                           f'.safetensors file.') from e
