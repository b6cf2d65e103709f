"""Weights that ship with the package, and how a weight file is verified before a tensor of it is used."""
import argparse
import copy
import hashlib
import json
import tempfile
from pathlib import Path
from typing import Any, Dict, Mapping, Optional, Tuple, Union

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import nn

from ..errors import ArgumentError, UserError
from ..files import write_atomically
from .sources import SOURCES

__all__ = [
    'CHECKSUMS', 'LEAST_DIGITS', 'SHIPPED', 'TIMM_KEYS', 'WeightsError', 'check_finite', 'digest_of', 'export_model',
    'find_weights', 'for_readers', 'has_checksum', 'read_checkpoint', 'read_config', 'read_weights', 'shipped_weights',
    'verify',
]

SHIPPED = Path(__file__).parent / 'shipped'
LEAST_DIGITS = 8  # of a digest, as torch.hub has them in the names of files
TIMM_KEYS = ('', 'state_dict_ema', 'model_ema', 'state_dict', 'model')  # where timm looks in a checkpoint, in order

# 'name.tag' -> 'algorithm:digest' of the file whose tensors are loaded under it. A source that publishes no checksum is
# not here: there the first file seen counts, see `timm_preact.weights.fetch`.
CHECKSUMS: Dict[str, str] = {
    'preact_resnet20.cifar10': 'sha256:8afdeb9b26f13b7e298803e488c5dd051a749de202c0fac69a2dac64f2d955f0',
    'preact_resnet20.cifar100': 'sha256:35ffc75d95bfade533f2ef3ae3653bd1b31ade542d16386dee420fd2a704565a',
    **{name: source.checksum for name, source in SOURCES.items() if source.checksum},
}


class WeightsError(UserError):
    """A weight file that must not be loaded; the message says what to do."""


def shipped_weights(name: str) -> Optional[str]:
    """Path of the weights of 'name.tag' inside the package, None if none ship."""
    return str(SHIPPED / f'{name}.safetensors') if name in CHECKSUMS and name not in SOURCES else None


def digest_of(path: Union[str, Path], algorithm: str = 'sha256') -> str:
    """Digest of a file, as hex."""
    digest = hashlib.new(algorithm)
    with open(path, 'rb') as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def has_checksum(path: Union[str, Path], checksum: str) -> bool:
    """Whether the file at `path` has this checksum.

    Args:
        path: The file.
        checksum: 'algorithm:digest', the digest whole or its first digits, which show damage and no forgery.
    """
    algorithm, _, digest = checksum.partition(':')
    return len(digest) >= LEAST_DIGITS and digest_of(path, algorithm).startswith(digest)


def verify(path: Union[str, Path], checksum: str) -> None:
    """Raise WeightsError unless the file at `path` exists and has this checksum, see `has_checksum`."""
    if not Path(path).is_file():
        raise WeightsError(f'{path} does not exist: install timm_preact again or name another weight file.')
    if not has_checksum(path, checksum):
        algorithm, _, digest = checksum.partition(':')
        raise WeightsError(f'{path} is damaged (its {algorithm} is not {digest[:12]}...): fetch or install it again.')


def export_model(model: nn.Module, folder: Path, model_args: Optional[Dict[str, Any]] = None) -> str:
    """Write model.safetensors and config.json, in timm's form, for `local-dir:folder` and the Hub.

    Args:
        model: A model that timm's factory made.
        folder: An existing folder.
        model_args: What create_model was given beside the name, for a reader to rebuild the model.

    Returns:
        The sha256 of model.safetensors, which config.json holds as well.

    Raises:
        WeightsError: There is no room.
    """
    from timm.models import save_for_hf
    model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    with tempfile.TemporaryDirectory(dir=folder, prefix='.export-') as temporary:
        try:
            save_for_hf(model, temporary, model_args=model_args, safe_serialization=True)
        except SafetensorError as e:
            raise WeightsError(f'weights cannot be written into {folder} ({e}): make room there.') from e
        weights = Path(temporary) / 'model.safetensors'
        sha256 = digest_of(weights)
        config = json.loads((Path(temporary) / 'config.json').read_text())
        write_atomically(folder / 'model.safetensors', weights.read_bytes())
        config = dict(for_readers(config), sha256=sha256)
        write_atomically(folder / 'config.json', json.dumps(config, indent=2).encode())
    return sha256


def for_readers(config: Dict[str, Any]) -> Dict[str, Any]:
    """A config.json in timm's form as transformers reads it too.

    It passes the number of classes itself, so that it must not stand among the model's arguments, and looks for the
    names of the classes at the root.
    """
    args = {key: value for key, value in config.get('model_args', {}).items() if key != 'num_classes'}
    names = config.get('pretrained_cfg', {}).get('label_names')
    config = {key: value for key, value in config.items() if key not in ('model_args', 'label_names')}
    return dict(config, **({'label_names': names} if names else {}), **({'model_args': args} if args else {}))


def find_weights(path: Union[str, Path]) -> Path:
    """Return the weight file that a path names: itself, or model.safetensors in a folder.

    Raises:
        UserError: The path is empty.
        WeightsError: The file does not exist.
    """
    if not str(path):
        raise ArgumentError('weights', 'must not be empty.')
    path = Path(path)
    file = path / 'model.safetensors' if path.is_dir() else path
    if not file.is_file():
        raise WeightsError(f'{file} does not exist: name a weight file or a folder with model.safetensors.')
    return file


def read_weights(path: Union[str, Path]) -> Tuple[Dict[str, torch.Tensor], Dict[str, Any]]:
    """State dict and config.json of weights that somebody saved; nothing is unpickled.

    Args:
        path: A folder with model.safetensors and config.json, or a file that `read_checkpoint` reads. The config.json
            beside a file counts; where it has a sha256 the file is verified.

    Raises:
        WeightsError: The file is missing, damaged, or no weight file.
    """
    file = find_weights(path)
    config = read_config(file.parent / 'config.json') if (file.parent / 'config.json').is_file() else {}
    if 'sha256' in config and file.name == 'model.safetensors':
        verify(file, f"sha256:{config['sha256']}")
    return read_checkpoint(file)[0], config


def read_checkpoint(file: Path) -> Tuple[Dict[str, torch.Tensor], str]:
    """The state dict in a file, and the key under which it lies there, '' where it is all there is.

    Args:
        file: .safetensors, or what torch.save wrote: a state dict, or a dictionary with one inside.

    Raises:
        WeightsError: It is no such file, or holds values that are not finite.
    """
    from timm.models import clean_state_dict
    try:
        if file.suffix == '.safetensors':
            checkpoint = load_file(file)
        else:
            with torch.serialization.safe_globals([argparse.Namespace]):  # of timm's train.py: its arguments
                checkpoint = torch.load(file, map_location='cpu', weights_only=True)
    except Exception as e:  # safetensors, zipfile and torch each raise their own classes for a file that is no weights
        raise WeightsError(f'{file} is not a whole weight file ({type(e).__name__}): fetch it again, or name a '
                           f'.safetensors file.') from e
    inside = {'': checkpoint, **(checkpoint if isinstance(checkpoint, Mapping) else {})}
    found = [key for key, value in inside.items() if _is_state_dict(value)]
    keys = [key for key in TIMM_KEYS if key in found] or found
    if not keys or (len(keys) > 1 and keys[0] not in TIMM_KEYS):
        what = f'several state dicts, {", ".join(map(str, keys))}' if keys else 'no state dict'
        raise WeightsError(f'{file} holds {what}: save model.state_dict() alone.')
    state_dict = clean_state_dict(inside[keys[0]])
    check_finite(state_dict, str(file))
    return state_dict, keys[0]


def _is_state_dict(value: Any) -> bool:
    return isinstance(value, Mapping) and len(value) > 0 and all(
        isinstance(key, str) and isinstance(tensor, torch.Tensor) for key, tensor in value.items())


def check_finite(state_dict: Mapping[str, torch.Tensor], source: str) -> None:
    """Refuse weights with NaN or infinity in them, of a run that diverged.

    Raises:
        WeightsError: A tensor has some; the message names it.
    """
    for name, tensor in state_dict.items():
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise WeightsError(f'{source}: {name} holds NaN or infinity, so that nothing can be computed with it: name '
                               f'a checkpoint from before the run diverged.')


def read_config(path: Path) -> Dict[str, Any]:
    """A config.json, which is a dictionary."""
    try:
        config = json.loads(path.read_text())
    except (OSError, ValueError) as e:
        raise WeightsError(f'{path} is not JSON ({e}): restore or remove it.') from e
    if not isinstance(config, dict):
        raise WeightsError(f'{path} is not the config.json of a model: restore or remove it.')
    return config
