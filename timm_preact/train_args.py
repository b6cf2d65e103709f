"""args.yaml, in which timm's train.py records its arguments beside the checkpoints."""
from pathlib import Path
from typing import Any, Dict, Optional, Tuple

import timm
import yaml
from timm.data import resolve_data_config

from .data import DATA_SET_CLASSES, parquet_classes
from .folders import class_folders, read_class_map, split_folder
from .images import DataError
from .weights import WeightsError

__all__ = ['class_names_of', 'inputs_of', 'model_args_of', 'read_args', 'sizes_of']


def read_args(folder: Path) -> Dict[str, Any]:
    """Read args.yaml of a folder; return an empty dictionary if the file does not exist.

    Raises:
        WeightsError: The file is damaged.
    """
    path = folder / 'args.yaml'
    if not path.is_file():
        return {}
    try:
        args = yaml.safe_load(path.read_text())
    except (OSError, ValueError, yaml.YAMLError) as e:
        raise WeightsError(f'{path} is not valid YAML ({" ".join(str(e).split())}): restore or remove it.') from e
    if not isinstance(args, dict):
        raise WeightsError(f"{path} does not hold the arguments of timm's train.py: restore or remove it.")
    return args


def model_args_of(args: Dict[str, Any]) -> Dict[str, Any]:
    """Return the arguments of the network, without its numbers of classes and input channels."""
    pool = {'global_pool': args['gp']} if args.get('gp') else {}
    return {**pool, **(args.get('model_kwargs') or {})}


def sizes_of(args: Dict[str, Any]) -> Dict[str, int]:
    """Return the numbers of classes and input channels, as far as they are given."""
    channels = args.get('in_chans') or next(iter(args.get('input_size') or ()), None)
    return {key: value for key, value in (('num_classes', args.get('num_classes')), ('in_chans', channels)) if value}


def inputs_of(args: Dict[str, Any]) -> Dict[str, Any]:
    """Return how train.py prepares the images that it validates on.

    Raises:
        WeightsError: An argument has a value that train.py does not take.
    """
    try:
        return resolve_data_config(args, pretrained_cfg=timm.get_pretrained_cfg(args['model']).to_dict())
    except (AssertionError, AttributeError, RuntimeError, TypeError, ValueError) as e:
        raise WeightsError(f"args.yaml does not hold the arguments of timm's train.py ({type(e).__name__}: {e}): "
                           f'restore or remove it.') from e


def class_names_of(args: Dict[str, Any]) -> Optional[Tuple[str, ...]]:
    """Return the class names of the training data in the order of the labels, None if they are not known.

    They are those of `class_map`, of the class folders where `data_dir` still exists, of a parquet folder, or of a
    known data set such as hfds/uoft-cs/cifar10.
    """
    root, data_set = args.get('data_dir') or args.get('data') or '', args.get('dataset') or ''
    split = args.get('train_split') or 'train'
    try:
        if class_map := args.get('class_map'):  # where train.py looks for it, in order
            return next((read_class_map(path) for path in (Path(class_map), Path(root, class_map)) if path.is_file()),
                        None)
        if '/' not in data_set:
            return class_folders(split_folder(Path(root), split)) if root and Path(root).is_dir() else None
        kind, _, name = data_set.partition('/')
        if kind == 'hfds' and Path(name).is_dir():
            return parquet_classes(Path(name), split, args.get('target_key') or None)
        return DATA_SET_CLASSES.get(name.rpartition('/')[2].lower())
    except (DataError, TypeError):
        return None
