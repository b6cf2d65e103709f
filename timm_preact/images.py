"""Image files: which there are, and what is in one. Every reader of this package reads images here.

As in timm, the EXIF tag that would rotate an image is ignored, from a folder and from parquet alike.
"""
import io
import os
from pathlib import Path
from typing import Iterable, Iterator, List, Optional, Sequence, Set, Tuple, Union

from PIL import Image, ImageFile, UnidentifiedImageError

from .errors import ArgumentError, UserError

__all__ = ['DataError', 'find_files', 'image_files', 'open_image', 'readable_suffixes']

EIGHT_BIT = ('1', 'L', 'LA', 'P', 'PA', 'RGB', 'RGBA', 'RGBX', 'CMYK', 'YCbCr')  # modes that lose alpha alone as RGB


class DataError(UserError):
    """Data that cannot be used; the message says what to do."""


def open_image(
        source: Union[str, Path, bytes],
        name: Optional[str] = None,
        max_pixels: Optional[int] = None,
        formats: Optional[Sequence[str]] = None,
) -> Image.Image:
    """Read an image as RGB, the first one where a file has several.

    Args:
        source: A file, or the content of one.
        name: What to call it in a message; the file if not given.
        max_pixels: Refuse more before any is decoded; None for twice Pillow's own `MAX_IMAGE_PIXELS`.
        formats: Pillow's names of the only formats to try, as far as it has them; None for all.

    Raises:
        DataError: It is missing, no whole image, too large, or deeper than 8 bits, which PIL would cut off at 255.
    """
    name = name or str(source)
    if formats is not None:
        Image.init()  # which is when it knows what it has
        formats = [format for format in formats if format in Image.OPEN]
    try:
        with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=formats) as image:
            if max_pixels is not None and image.width * image.height > max_pixels:
                raise DataError(f'{name} is too large, {image.width} x {image.height} pixels are over '
                                f'{max_pixels / 1e6:.0f} million: scale it down.')
            if image.mode not in EIGHT_BIT:
                raise DataError(f'{name} has pixels of the kind {image.mode}: write it with 8 bits a channel.')
            return image.convert('RGB')
    except Image.DecompressionBombError as e:
        raise DataError(f'{name} is too large, over {2 * Image.MAX_IMAGE_PIXELS / 1e6:.0f} million pixels: scale it '
                        f'down.') from e
    except FileNotFoundError as e:
        raise DataError(f'{name} does not exist: name an image file or a folder of images.') from e
    except (UnidentifiedImageError, SyntaxError, ImportError) as e:  # ImportError: of a plugin's package
        raise DataError(f'{name} is no image that Pillow can read: name an image file.') from e
    except (OSError, ValueError, EOFError) as e:
        if isinstance(e, DataError):
            raise
        raise DataError(f'{name} is not a whole image ({e}): replace the file.') from e


def find_files(folder: Path) -> Iterator[Path]:
    """All files below a folder, those behind links to folders too, each folder once; sorted, folder by folder."""
    seen: Set[Tuple[int, int]] = set()
    for root, folders, files in os.walk(folder, followlinks=True):
        status = os.stat(root)
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder that was walked, such as one above it
            folders.clear()
            continue
        seen.add((status.st_dev, status.st_ino))
        folders.sort()
        yield from (Path(root) / file for file in sorted(files))


def readable_suffixes() -> Set[str]:
    """Ends of the files that Pillow decodes, without those that it can only write, such as .pdf, or name."""
    def decodes(format: str) -> bool:
        reader = Image.OPEN.get(format, (None,))[0]
        return reader is not None and not (isinstance(reader, type) and issubclass(reader, ImageFile.StubImageFile))
    return {suffix for suffix, format in Image.registered_extensions().items() if decodes(format)}


def image_files(paths: Iterable[Union[str, Path]]) -> List[Path]:
    """Return the files named, and all image files below the folders named, hidden ones left out.

    Raises:
        UserError: A path is empty.
        DataError: A folder holds none.
    """
    suffixes, files = readable_suffixes(), []
    for path in paths:
        if not str(path):
            raise ArgumentError('paths', 'must not contain an empty path.')
        path = Path(path)
        if path.is_dir():
            found = [file for file in find_files(path) if file.suffix.lower() in suffixes
                     and not any(part.startswith('.') for part in file.relative_to(path).parts)]
            if not found:
                raise DataError(f'{path} holds no image file: name a folder with images.')
            files += found
        else:
            files.append(path)
    return files
