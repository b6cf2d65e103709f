"""Networks that a visitor may choose: those with weights on this machine, and small ones on the Hub."""
import functools
import json
import tempfile
from pathlib import Path
from typing import List, Optional

import timm
from torch import nn

from ..catalog import MEASURED
from ..errors import UserError, check_model_args, check_name, create_model
from ..evaluation import HUB, load_model
from ..loading import find_name
from ..weights import CHECKSUMS, WeightsError, read_config
from ..weights.fetch import find_cached, from_hub
from ..weights.sources import SOURCES
from .limits import MAX_UNITS, MAX_WEIGHTS

__all__ = ['list_here', 'load']

LONGEST = 200  # characters of a name


def list_here() -> List[str]:
    """Tags whose weights ship or lie in the cache already; nothing is fetched."""
    return [*MEASURED, *(name for name in SOURCES if name in CHECKSUMS and find_cached(name))]


def load(network: str, weights: Optional[str] = None) -> nn.Module:
    """A network in eval mode.

    Args:
        network: One of `list_here`; or ORG/NAME on the Hub; or, with weights, a registered name, or nothing.
        weights: A .safetensors file.

    Raises:
        UserError: It is none of these, too large, or damaged.
    """
    network = network.strip() if network else ''
    if weights:
        return load_file(network, Path(weights))
    if not network:
        raise UserError('there is no network: choose one, or type a repository as ORG/NAME.')
    if len(network) > LONGEST:
        raise UserError(f'no name has {len(network)} characters: choose a network, or type a repository as ORG/NAME.')
    return load_named(network)


def load_file(network: str, file: Path) -> nn.Module:
    if not file.is_file():
        raise WeightsError(f'{file.name} is no longer here, uploads are not kept: drop it again.')
    if file.suffix != '.safetensors':
        raise WeightsError(f'{file.name} is no .safetensors file, which is all that is read of a stranger: make one by '
                           f'timm-preact convert.')
    return load_model(network or find_name(file, 'the field Network'), str(file), as_in_file=True)


@functools.lru_cache(maxsize=2)
def load_named(network: str) -> nn.Module:
    return load_repository(network.removeprefix(HUB)) if '/' in network else load_here(network)


def load_here(network: str) -> nn.Module:
    cfg = timm.get_pretrained_cfg(check_name(network))
    here, name = list_here(), f'{cfg.architecture}.{cfg.tag}'
    if name not in here:
        raise UserError(f'{network} has no weights on this machine: choose one of {", ".join(here)}, or type a '
                        f'repository as ORG/NAME.')
    return load_model(name)


def load_repository(repository: str) -> nn.Module:
    """A public repository's network, read from a folder that is gone afterwards."""
    repo_id, _, revision = repository.partition('@')
    with tempfile.TemporaryDirectory() as cache:
        file = from_hub(repo_id, revision or None, cache_dir=cache, max_bytes=MAX_WEIGHTS, token=False)
        if file is None:
            raise WeightsError(f'{repo_id} has no model.safetensors, and nothing else is read: publish it by '
                               f'timm-preact publish.')
        name = find_name(file.parent, 'config.json')
        check_size(name, file)
        return load_model(name, str(file.parent), as_in_file=True)


def check_size(name: str, file: Path) -> None:
    """Refuse a network that is larger than its weights before memory is asked for.

    Raises:
        WeightsError: config.json asks for one.
    """
    args = read_config(file.parent / 'config.json').get('model_args') or {}
    check_model_args(args, ('num_classes', 'in_chans'))
    layers = args.get('layers', [])
    if len(json.dumps(args)) > 2000 or sum(layers) > MAX_UNITS:
        raise WeightsError(f'config.json asks for more than {MAX_UNITS} units: load it on a machine of your own.')
    model = create_model(name, device='meta', **{**args, 'num_classes': 0})
    wanted = sum(p.numel() for p in model.parameters())
    if 2 * wanted > file.stat().st_size:  # not even in float16
        raise WeightsError(f'config.json asks for {wanted:,} parameters, and model.safetensors has no room for them: '
                           f'correct it.')
