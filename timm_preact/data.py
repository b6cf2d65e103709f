"""Sets of small labelled images, held in memory as bytes: CIFAR-10, CIFAR-100, and whatever has their layout."""
import hashlib
import json
import re
import zipfile
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple, Union

import numpy as np

from .errors import ArgumentError
from .folders import class_folder, is_split, split_folder, split_folders
from .images import DataError, find_files, open_image

__all__ = [
    'CIFAR100_CLASSES', 'CIFAR10_CLASSES', 'DATA_SET_CLASSES', 'DataError', 'ImageSet', 'holds_arrays',
    'load_image_set', 'load_sample', 'parquet_classes',
]

CIFAR10_CLASSES = ('airplane', 'automobile', 'bird', 'cat', 'deer', 'dog', 'frog', 'horse', 'ship', 'truck')
CIFAR100_CLASSES = tuple(
    'apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can '
    'castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin '
    'elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower leopard lion lizard lobster '
    'man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid otter palm_tree pear pickup_truck '
    'pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew skunk '
    'skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger '
    'tractor train trout tulip turtle wardrobe whale willow_tree wolf woman worm'.split())
# Data sets whose class names are known, by the last word of a tag or of a Hub data set's name
DATA_SET_CLASSES = {'cifar10': CIFAR10_CLASSES, 'cifar100': CIFAR100_CLASSES, 'svhn': tuple('0123456789')}
MAX_BYTES = 16 << 30
# A parquet file's split, its number, and how many there are, as `datasets` names files
SHARD = re.compile(r'(.+?)(?:[-_. ]?(\d+)(?:-of-(\d+))?(?:-[0-9a-f]{16})?)?\.parquet')
IMAGE_COLUMNS = ('img', 'image')
LABEL_COLUMNS = ('label', 'fine_label')


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

    def contains(self, other: 'ImageSet') -> bool:
        """Whether every image of another set is one of this."""
        mine, theirs = ({hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images.images}
                        for images in (self, other))
        return theirs <= mine


def load_image_set(source: Union[str, Path], split: str) -> ImageSet:
    """Read one split.

    Args:
        source: A folder that holds `{split}.npz`; a folder of parquet files named after the split, in the layout of the
            Hub data sets uoft-cs/cifar10 and uoft-cs/cifar100; an .npz file; or the name of a Hub data set. An npz has
            `images` uint8 (N, H, W, 3), `labels` (N,) and `classes` (C,), and needs no package but NumPy. A folder of
            images has a folder for each split, and in it one for each class.
        split: 'train' or 'test'.

    Raises:
        UserError: `source` is empty.
        DataError: The split or a column is missing, or the content is not such images and labels.
    """
    if not str(source):
        raise ArgumentError('source', 'must not be empty.')
    path = Path(source)
    if path.suffix == '.npz':
        return _read_npz(path)
    if path.is_dir():
        if (path / f'{split}.npz').is_file():
            return _read_npz(path / f'{split}.npz')
        parquet = parquet_files(path)
        if split in parquet:
            return _read_dataset('parquet', split, data_files={split: _whole(path, split, parquet[split])})
        if not parquet and (folder := split_folder(path, split)) != path:
            return _read_folder(folder)
        there = ', '.join(sorted(parquet) or split_folders(path))
        raise DataError(f'{path} has no {split}.npz, no parquet file of a split {split} and no folder {split} with a '
                        f'folder for each class{f" (but {there})" if there else ""}: name a folder with a {split} '
                        f'split.')
    if path.exists() or str(source).count('/') != 1 or str(source).startswith(('.', '/')):
        raise DataError(f'{source} is no folder, no .npz file and no Hub data set such as uoft-cs/cifar10.')
    return _read_dataset(str(source), split)


def holds_arrays(folder: Path) -> bool:
    """Whether a folder holds parquet or .npz files, not images."""
    return any(folder.glob('*.npz')) or any(file.suffix == '.parquet' for file in find_files(folder))


def parquet_files(folder: Path) -> Dict[str, List[Path]]:
    """The parquet files below a folder by their split: test-00000-of-00002.parquet, or any name in a folder test."""
    found: Dict[str, List[Path]] = {}
    for file in find_files(folder):
        if match := SHARD.fullmatch(file.name):
            named_by_folder = file.parent != folder and (
                match[1].isdigit() or is_split(file.parent.name) and not is_split(match[1]))
            found.setdefault(file.parent.name if named_by_folder else match[1], []).append(file)
    return found


def parquet_classes(folder: Path, split: str, column: Optional[str] = None) -> Optional[Tuple[str, ...]]:
    """Read the class names of a split from the header of a parquet file, None if it has none.

    Args:
        folder: As for `parquet_files`.
        split: The split.
        column: Column of the labels; None for that which `load_image_set` reads.
    """
    from pyarrow import ArrowException, parquet
    try:
        metadata = parquet.read_schema(parquet_files(folder)[split][0]).metadata
        features = json.loads(metadata[b'huggingface'])['info']['features']
        return next((tuple(features[name]['names']) for name in ([column] if column else LABEL_COLUMNS)
                     if name in features), None)
    except (ArrowException, KeyError, TypeError, ValueError):  # no such split, or no ClassLabel of datasets
        return None


def _whole(folder: Path, split: str, files: List[Path]) -> List[str]:
    """The files of a split, all of them and once each.

    Raises:
        DataError: They are of several, such as two snapshots or configurations, or some are missing.
    """
    of, groups = [SHARD.fullmatch(file.name) for file in files], {}
    for file, match in zip(files, of, strict=True):
        number = match[2] if match[1] == split else file.name
        groups.setdefault((file.parent, match[3]), {}).setdefault(number, []).append(file)
    names = [str(next(iter(group.values()))[0].relative_to(folder)) for group in groups.values()]
    twice = [str(same[1].relative_to(folder)) for group in groups.values() for same in group.values() if len(same) > 1]
    if len(names) > 1 or twice:
        raise DataError(f'{folder} holds the split {split} more than once ({" and ".join((names + twice)[:2])}): name '
                        f'the folder of one of them.')
    count = of[0][3]
    if count and len(files) != int(count):
        raise DataError(f'{folder} holds {len(files)} of the {int(count)} files of the split {split}: fetch the '
                        f'others.')
    return [str(file) for file in files]


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
    folder = class_folder(path)
    images = [np.asarray(open_image(file)) for file, _ in folder.samples]
    labels = np.array([label for _, label in folder.samples])
    return _checked(str(path), _stacked(str(path), images), labels, folder.classes)


def _stacked(source: str, images: List[np.ndarray]) -> np.ndarray:
    sizes = {image.shape[1::-1] for image in images}
    if len(sizes) > 1:
        raise DataError(f'{source} holds images of {len(sizes)} sizes: resize them to one, such as 32x32.')
    return np.stack(images)


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
    if isinstance(table.features[image], datasets.Image):
        table = table.cast_column(image, datasets.Image(decode=False))  # which would rotate by EXIF, as folders do not
    images = [np.asarray(open_image(_content(source, image, row), name=f'row {i} of {source}'))
              for i, row in enumerate(table[image])]
    labels, classes = _encoded(source, label, table[label], getattr(table.features[label], 'names', None))
    return _checked(source, _stacked(source, images), labels, classes)


def _content(source: str, column: str, row: Any) -> Union[bytes, str]:
    """An image file, or its path, as parquet holds it."""
    content = (row.get('bytes') or row.get('path')) if isinstance(row, dict) else row
    if not isinstance(content, (bytes, str)):
        raise DataError(f'{source}: column {column} does not hold images: write it as datasets.Image.')
    return content


def _encoded(source: str, column: str, labels: Any, names: Any) -> Tuple[np.ndarray, Tuple[str, ...]]:
    """Labels as numbers, and the names of the classes; names in place of numbers are numbered in timm's order."""
    from timm.utils import natural_key
    labels = list(labels)
    if all(isinstance(label, str) for label in labels):
        names = names or sorted(set(labels), key=natural_key)
        labels = [names.index(label) for label in labels]
    if not all(isinstance(label, (int, np.integer)) for label in labels):
        other = next(label for label in labels if not isinstance(label, (int, np.integer)))
        raise DataError(f'{source}: column {column} holds {type(other).__name__}s: it needs whole numbers or names of '
                        f'classes.')
    labels = np.asarray(labels)
    return labels, tuple(names or (str(i) for i in range(int(labels.max(initial=-1)) + 1)))


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
