"""The commands that do what the page does, ready to copy."""
import json
import shlex
from pathlib import Path
from typing import Any, Dict, List, Optional, Tuple

from ..evaluation import HUB

__all__ = ['evaluate_command', 'predict_command', 'propagate_command']


def network_options(network: Optional[str], weights: Optional[str], option: str = '') -> List[str]:
    """The options that name a network, a file or both; `option` comes before '--model' and '--weights'."""
    network = network.strip() if network else ''
    words = []
    if network:
        name = HUB + network if '/' in network and not network.startswith(HUB) else network
        words += [f'--{option}' if option else '--model', name]
    if weights:
        words += [f'--{option}-weights' if option else '--weights', Path(weights).name]
    return words


def predict_command(image: str, network: str, stage: Optional[int], top_k: int) -> str:
    """Name an image, and draw where the network looks."""
    name = Path(image).name
    which = ['--stage', str(stage)] if stage else []
    return shlex.join(['timm-preact', 'predict', f'./{name}' if name[:1] == '-' else name,
                       *network_options(network, None), '--top-k', str(top_k), '--cam', 'looks.png', *which])


def propagate_command(name: str, model_kwargs: Dict[str, Any], images: int) -> str:
    """Measure how the signal travels, check it and draw it."""
    pairs = [f'{key}={value if isinstance(value, str) else json.dumps(value)}' for key, value in model_kwargs.items()]
    words = ['propagate', name, *(word for pair in pairs for word in ('--model-kwargs', pair)), '--batch-size',
             str(images), '--check', '--to', 'out']
    return shlex.join(['timm-preact', *words])


def evaluate_command(first: Tuple[Optional[str], Optional[str]], second: Tuple[Optional[str], Optional[str]]) -> str:
    """Set two networks beside each other, each a network and a file of weights, on the sample in the package."""
    return shlex.join(['timm-preact', 'evaluate', *network_options(*first), *network_options(*second, 'against')])
