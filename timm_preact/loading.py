"""Weights that somebody saved, in whatever layout and kind of file, in the network that they are for."""
import tempfile
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Dict, Iterator, Mapping, NamedTuple, Optional, Sequence, Union

import torch
from timm.data import ImageNetInfo
from timm.models import is_model
from torch import nn

from .data import DATA_SET_CLASSES
from .errors import ArgumentError, UserError, check_model_args, check_name, create_model
from .preact_resnet import MODEL_ARGS, checkpoint_filter_fn, find_fitting
from .train_args import class_names_of, inputs_of, model_args_of, read_args, sizes_of
from .weights import CHECKSUMS, WeightsError, check_finite, find_weights, has_checksum, read_weights, verify
from .weights.fetch import blaming, unpack
from .weights.foreign import FOREIGN, read_foreign
from .weights.keymaps import KEY_MAPS, source_of
from .weights.mxnet import fold_input_norm

__all__ = ['ENDINGS', 'Loaded', 'check_fits', 'find_name', 'load_into']

ENDINGS = ('.safetensors', '.pth', '.pt', '.th', '.bin', '.ckpt', '.tar', '.zip', *FOREIGN)  # of weight files

# How images are prepared: config.json or args.yaml beside a file says it, else its source
INPUT_KEYS = (
    'input_size', 'test_input_size', 'interpolation', 'crop_pct', 'test_crop_pct', 'crop_mode', 'mean', 'std')
INPUTS = {
    'timm_resnetv2': dict(mean=(0.5, 0.5, 0.5), std=(0.5, 0.5, 0.5)),
    'akamaster': dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225)),
    'gluon': dict(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), interpolation='bilinear'),
    **{layout: dict(mean=(0.4914, 0.4822, 0.4465), std=(0.2023, 0.1994, 0.2010))
       for layout in ('kuangliu', 'kuangliu_preact')},
    **{layout: dict(mean=(0.5071, 0.4865, 0.4409), std=(0.2673, 0.2564, 0.2762))
       for layout in ('weiaicunzai', 'weiaicunzai_preact')},
}


class WeightFile(NamedTuple):
    """A weight file and what lies beside it.

    Attributes:
        state_dict: The tensors.
        layout: The key of KEY_MAPS that names them, None where they have our names.
        config: config.json.
        args: args.yaml of timm's train.py, which counts where there is no config.json.
    """
    state_dict: Dict[str, torch.Tensor]
    layout: Optional[str]
    config: Dict[str, Any]
    args: Dict[str, Any]


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
        class_names: Optional[Sequence[str]] = None,
        data_set: Optional[str] = None,
) -> Loaded:
    """Load the weights of a file, by our names or by those of a source in `timm_preact.weights.keymaps`.

    The class names are, in this order, `class_names`, those of the config.json beside the file, those that the
    args.yaml of timm's train.py beside it leads to, without one those of the data set of the tag or of `data_set`, or
    none.

    Args:
        name: Registered name, with or without tag; a published file has its tag by itself.
        path: A .t7, .h5, .params or .safetensors file, what torch.save wrote, a .zip with one of them, or a folder with
            model.safetensors. The config.json beside it counts, or else the args.yaml of timm's train.py.
        model_args: Constructor arguments, in place of those that the layout, config.json or args.yaml asks for.
        as_in_file: Take the numbers of classes and input channels from the file; else the network's own must fit.
        checksum: What the file, out of its .zip, must have: 'algorithm:digest'.
        class_names: Of the classes, in the order of the logits.
        data_set: Key of `DATA_SET_CLASSES`, such as 'cifar10', which the weights were trained on.

    Raises:
        UserError: timm knows no such name, the network takes no such arguments, or has another number of classes than
            `class_names`.
        WeightsError: The file is missing or damaged, or does not fit the network.
    """
    check_name(name)
    architecture = name.partition('.')[0]
    with _unpacked(path) as file:
        if checksum:
            verify(file, checksum)
        state_dict, layout, config, args = _read(file)
        if '.' not in name and not config:
            name = _find_published(file, [name]) or name
    data_set = data_set or name.partition('.')[2].rpartition('_')[2]
    trained = str(args.get('model')).partition('.')[0]
    if trained == architecture:
        name = name if '.' in name else check_name(args['model'])
    elif layout is None or trained in MODEL_ARGS or not is_model(trained):
        args = {}  # of another network, or of another program
    if architecture not in MODEL_ARGS:
        layout = None
    elif layout is None and config.get('architecture', architecture) != architecture:
        raise WeightsError(f'{path} holds {config["architecture"]}, not {architecture}: pass --model '
                           f'{config["architecture"]}, or --name to convert.')
    cfg = config.get('pretrained_cfg') or INPUTS.get(layout, {})
    if layout == 'gluon':
        state_dict, cfg = fold_input_norm(state_dict, cfg)
    model_args = {
        **(KEY_MAPS[layout].model_args if layout else config.get('model_args') or model_args_of(args)),
        **(dict(num_classes=config['num_classes']) if 'num_classes' in config else sizes_of(args)),
        **(model_args or {}),
    }
    check_model_args(model_args, ('num_classes', 'in_chans'))
    if layout:
        state_dict = checkpoint_filter_fn(state_dict, create_model(name, device='meta', **model_args))
    model = create_model(name, **{**model_args, **(_sizes_of(state_dict) if as_in_file else {})})
    check_fits(model, state_dict, path, name)
    model.load_state_dict(state_dict)
    inputs = inputs_of(args) if args else cfg
    model.pretrained_cfg.update({key: inputs[key] for key in INPUT_KEYS if key in inputs})
    if architecture in MODEL_ARGS:
        model.pretrained_cfg.update(input_size=(model.in_chans, *model.pretrained_cfg['input_size'][1:]))
    if args or config.get('pretrained_cfg'):  # without a test size, not with that of the name
        model.pretrained_cfg.update({key: inputs.get(key) for key in ('test_input_size', 'test_crop_pct')})
    if class_names and len(class_names) != model.num_classes:
        raise ArgumentError('class_map', f'has {len(class_names)} classes and {path} has {model.num_classes}: write a '
                                         f'line for each class, in the order of the logits.')
    of_tag = None if args else DATA_SET_CLASSES.get(data_set)  # train.py may have trained on other data than the tag's
    stated = [class_names, cfg.get('label_names'), config.get('label_names'), of_tag]
    _name_classes(model, stated, args)
    return Loaded(model, layout, cfg, model_args)


def _name_classes(model: nn.Module, stated: Sequence[Optional[Sequence[str]]], args: Dict[str, Any]) -> None:
    """Set the class names of the model's config to the first that are as many as its classes, or else to those that
    args.yaml leads to; remove them if there are none.

    A network of ImageNet's 1000 classes has none, as in timm: `timm_preact.evaluation.class_names` knows them.
    """
    names = next((names for names in stated if names and len(names) == model.num_classes), None)
    names = list(names or class_names_of(args) or ())
    if len(names) == model.num_classes and names != ImageNetInfo().label_names():
        model.pretrained_cfg['label_names'] = names
    else:
        model.pretrained_cfg.pop('label_names', None)


def find_name(path: Union[str, Path], option: str = '--name', model_args: Optional[Dict[str, Any]] = None) -> str:
    """Find the registered name whose network a file holds.

    The config.json beside it says so; else its tensors do, and where several names have them the args.yaml of timm's
    train.py, or where the file is a published one its checksum, which gives the tag too.

    Args:
        path: As in `load_into`.
        option: By which a name is given instead, for messages.
        model_args: Constructor arguments in place of the names' own.

    Raises:
        UserError: The file is missing or damaged, or fits no name, or several; or no network takes such arguments.
    """
    with _unpacked(path) as file:
        state_dict, layout, config, args = _read(file)
        trained = str(args.get('model')).partition('.')[0]
        if layout is None and config.get('architecture') in MODEL_ARGS:
            return config['architecture']
        if layout == 'gluon':
            state_dict, _ = fold_input_norm(state_dict, INPUTS[layout])
        if layout is None and trained in MODEL_ARGS:
            model_args = {**model_args_of(args), **(model_args or {})}
        try:
            names, nearest = find_fitting(state_dict, model_args)
        except Exception as e:  # whatever a network makes of arguments that are none
            raise UserError(f'no network can be made with {model_args} ({type(e).__name__}: '
                            f'{" ".join(str(e).split())[:200]}): correct the arguments.') from e
        published = _find_published(file, names)
    if published:
        return published
    if trained in names or len(names) == 1:
        return trained if trained in names else names[0]
    if names:
        raise WeightsError(f'{path} fits {", ".join(names[:-1])} and {names[-1]}, whose tensors are alike: say by '
                           f'{option} which it is.')
    if nearest is None:
        nearest = f'its layout is not known (its first tensor is {next(iter(state_dict), "none")}).'
    raise WeightsError(f'{path} fits no registered name, {nearest}')


def _find_published(file: Path, names: Sequence[str]) -> Optional[str]:
    """Return the name with tag whose published weights a file is, among the tags of registered names; else None."""
    found = [tagged for tagged in CHECKSUMS
             if tagged.partition('.')[0] in names and has_checksum(file, CHECKSUMS[tagged])]
    return found[0] if len(found) == 1 else None


@contextmanager
def _unpacked(path: Union[str, Path]) -> Iterator[Path]:
    """The weight file that a path names, out of its .zip; errors name the path."""
    file = find_weights(path)
    with tempfile.TemporaryDirectory() as temporary, blaming(str(file), temporary):
        yield unpack(file, Path(temporary)) if file.suffix == '.zip' else file


def _read(file: Path) -> WeightFile:
    if file.suffix in FOREIGN:
        state_dict, layout = read_foreign(file)
        check_finite(state_dict, str(file))
        return WeightFile(state_dict, layout, {}, {})
    state_dict, config = read_weights(file)
    return WeightFile(state_dict, source_of(state_dict), config, {} if config else read_args(file.parent))


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
