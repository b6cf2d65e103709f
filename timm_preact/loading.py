"""Weights that somebody saved, in whatever layout and kind of file, in the network that they are for."""
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, NamedTuple, Optional, Tuple, Union

import torch
from torch import nn

from .errors import UserError, check_name, create_model
from .preact_resnet import MODEL_ARGS, checkpoint_filter_fn, find_fitting
from .weights import CHECKSUMS, WeightsError, check_finite, find_weights, has_checksum, read_weights, verify
from .weights.fetch import blaming, unpack
from .weights.foreign import FOREIGN, read_foreign
from .weights.keymaps import KEY_MAPS, source_of
from .weights.mxnet import fold_input_norm
from .weights.sources import SOURCES

__all__ = ['ENDINGS', 'Loaded', 'check_fits', 'find_name', 'load_into']

ENDINGS = ('.safetensors', '.pth', '.pt', '.th', '.bin', '.ckpt', '.tar', '.zip', *FOREIGN)  # of weight files

# How images are prepared, and what the classes are: a file's config.json says it, else its source
INPUT_KEYS = (
    'input_size', 'test_input_size', 'interpolation', 'crop_pct', 'test_crop_pct', 'mean', 'std', 'label_names')
INPUTS = {
    'timm_resnetv2': dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    'akamaster': dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    'gluon': dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation='bilinear'),
}


class Loaded(NamedTuple):
    """What `load_into` made.

    Attributes:
        model: The network, whose config says how the file's images are prepared.
        layout: The key of KEY_MAPS that names the file's tensors, None where they have our names.
        cfg: What is known of the file's images and classes, as in a pretrained config.
        model_args: What makes the network, beside the name.
    """
    model: nn.Module
    layout: Optional[str]
    cfg: Dict[str, Any]
    model_args: Dict[str, Any]


def load_into(
        name: str,
        path: Union[str, Path],
        model_args: Optional[Dict[str, Any]] = None,
        as_in_file: bool = False,
        checksum: Optional[str] = None,
) -> Loaded:
    """A network with the weights of a file, by our names or by those of a source in `timm_preact.weights.keymaps`.

    Args:
        name: Registered name, with or without tag.
        path: A .t7, .h5, .params or .safetensors file, what torch.save wrote, a .zip with one of them, or a folder with
            model.safetensors. The config.json beside it counts.
        model_args: Constructor arguments, in place of those that the layout or config.json asks for.
        as_in_file: Take the numbers of classes and input channels from the file; else the network's own must fit.
        checksum: What the file, out of its .zip, must have: 'algorithm:digest'.

    Raises:
        UserError: timm knows no such name, or the network takes no such arguments.
        WeightsError: The file is missing or damaged, or does not fit the network.
    """
    check_name(name)
    architecture = name.partition('.')[0]
    with _unpacked(Path(path)) as file:
        if checksum:
            verify(file, checksum)
        state_dict, layout, config = _read(file)
    if architecture not in MODEL_ARGS:
        layout = None
    elif layout is None and config.get('architecture', architecture) != architecture:
        raise WeightsError(f'{path} holds {config["architecture"]}, not {architecture}: pass --model '
                           f'{config["architecture"]}, or --name to convert.')
    cfg = config.get('pretrained_cfg') or INPUTS.get(layout, {})
    if layout == 'gluon':
        state_dict, cfg = fold_input_norm(state_dict, cfg)
    model_args = {
        **(KEY_MAPS[layout].model_args if layout else config.get('model_args', {})),
        **{key: config[key] for key in ('num_classes',) if key in config},
        **(model_args or {}),
    }
    if layout:
        state_dict = checkpoint_filter_fn(state_dict, create_model(name, device='meta', **model_args))
    model = create_model(name, **{**model_args, **(_sizes_of(state_dict) if as_in_file else {})})
    check_fits(model, state_dict, path, name)
    model.load_state_dict(state_dict)
    if architecture in MODEL_ARGS:
        model.pretrained_cfg.update(input_size=(model.in_chans, *model.pretrained_cfg['input_size'][1:]))
    model.pretrained_cfg.update({key: cfg[key] for key in INPUT_KEYS if key in cfg})
    return Loaded(model, layout, cfg, model_args)


def find_name(path: Union[str, Path], option: str = '--name', model_args: Optional[Dict[str, Any]] = None) -> str:
    """Find the registered name whose network a file holds.

    The config.json beside it says so; else its tensors do, and where the file is a published one its checksum, which
    gives the tag too.

    Args:
        path: As in `load_into`.
        option: By which a name is given instead, for messages.
        model_args: Constructor arguments in place of the names' own.

    Raises:
        UserError: The file is missing or damaged, or fits no name, or several; or no network takes such arguments.
    """
    with _unpacked(Path(path)) as file:
        state_dict, layout, config = _read(file)
        if layout is None and config.get('architecture') in MODEL_ARGS:
            return config['architecture']
        if layout == 'gluon':
            state_dict, _ = fold_input_norm(state_dict, INPUTS[layout])
        try:
            names, nearest = find_fitting(state_dict, model_args)
        except Exception as e:  # whatever a network makes of arguments that are none
            raise UserError(f'no network can be made with {model_args} ({type(e).__name__}: '
                            f'{" ".join(str(e).split())[:200]}): correct the arguments.') from e
        published = [tagged for tagged in SOURCES if tagged.partition('.')[0] in names and tagged in CHECKSUMS
                     and has_checksum(file, CHECKSUMS[tagged])]
    if len(published) == 1 or len(names) == 1:
        return (published or names)[0]
    if names:
        raise WeightsError(f'{path} fits {", ".join(names[:-1])} and {names[-1]}, whose tensors are alike: say by '
                           f'{option} which it is.')
    if nearest is None:
        nearest = f'its layout is not known (its first tensor is {next(iter(state_dict), "none")}).'
    raise WeightsError(f'{path} fits no registered name, {nearest}')


@contextmanager
def _unpacked(path: Path) -> Iterator[Path]:
    """The weight file that a path names, out of its .zip; errors name the path."""
    file = find_weights(path)
    with tempfile.TemporaryDirectory() as temporary, blaming(str(file), temporary):
        yield unpack(file, Path(temporary)) if file.suffix == '.zip' else file


def _read(file: Path) -> Tuple[Dict[str, torch.Tensor], Optional[str], Dict[str, Any]]:
    """The state dict of a file, the key of KEY_MAPS that names its tensors, and the config.json beside it."""
    if file.suffix in FOREIGN:
        state_dict, layout = read_foreign(file)
        check_finite(state_dict, str(file))
        return state_dict, layout, {}
    state_dict, config = read_weights(file)
    return state_dict, source_of(state_dict), config


def _sizes_of(state_dict: Mapping[str, torch.Tensor]) -> Dict[str, int]:
    """The arguments for as many classes and input channels as the tensors of a network of ours have."""
    sizes = {}
    if 'head.fc.weight' in state_dict and state_dict['head.fc.weight'].ndim:
        sizes['num_classes'] = state_dict['head.fc.weight'].shape[0]
    if 'stem.conv.weight' in state_dict and state_dict['stem.conv.weight'].ndim > 1:
        sizes['in_chans'] = state_dict['stem.conv.weight'].shape[1]
    return sizes


def check_fits(model: nn.Module, state_dict: Mapping[str, torch.Tensor], path: Union[str, Path], name: str) -> None:
    """Refuse tensors that are not exactly those of a network; counters of batches may be missing.

    Args:
        model: The network, on any device.
        state_dict: The tensors.
        path: Where they are from, for the message.
        name: What the network is called.

    Raises:
        WeightsError: They are another network's, or of another number of classes.
    """
    expected = {key: tuple(tensor.shape) for key, tensor in model.state_dict().items()
                if key in state_dict or not key.endswith('.num_batches_tracked')}
    found = {key: tuple(tensor.shape) for key, tensor in state_dict.items()}
    wrong = [key for key in {**expected, **found} if expected.get(key) != found.get(key)]
    if 'stem.conv.weight' in expected and 'stem.conv.weight' not in found:
        raise WeightsError(f'{path} does not fit {name}: its layout is not known (its first tensor is '
                           f'{next(iter(found), "none")}), {name} has stem.conv.weight.')
    if wrong == ['head.fc.weight', 'head.fc.bias'] and found.keys() >= set(wrong):
        classes = found['head.fc.weight'][0]
        raise WeightsError(f'{path} has {classes} classes, {name} has {model.num_classes}: name the model with the tag '
                           f'of the data set it was trained on, or pass --num-classes {classes}.')
    if wrong:
        raise WeightsError(f'{path} does not fit {name}: it holds another network ({len(wrong)} tensors differ, '
                           f'{wrong[0]} for one).')
