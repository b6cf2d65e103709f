"""The tab Compare: two networks on the test images of the package."""
from functools import partial
from typing import Callable, List, NamedTuple, Optional, Tuple

from PIL import Image

from ..data import load_sample
from ..evaluation import Images, compare
from .commands import evaluate_command
from .networks import load

__all__ = ['SHOWN', 'Difference', 'compare_networks']

SHOWN = 24  # images at most
SIDE = 128  # pixels of one


class Difference(NamedTuple):
    """What the tab shows.

    Attributes:
        rows: (class, accuracy of the first in percent, of the second); the last is of all images.
        images: Those that are named differently, each with what it is and what either says.
        summary: A sentence.
        command: Which does the same.
    """
    rows: List[Tuple[str, str, str]]
    images: List[Tuple[Image.Image, str]]
    summary: str
    command: str


def compare_networks(
        first: Tuple[Optional[str], Optional[str]],
        second: Tuple[Optional[str], Optional[str]],
        progress: Callable[[float, str], None] = lambda share, title: None,
) -> Difference:
    """Set two networks beside each other on the 500 test images of the package.

    Args:
        first: Network and weight file, as in `load`.
        second: The same.
        progress: Called with the share of the images that are done, from 0 to 1, and what is done.

    Raises:
        UserError: One of them cannot be loaded, or was trained on other classes.
    """
    sample, done = load_sample(), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        progress(done / (2 * len(sample.labels)), 'test images')

    found = compare((load(*first), load(*second)), partial(Images, sample), batch_size=50, advance=advance)
    a, b = found.scores
    rows = [(name, f'{accuracy:.1f}', f'{b.per_class[name]:.1f}') for name, accuracy in a.per_class.items()]
    images = []
    for index in found.differ[:SHOWN]:
        truth, said_a, said_b = (sample.classes[i] for i in (sample.labels[index], *found.answers[:, index]))
        picture = Image.fromarray(sample.images[index]).resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        images.append((picture, f'{truth}; A says {said_a}, B says {said_b}'))
    shown = f', of which {len(images)} are shown' if len(found.differ) > len(images) else ''
    summary = (f'A names {a.top1:.1f} % of {a.images} test images of CIFAR-10 rightly, B {b.top1:.1f} %; they differ '
               f'on {len(found.differ) or "none"}{shown}.')
    return Difference([*rows, ('all', f'{a.top1:.1f}', f'{b.top1:.1f}')], images, summary,
                      evaluate_command(first, second))
