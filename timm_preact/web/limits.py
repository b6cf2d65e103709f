"""What strangers may send, and the sentence for what they may not."""
import re
import sys
import traceback
from pathlib import Path
from typing import Tuple

from PIL import Image

from ..errors import UserError
from ..images import DataError, open_image

__all__ = ['MAX_UNITS', 'MAX_WAITING', 'MAX_WEIGHTS', 'read_image', 'sentence']

MAX_PIXELS = 50_000_000  # 150 MB decoded
MAX_IMAGE = 20 << 20  # bytes of an image file
MAX_WEIGHTS = 300 << 20  # bytes of a weight file: ResNet-200 has 260 million
MAX_UNITS = 600  # of a network: 1202 layers have as many
MAX_WAITING = 20  # requests in the queue
FORMATS = ('PNG', 'JPEG', 'WEBP', 'GIF', 'BMP', 'TIFF', 'AVIF', 'PPM')  # none that starts other programs
PATH = re.compile(r'(?<![\w:/.])(?:/[^/\s]+)+/([^/\s]+)')


def read_image(path: str) -> Tuple[Image.Image, str]:
    """An uploaded image as RGB, and a sentence where there is more in the file than that.

    Raises:
        DataError: It is too large, damaged, or no image of these formats; nothing of it was decoded where it is large.
    """
    name = Path(path).name
    if not Path(path).is_file():
        raise DataError(f'{name} is no longer here, uploads are not kept: drop it again.')
    if Path(path).stat().st_size > MAX_IMAGE:
        raise DataError(f'{name} is larger than {MAX_IMAGE >> 20} MiB: scale it down.')
    image = open_image(path, name, MAX_PIXELS, FORMATS)
    with Image.open(path) as file:
        moves = getattr(file, 'is_animated', False) and file.format != 'MPO'  # of a camera, with a preview in it
    return image, f'{name} holds several images: this is the first.' if moves else ''


def sentence(error: Exception) -> str:
    """What the page says of an error: of a user's what to do, without a path of the server; any other is logged."""
    if isinstance(error, UserError):
        return PATH.sub(r'\1', str(error))
    traceback.print_exception(error, file=sys.stderr)
    return 'That went wrong on our side, and the log says how: try something else.'
