"""A picture of what a network sees in a set of images."""
import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from .data import ImageSet
from .files import write_atomically

__all__ = ['draw_predictions']

TILE, CAPTION, GAP = 96, 20, 6
RIGHT, WRONG, PAPER, INK = '#0072b2', '#d55e00', 'white', 'black'


def draw_predictions(images: ImageSet, predictions: np.ndarray, path: Path, rows: int = 6) -> None:
    """Write a PNG with a column a class: its first images, each over its predicted class, wrong ones marked.

    Args:
        images: Labelled images.
        predictions: Class index predicted for each image, (N,).
        path: PNG to write.
        rows: Images of each class.
    """
    cell_width, cell_height = TILE + GAP, TILE + CAPTION + GAP
    picture = Image.new('RGB', (
        len(images.classes) * cell_width + GAP, rows * cell_height + CAPTION + 2 * GAP), PAPER)
    pen = ImageDraw.Draw(picture)
    bold, font = ImageFont.load_default(size=15), ImageFont.load_default(size=14)
    for label, name in enumerate(images.classes):
        left = GAP + label * cell_width
        pen.text((left, GAP), name, fill=INK, font=bold)
        for row, index in enumerate(np.flatnonzero(images.labels == label)[:rows]):
            top = CAPTION + 2 * GAP + row * cell_height
            right = predictions[index] == label
            tile = Image.fromarray(images.images[index]).resize((TILE, TILE), Image.Resampling.BICUBIC)
            picture.paste(tile, (left, top))
            if not right:
                pen.rectangle((left, top, left + TILE - 1, top + TILE - 1), outline=WRONG, width=4)
            pen.text(
                (left, top + TILE + 1), images.classes[predictions[index]], fill=RIGHT if right else WRONG, font=font)
    buffer = io.BytesIO()
    picture.save(buffer, format='PNG')
    write_atomically(path, buffer.getvalue())
