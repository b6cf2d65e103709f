"""The tab Signal: how signal and gradient travel through variants of a network as created."""
import io
from functools import partial
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple

from PIL import Image

from ..errors import UserError
from ..figures import render_figure
from ..preact_resnet import MODEL_ARGS
from ..propagation import Propagation, compose, survey
from .commands import propagate_command

__all__ = ['DEPTHS', 'IMAGES', 'Variant', 'choose', 'measure_variants']

DEPTHS = 10, 1001  # layers
BOTTLENECKS_FROM = 164  # layers, as in the paper
IMAGES = 8  # a network: 1001 layers hold the inputs of 333 units


class Variant(NamedTuple):
    """A network of the tab.

    Attributes:
        title: What it is called there.
        name: A registered name.
        kwargs: Of the network, beside the name's own.
    """
    title: str
    name: str
    kwargs: Dict[str, Any]


def choose(placement: str, merge: str, depth: Optional[float]) -> Variant:
    """The network of a placement and a merge whose depth is nearest: units of two layers, of three from 164 on.

    Raises:
        UserError: The depth is not in the range.
    """
    if depth is None or not DEPTHS[0] <= depth <= DEPTHS[1]:
        raise UserError(f'a depth of {depth or 0:g} is not drawn: choose one from {DEPTHS[0]} to {DEPTHS[1]} layers.')
    base, layers = ('preact_resnet164', 3) if depth >= BOTTLENECKS_FROM - 1 else ('preact_resnet110', 2)
    units = round((depth - 2) / layers)
    wanted = dict(placement=placement, merge=merge, layers=tuple(units // 3 + (i < units % 3) for i in range(3)))

    def beside(name: str) -> Dict[str, Any]:
        theirs = {'placement': 'full', 'merge': 'add', **MODEL_ARGS[name]}
        return {key: value for key, value in wanted.items() if theirs[key] != value}

    alike = [name for name, args in MODEL_ARGS.items() if {**args, **wanted} == {**MODEL_ARGS[base], **wanted}]
    name = min(alike, key=lambda name: len(beside(name)))
    return Variant(f'{placement}, {merge}, {units * layers + 2} layers', name, beside(name))


def measure_variants(
        variants: Sequence[Variant],
        progress: Callable[[float, str], None] = lambda share, title: None,
) -> Iterator[Tuple[Image.Image, List[Tuple[str, str]], str]]:
    """Measure networks one after the other, as `timm-preact propagate` does.

    Args:
        variants: The networks; those that are alike once.
        progress: Called with the share that is done, from 0 to 1, and what is measured.

    Returns:
        After each network: the figure of those so far, titles and sentences of the check, and the commands.

    Raises:
        UserError: matplotlib is not installed.
    """
    variants = list({variant.title: variant for variant in variants}.values())
    networks: Dict[str, List[Propagation]] = {}
    sentences: List[Tuple[str, str]] = []
    for place, (title, name, kwargs) in enumerate(variants):
        passed = partial(tell, progress, title, place, len(variants))
        findings = survey([name], model_kwargs=kwargs, count=IMAGES, passed=passed)
        networks[title] = [found for found, _ in findings]
        sentences += [(title, verdict.sentence) for _, verdict in findings]
        figure = compose(networks)
        if figure is None:
            raise UserError("curves need matplotlib: pip install 'timm-preact[web]'.")
        yield Image.open(io.BytesIO(render_figure(figure))), sentences, '\n'.join(
            propagate_command(*variant[1:], IMAGES) for variant in variants)


def tell(progress: Callable[[float, str], None], title: str, place: int, count: int, done: int, units: int) -> None:
    """Say which share of `count` networks is done, of the one at `place` so many units."""
    progress((place + done / units) / count, title)
