"""Other people's implementations of our networks."""
from importlib.util import find_spec
from typing import List, NamedTuple, Optional

import timm
import torch
from torch import nn

from ..catalog import depth_of
from ..errors import UserError
from ..preact_resnet import MODEL_ARGS
from ..weights.keymaps import KEY_MAPS, from_ours

__all__ = ['PACKAGES', 'Peer', 'compare_logits', 'find_peers', 'select_installed']

PACKAGES = ('timm', 'pytorchcv', 'torchvision')


class Peer(NamedTuple):
    """Another implementation of a network of ours.

    Attributes:
        package: 'timm', 'pytorchcv' or 'torchvision'.
        name: Theirs.
        source: Our key map of their tensors, where their function is ours exactly, given the arguments it names.
    """
    package: str
    name: str
    source: Optional[str] = None

    @property
    def title(self) -> str:
        return f'{self.package} {self.name}'

    def create(self) -> nn.Module:
        """Create it untrained, with 1000 classes, or 10 for CIFAR."""
        if self.package == 'timm':
            return timm.create_model(self.name)
        if self.package == 'torchvision':
            from torchvision.models import get_model
            return get_model(self.name)
        from pytorchcv.model_provider import get_model
        return get_model(self.name)


def find_peers(name: str) -> List[Peer]:
    """Find who else has the network of this registered name, or one of its depth and cost."""
    args, depth = MODEL_ARGS[name], depth_of(name)
    variant = name.removeprefix(f'preact_resnet{depth}')
    if args.get('stem_type') == 'imagenet':
        if variant == '_orig' and depth < 200:
            return [Peer('torchvision', f'resnet{depth}', 'torchvision')]
        if args.get('placement', 'full') != 'full':
            return []
        pytorchcv, timm_ = (None, None) if variant else ('pytorchcv_imagenet', 'timm_resnetv2')
        peers = [Peer('pytorchcv', f'preresnet{depth}{"b" if depth >= 50 else ""}', pytorchcv)]
        if depth < 200:
            peers += [Peer('timm', f'resnetv2_{depth}', timm_), Peer('torchvision', f'resnet{depth}')]
        return peers
    if variant not in ('', '_pcv'):
        return []
    bottleneck = 'bn' if depth in (164, 272, 542) else ''
    return [Peer('pytorchcv', f'preresnet{depth}{bottleneck}_cifar10', 'pytorchcv_cifar' if variant else None)]


def select_installed(packages: List[str]) -> List[str]:
    """Select those of `packages` that are installed.

    Raises:
        UserError: One is not known.
    """
    for package in packages:
        if package not in PACKAGES:
            raise UserError(f'--against {package} is not known: choose from {",".join(PACKAGES)}.')
    return [package for package in packages if find_spec(package) is not None]


def compare_logits(name: str, peer: Peer) -> float:
    """Find the largest difference of a peer's logits from ours, over the largest logit, given the same weights.

    Raises:
        UserError: The peer's function is not ours.
    """
    if peer.source is None:
        raise UserError(f'{peer.title} does not compute what {name} does: it is a network of the same depth.')
    torch.manual_seed(0)
    ours = timm.create_model(name, **KEY_MAPS[peer.source].model_args).eval()
    theirs = peer.create().eval()
    theirs.load_state_dict(from_ours(ours.state_dict(), peer.source))
    x = torch.randn(2, *ours.pretrained_cfg['input_size'])
    with torch.no_grad():
        expected = ours(x)
        return ((theirs(x) - expected).abs().max() / expected.abs().max()).item()
