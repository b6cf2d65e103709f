"""Networks by name, with the weights that each has at hand, measured one after the other."""
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional, Sequence, Tuple

import torch

from ..data import load_sample
from ..errors import UserError, check_name
from ..evaluation import Images, eval_transform, load_states, open_images
from .figure import draw
from .results import Propagation, measure
from .verdict import Verdict, check

__all__ = ['survey', 'write']


def survey(
        names: Sequence[str],
        weights: Optional[str] = None,
        pretrained: bool = False,
        model_kwargs: Optional[Dict[str, Any]] = None,
        data: Optional[str] = None,
        split: str = 'test',
        count: int = 32,
        training: bool = True,
        seed: int = 0,
        device: torch.device = torch.device('cpu'),
        advance: Callable[[int], None] = lambda done: None,
        passed: Callable[[int, int], None] = lambda done, units: None,
) -> List[Tuple[Propagation, Verdict]]:
    """Measure and judge networks, each with its initial weights and with trained ones where there are any.

    Args:
        names: Registered names, with or without tag; each is measured once.
        weights: A file or folder of weights for the only name; None for those of the names.
        pretrained: Fetch the names' weights wherever they are; else only those in the package are taken.
        model_kwargs: Further arguments of the networks.
        data: Labelled images, as `timm_preact.evaluation.open_images` reads them; None for those in the package.
        split: Of the data.
        count: How many images, evenly spread over the split.
        training: As in `measure`.
        seed: Of the initial weights, and as in `measure`.
        device: Where it is measured.
        advance: Called with 1 after each name.
        passed: As in `measure`.

    Raises:
        UserError: A name is unknown, its network cannot be made so or measured on these images, or weights are named
            for several networks.
    """
    names = list(dict.fromkeys(names))
    if weights and len(names) > 1:
        raise UserError('--weights are those of one network: name one.')
    for name in names:
        check_name(name)
    findings = []
    for name in names:
        for held, net in load_states(name, weights, pretrained, model_kwargs, seed):
            transform = eval_transform(net)
            images = Images(load_sample(), transform) if data is None else open_images(data, split, transform)
            x, y = (tensor.to(device) for tensor in images.spread(count))
            try:
                found = measure(net.to(device), x, y, training, seed, name, held, passed)
            except UserError:
                raise
            except (RuntimeError, ValueError) as e:
                raise UserError(f'{name} does not run on these images: {e}') from e
            findings.append((found, check(net, found)))
        advance(1)
    return findings


def write(results: Sequence[Propagation], folder: Path) -> List[Path]:
    """Write a .csv and a .json a result and, where matplotlib is, propagation.png; return what was written."""
    written = []
    networks: Dict[str, List[Propagation]] = {}
    for result in results:
        networks.setdefault(result.model, []).append(result)
        files = [folder / f'{result.model}.{result.weights}.{kind}' for kind in ('csv', 'json')]
        result.to_csv(files[0])
        result.to_json(files[1])
        written += files
    if draw(networks, folder / 'propagation.png'):
        written.append(folder / 'propagation.png')
    return written
