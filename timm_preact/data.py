"""Sets of small labelled images, held in memory as bytes: CIFAR-10, CIFAR-100, and whatever has their layout."""
import hashlib
import zipfile
from pathlib import Path
from typing import Any, NamedTuple, Tuple, Union

import numpy as np

from .errors import UserError

__all__ = ['CIFAR10_CLASSES', 'DataError', 'ImageSet', 'load_image_set', 'load_sample', 'open_folder']

CIFAR10_CLASSES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')
MAX_BYTES = 16 << 30
EIGHT_BIT = ('1', 'L', 'LA', 'P', 'RGB', 'RGBA', 'CMYK')  # modes of PIL that lose nothing but alpha as RGB
IMAGE_COLUMNS = ('img', 'image')
LABEL_COLUMNS = ('label', 'fine_label')


class DataError(UserError):
    """Data that cannot be used; the message says what to do."""


class ImageSet(NamedTuple):
    """Images of one size with their labels.

    Attributes:
        images: uint8 (N, H, W, 3).
        labels: int64 (N,), indices into `classes`.
        classes: Names of the classes.
    """
    images: np.ndarray
    labels: np.ndarray
    classes: Tuple[str, ...]

    @property
    def sha256(self) -> str:
        """Of the pixels and labels, in order."""
        return hashlib.sha256(self.images.tobytes() + self.labels.astype(np.int64).tobytes()).hexdigest()


def load_image_set(source: Union[str, Path], split: str) -> ImageSet:
    """Read one split.

    Args:
        source: A folder that holds `{split}.npz`; a folder of parquet files named after the split, in the layout of the
            Hub data sets uoft-cs/cifar10 and uoft-cs/cifar100; an .npz file; or the name of a Hub data set. An npz has
            `images` uint8 (N, H, W, 3), `labels` (N,) and `classes` (C,), and needs no package but NumPy. A folder of
            images has a folder for each split, and in it one for each class.
        split: 'train' or 'test'.

    Raises:
        DataError: The split or a column is missing, or the content is not such images and labels.
    """
    path = Path(source)
    if path.suffix == '.npz':
        return _read_npz(path)
    if path.is_dir():
        if (path / f'{split}.npz').is_file():
            return _read_npz(path / f'{split}.npz')
        files = sorted(map(str, path.rglob(f'{split}*.parquet')))
        if not files and (path / split).is_dir():
            return _read_folder(path / split)
        if not files:
            raise DataError(f'{path} has no {split}.npz, no {split}*.parquet and no folder {split} with a folder for '
                            f'each class: name a folder with a {split} split.')
        return _read_dataset('parquet', split, data_files={split: files})
    if path.exists() or str(source).count('/') != 1 or str(source).startswith(('.', '/')):
        raise DataError(f'{source} is no folder, no .npz file and no Hub data set such as uoft-cs/cifar10.')
    return _read_dataset(str(source), split)


def _read_npz(path: Path) -> ImageSet:
    try:
        with zipfile.ZipFile(path) as archive:
            if sum(member.file_size for member in archive.infolist()) > MAX_BYTES:
                raise DataError(f'{path} unpacks to more than {MAX_BYTES >> 30} GiB: split it.')
        with np.load(path, allow_pickle=False) as arrays:
            images, labels, classes = arrays['images'], arrays['labels'], arrays['classes']
    except KeyError as e:
        raise DataError(f'{path} needs the arrays images, labels and classes: {e.args[0]}.') from e
    except FileNotFoundError as e:
        raise DataError(f'{path} does not exist: name an .npz file.') from e
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as e:
        if isinstance(e, DataError):
            raise
        raise DataError(f'{path} is not a readable .npz file ({e}): write it again.') from e
    return _checked(str(path), images, labels, tuple(map(str, classes)))


def _read_folder(path: Path) -> ImageSet:
    from PIL import Image
    try:
        folder = open_folder(path)
    except OSError as e:
        raise DataError(f'{path} cannot be read as a folder of images with a folder for each class: {e}') from e
    images = []
    for file, _ in folder.samples:
        try:
            with Image.open(file) as image:
                if image.mode not in EIGHT_BIT:
                    raise DataError(f'{file} has pixels of the kind {image.mode}: write it with 8 bits a channel.')
                images.append(np.asarray(image.convert('RGB')))
        except (OSError, SyntaxError, Image.DecompressionBombError) as e:
            raise DataError(f'{file} cannot be read as an image ({e}): write it again.') from e
    sizes = {image.shape[1::-1] for image in images}
    if len(sizes) > 1:
        raise DataError(f'{path} holds images of {len(sizes)} sizes: resize them to one, such as 32x32.')
    return _checked(str(path), np.stack(images), np.array(folder.targets), tuple(folder.classes))


def open_folder(path: Path) -> Any:
    """torchvision's ImageFolder, its classes in the order of timm's reader: 10 after 9.

    Raises:
        FileNotFoundError: There is no folder with images.
    """
    from timm.utils import natural_key
    from torchvision.datasets import ImageFolder

    class TimmFolder(ImageFolder):
        def find_classes(self, directory):
            classes = sorted(super().find_classes(directory)[0], key=natural_key)
            return classes, {name: i for i, name in enumerate(classes)}

    return TimmFolder(str(path))


def _read_dataset(name: str, split: str, **kwargs) -> ImageSet:
    try:
        import datasets
    except ImportError as e:
        raise DataError("reading parquet needs the package datasets: pip install datasets, or use .npz files.") from e
    source = kwargs.get('data_files', {}).get(split, [name])[0]
    try:
        table = datasets.load_dataset(name, split=split, **kwargs)
    except Exception as e:  # datasets raises a dozen unrelated classes for a missing, moved or broken data set
        raise DataError(f'{source} cannot be read as a data set with a {split} split: {str(e).splitlines()[0]}') from e
    image = next((c for c in IMAGE_COLUMNS if c in table.column_names), None)
    label = next((c for c in LABEL_COLUMNS if c in table.column_names), None)
    if image is None or label is None:
        columns = ', '.join(table.column_names)
        raise DataError(f'{source} has the columns {columns}: it needs img or image, and label or fine_label.')
    try:
        images = np.stack([np.asarray(row.convert('RGB')) for row in table[image]])
    except (AttributeError, ValueError) as e:
        raise DataError(f'{source}: column {image} does not hold images of one size ({e}).') from e
    labels = np.asarray(table[label])
    classes = getattr(table.features[label], 'names', None) or [str(i) for i in range(int(labels.max()) + 1)]
    return _checked(source, images, labels, tuple(classes))


def _checked(source: str, images: np.ndarray, labels: np.ndarray, classes: Tuple[str, ...]) -> ImageSet:
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[-1] != 3:
        raise DataError(f'{source}: images must be uint8 (N, H, W, 3), not {images.dtype} {images.shape}.')
    if labels.shape != images.shape[:1] or len(labels) == 0:
        raise DataError(f'{source}: {len(images)} images need as many labels, not {labels.shape}.')
    if not np.issubdtype(labels.dtype, np.integer) or labels.min() < 0 or labels.max() >= len(classes):
        raise DataError(f'{source}: labels must be whole numbers from 0 to {len(classes) - 1}.')
    return ImageSet(images, labels.astype(np.int64), classes)


def load_sample() -> ImageSet:
    """The 500 CIFAR-10 test images that ship with the package: the first 50 of each class, class after class.

    A lossless contact sheet of the real test set, a row a class (Krizhevsky, "Learning Multiple Layers of Features
    from Tiny Images", 2009).
    """
    from PIL import Image
    with Image.open(Path(__file__).parent / 'sample' / 'cifar10_test_500.webp') as sheet:
        rows = np.asarray(sheet.convert('RGB')).reshape(10, 32, 50, 32, 3)
    images = np.ascontiguousarray(rows.swapaxes(1, 2)).reshape(500, 32, 32, 3)
    return ImageSet(images, np.arange(10).repeat(50), CIFAR10_CLASSES)
