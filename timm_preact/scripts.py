"""timm's own scripts, run with our names registered. They come with a clone of timm; its wheel holds none."""
import argparse
import difflib
import re
import runpy
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Set

import timm
import yaml

from .errors import UserError, check_name, create_model
from .folders import class_folders, split_folder
from .loading import check_fits
from .preact_resnet import MODEL_ARGS, checkpoint_filter_fn
from .weights import TIMM_KEYS, WeightsError, read_checkpoint
from .weights.keymaps import KEY_MAPS, source_of

__all__ = [
    'ScriptError', 'check_arguments', 'find_script', 'parse_arguments', 'run_script', 'version_of', 'version_warning']

REPOSITORY = 'https://github.com/huggingface/pytorch-image-models'
FAR = 3  # releases between scripts and package from which on an option may be missing on one side
CHECKPOINTS = ('resume', 'checkpoint', 'initial_checkpoint', 'pretrained_path')


class ScriptError(UserError):
    """A script, or arguments of one, that cannot work; the message says what to do."""


def find_script(script: str, folder: Optional[Path] = None) -> Path:
    """The file of one of timm's scripts.

    Args:
        script: 'validate.py', or a path of one.
        folder: Clone of huggingface/pytorch-image-models.

    Raises:
        ScriptError: It is not there.
    """
    if Path(script).is_file() and (folder is None or script != Path(script).name):
        return Path(script)
    if folder is None:
        branch = 'main' if 'dev' in timm.__version__ else f'v{timm.__version__}'
        raise ScriptError(
            f"timm's scripts are not in its wheel: git clone --depth 1 --branch {branch} {REPOSITORY}, then name that "
            f"folder by --timm-scripts or TIMM_SCRIPTS.")
    if not (folder / script).is_file():
        there = ', '.join(sorted(path.name for path in folder.glob('*.py'))) or 'no script'
        raise ScriptError(f'{folder} has no {script} (but {there}): name a clone of {REPOSITORY}.')
    return folder / script


def version_of(clone: Path) -> Optional[str]:
    """Version of the timm in a clone, None where there is none."""
    file = clone / 'timm' / 'version.py'
    found = re.search(r"['\"](\d[^'\"]*)['\"]", file.read_text()) if file.is_file() else None
    return found[1] if found else None


def version_warning(path: Path) -> Optional[str]:
    """A sentence with both versions where a script's timm is far from the one that is imported, else None."""
    version = version_of(path.resolve().parent)
    if version is None:
        return None
    theirs, ours = (tuple(map(int, re.findall(r'\d+', v)[:3])) for v in (version, timm.__version__))
    if theirs[:2] == ours[:2] and abs(theirs[2] - ours[2]) < FAR:
        return None
    return (f'{path.name} is of timm {version} and timm {timm.__version__} is installed: where an option fails, check '
            f'out the tag v{timm.__version__} of the scripts.')


def run_script(path: Path, args: List[str]) -> None:
    """Run a script as `python path args` would, but with the installed timm, which has our names.

    `python path` would put the clone's own timm first on sys.path.

    Raises:
        ScriptError: The arguments cannot work, see `check_arguments`.
    """
    parsed = parse_arguments(path, args)
    check_arguments(parsed)
    if path.name == 'bulk_runner.py':
        args = _through_us(path, args, parsed)
    sys.argv = [str(path), *args]
    runpy.run_path(str(path), run_name='__main__')


def parse_arguments(path: Path, args: List[str]) -> argparse.Namespace:
    """The arguments as the script's own parser reads them, the keys of a --config checked.

    Raises:
        ScriptError: The configuration is no YAML of the script's options.
        SystemExit: The parser refuses the arguments, or was asked for --help.
    """
    script = runpy.run_path(str(path), run_name='timm_script')
    parser, config = script.get('parser'), {}
    if parser is None:
        return argparse.Namespace()
    if 'config_parser' in script:
        before, args = script['config_parser'].parse_known_args(args)
        config = _read_config(before.config, {action.dest for action in parser._actions}) if before.config else {}
    parser.set_defaults(**config)
    return parser.parse_args(args)


def _read_config(path: str, options: Set[str]) -> Dict[str, Any]:
    """A YAML of options; the script itself takes a misspelt key without a word."""
    try:
        config = yaml.safe_load(Path(path).read_text())
    except yaml.YAMLError as e:
        raise ScriptError(f'{path} is not YAML: {" ".join(str(e).split())}') from e
    if not isinstance(config, dict):
        raise ScriptError(f'{path} is no list of options: write lines such as "epochs: 90".')
    for key in config:
        if key not in options:
            nearest = difflib.get_close_matches(str(key), options, n=1, cutoff=0.)
            raise ScriptError(f'{path}: there is no option {key}: did you mean {nearest[0]}?')
    return config


def check_arguments(args: argparse.Namespace) -> None:
    """Find before anything runs what a script finds late, says in a traceback, or does not say.

    Args:
        args: Of any script; what a script has not is not checked.

    Raises:
        UserError: The model is misspelt, a checkpoint is missing or of another layout, the classes of a folder of
            images are not those of its other split, or another number than the model's.
    """
    name = getattr(args, 'model', None)
    if not name or re.search(r'[*?\[:/]', name) or name.startswith('all') or Path(name).exists():
        return  # a pattern, a list in a file, or a model from elsewhere
    check_name(name)
    if name.partition('.')[0] in MODEL_ARGS:
        for option in CHECKPOINTS:
            if getattr(args, option, None) and not Path(getattr(args, option)).is_dir():  # validate.py takes a folder
                _check_checkpoint(Path(getattr(args, option)), f"--{option.replace('_', '-')}", name, args)
    if hasattr(args, 'train_split') or hasattr(args, 'valid_labels'):  # inference.py asks for no labels
        _check_classes(args, name)


def _check_checkpoint(path: Path, option: str, name: str, args: argparse.Namespace) -> None:
    if not path.is_file():
        raise ScriptError(f'{option} {path} does not exist: name a file, or leave {option} out to start anew.')
    state_dict, key = read_checkpoint(path)
    if key not in TIMM_KEYS:
        raise WeightsError(f'{path} has its weights under {key!r}, where timm does not look: timm-preact convert '
                           f'{path} --name {name} --to FOLDER writes FOLDER/model.safetensors for {option}.')
    source = source_of(state_dict)
    kwargs = {key: getattr(args, key) for key in ('num_classes', 'in_chans') if getattr(args, key, None) is not None}
    model = create_model(name, device='meta', **{**kwargs, **(getattr(args, 'model_kwargs', None) or {})})
    if option == '--pretrained-path':  # goes through our filter, and its classifier is adapted
        checkpoint_filter_fn(state_dict, model)
        return
    if source is not None:
        extra = ' '.join(f'{key}={value}' for key, value in KEY_MAPS[source].model_args.items())
        raise WeightsError(
            f'{path} has the layout of {KEY_MAPS[source].title}, not that of {name}: timm-preact convert {path} --name '
            f'{name} --to FOLDER writes FOLDER/model.safetensors for {option}'
            f"{f', which goes with --model-kwargs {extra}' if extra else ''}.")
    check_fits(model, state_dict, path, name)


def _check_classes(args: argparse.Namespace, name: str) -> None:
    """timm numbers the classes of each split by its own folders: one too few shifts all labels after it, silently."""
    root = getattr(args, 'data_dir', None) or getattr(args, 'data', None)
    splits = [getattr(args, key, None) for key in ('train_split', 'val_split', 'split')]
    mapped = any(getattr(args, key, None) for key in ('class_map', 'valid_labels', 'real_labels'))
    if not root or not Path(root).is_dir() or getattr(args, 'dataset', None) or mapped:
        return
    folders = dict.fromkeys(split_folder(Path(root), split) for split in splits if split)
    if not folders or not all(any(child.is_dir() for child in folder.iterdir()) for folder in folders):
        return  # archives: timm says what it finds
    classes = {folder: set(class_folders(folder)) for folder in folders}
    first, *others = classes
    for other in others:
        for here, there in ((first, other), (other, first)):
            if missing := sorted(classes[here] - classes[there]):
                raise ScriptError(
                    f'{there} has no images of {missing[0]}, which {here} has, so that labels would not agree: add '
                    f'them, or number the classes by --class-map.')
    expected = getattr(args, 'num_classes', None) or timm.get_pretrained_cfg(name).num_classes
    if len(classes[first]) != expected:
        raise ScriptError(f'{first} has {len(classes[first])} classes and the model {expected}: pass --num-classes '
                          f'{len(classes[first])}, or number the classes by --class-map.')


def _through_us(path: Path, args: List[str], parsed: argparse.Namespace) -> List[str]:
    """bulk_runner.py starts a process a model: have each start as `python -m timm_preact run SCRIPT`."""
    if parsed.module or parsed.no_python:
        return args
    at = len(args) - len(parsed.script_args) - 1
    inner = str(find_script(parsed.script, path.parent))
    ranked = [] if parsed.sort_key or 'benchmark' not in inner else [
        '--sort-key', f"{'train' if any('train' in a for a in parsed.script_args) else 'infer'}_samples_per_sec"]
    return [*args[:at], *ranked, '--module', 'timm_preact', 'timm_preact', 'run', inner, *parsed.script_args]
