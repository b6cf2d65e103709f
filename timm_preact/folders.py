"""Folders of images with a folder for each class, counted as timm's train.py and validate.py count them."""
import os
from pathlib import Path
from typing import List, NamedTuple, Tuple

from .images import DataError, readable_suffixes

__all__ = [
    'SPLITS', 'ClassFolder', 'class_folder', 'class_folders', 'is_split', 'read_class_map', 'split_folder',
    'split_folders',
]

# What a split's folder may be called, as timm looks for it
SPLITS = {
    'train': ('train', 'training'),
    'validation': ('validation', 'val', 'valid', 'eval', 'evaluation'),
    'test': ('test',),
}


def read_class_map(path: Path) -> Tuple[str, ...]:
    """Read class names from a text file, one a line, in the order of the labels: timm's class map.

    Raises:
        DataError: The file does not exist or is not such a text; a pickle is not read.
    """
    try:
        names = [line.strip() for line in path.read_text().rstrip().splitlines()]
    except FileNotFoundError as e:
        raise DataError(f'{path} does not exist: name a text file with one class name a line.') from e
    except (OSError, UnicodeDecodeError) as e:
        raise DataError(f'{path} is not a text file ({type(e).__name__}): write one class name a line.') from e
    if path.suffix == '.pkl' or not names or '' in names or len(set(names)) < len(names):
        raise DataError(f'{path} is not a class map: write a text file with one class name a line, none empty and none '
                        f'twice.')
    return tuple(names)


class ClassFolder(NamedTuple):
    """Image files with their labels.

    Attributes:
        samples: (file, label) of each image, in timm's order.
        classes: Names of the classes in the order of the labels: 10 comes after 9.
    """
    samples: List[Tuple[str, int]]
    classes: Tuple[str, ...]


def class_folders(folder: Path) -> Tuple[str, ...]:
    """Names of the classes below a folder, as timm finds them: of every folder, at any depth, that holds an image.

    Raises:
        DataError: A folder there is none to timm although it looks like one, or one that it should not be, so that
            labels would shift; or there is none.
    """
    from timm.data import get_img_extensions, is_img_extension
    from timm.utils import natural_key
    kinds = ', '.join(sorted(get_img_extensions()))
    classes, empty, others = set(), {}, readable_suffixes()
    for root, _, files in os.walk(folder, topdown=False, followlinks=True):
        suffixes = {os.path.splitext(file)[1].lower() for file in files}
        inside = Path(root).relative_to(folder)
        if any(map(is_img_extension, suffixes)):
            classes.add(inside.name)
            if not inside.name:
                raise DataError(f'{folder} holds images beside its folders: timm would take them for a class of their '
                                f'own: put them into the folder of their class.')
            if inside.name.startswith('.'):
                raise DataError(f'{folder / inside} is a class to timm, which would shift the labels: remove it.')
            empty.update((parent, None) for parent in (inside, *inside.parents))
        else:
            empty.setdefault(inside, sorted(suffixes & others))
    for inside, found in sorted(empty.items()):
        if found is not None and len(inside.parts) == 1 and not inside.name.startswith('.'):
            but = f', but {", ".join(found)}' if found else ''
            raise DataError(f'{folder / inside} holds no image of a kind that timm reads ({kinds}){but}, and would be '
                            f'no class: fill it, convert its images, or remove it.')
    if not classes:
        raise DataError(f'{folder} holds no parquet or .npz file and no folder of images a class: name a data folder.')
    return tuple(sorted(classes, key=natural_key))


def class_folder(folder: Path) -> ClassFolder:
    """The images below a folder and their labels, as timm reads them.

    Raises:
        DataError: As `class_folders`.
    """
    from timm.data.readers.reader_image_folder import find_images_and_targets
    classes = class_folders(folder)
    samples, _ = find_images_and_targets(str(folder), class_to_idx={name: i for i, name in enumerate(classes)})
    return ClassFolder(samples, classes)


def is_split(name: str) -> bool:
    """Whether this is what somebody calls a split."""
    return any(name in names for names in SPLITS.values())


def split_folders(root: Path) -> List[str]:
    """The folders of a root that are splits: they have the name of one, and hold folders themselves."""
    return sorted(child.name for child in root.iterdir()
                  if is_split(child.name) and child.is_dir() and any(inner.is_dir() for inner in child.iterdir()))


def split_folder(root: Path, split: str) -> Path:
    """The folder of a split, by its name or another of SPLITS; the root itself where it holds classes, not splits.

    Raises:
        DataError: The root holds splits, and not this one.
    """
    split = split.split('[')[0]
    names = next((names for names in SPLITS.values() if split in names), ())
    for name in (split, *names):
        if (root / name).is_dir():
            return root / name
    if splits := split_folders(root):
        raise DataError(f'{root} has no split {split} (but {", ".join(splits)}): name one of these by --split.')
    return root
