"""The tab Predict: what is in an image, and where the network looks."""
from typing import Dict, Iterator, List, NamedTuple, Optional, Tuple

import numpy as np
from PIL import Image

from ..data import load_sample
from ..evaluation import classify
from ..gradcam import look
from .commands import predict_command
from .limits import read_image
from .networks import load

__all__ = ['LAST', 'TOP_K', 'Answer', 'list_samples', 'predict']

TOP_K = 5
LAST = 'last'  # of a network's stages


class Answer(NamedTuple):
    """What the tab shows.

    Attributes:
        guesses: Probabilities by class, the highest first.
        looks: Grad-CAM over the image, as the network gets it; None while that is drawn.
        command: Which does the same.
        note: A sentence on the file, or nothing.
    """
    guesses: Dict[str, float]
    looks: Optional[Image.Image]
    command: str
    note: str


def list_samples() -> List[Tuple[np.ndarray, str]]:
    """Ten real test images of CIFAR-10, uint8 (32, 32, 3), one of each class, and their classes."""
    sample = load_sample()
    return [(sample.images[np.flatnonzero(sample.labels == label)[0]], name)
            for label, name in enumerate(sample.classes)]


def predict(path: Optional[str], chosen: int, network: str, stage: str) -> Iterator[Answer]:
    """Name what is in an uploaded image, or without one in a sample; then the same with where the network looks.

    Args:
        path: Of the upload.
        chosen: Index of the sample.
        network: As in `load`.
        stage: Of which Grad-CAM is drawn: '1' and so on, or `LAST`.

    Raises:
        UserError: The image, the network or the stage is not there or cannot be read.
    """
    if path:
        image, note = read_image(path)
    else:
        pixels, name = list_samples()[chosen]
        image, note, path = Image.fromarray(pixels), '', f'{name}.png'
    number = None if stage == LAST else int(stage)
    net = load(network)
    guesses = {guess['class']: guess['probability'] for guess in classify(net, image, TOP_K)}
    answer = Answer(guesses, None, predict_command(path, network, number, TOP_K), note)
    yield answer
    yield answer._replace(looks=look(net, image, number).draw())
