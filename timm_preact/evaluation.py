"""Models as users name them, run on images as timm prepares them: the engine of evaluate, predict and demo."""
import importlib
import sys
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import timm
import torch
from PIL import Image
from timm.data import ImageNetInfo, create_transform, resolve_data_config
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import Compose, Grayscale

from .data import ImageSet, holds_arrays, load_image_set
from .errors import COUNT, SHARE, ArgumentError, UserError, check_name, create_model
from .folders import ClassFolder, class_folder, read_class_map, split_folder
from .images import DataError, open_image
from .loading import find_name, load_into
from .preact_resnet import MODEL_ARGS
from .weights import WeightsError
from .weights.fetch import from_hub

__all__ = [
    'HUB', 'MATCHES', 'Comparison', 'Images', 'Protocol', 'Scores', 'class_names', 'classify', 'compare',
    'eval_transform', 'evaluate', 'format_protocol', 'import_modules', 'input_channels', 'label_order', 'load_model',
    'load_states', 'normalisation', 'open_images', 'predict', 'resolve_protocol',
]

HUB = 'hf-hub:'  # before a repository's name, as timm has it
MATCHES = ('name', 'index')
HUB_NAMES = {'cra': 'crab'}  # what uoft-cs/cifar100 on the Hub misspells


class Images(Dataset):
    """Labelled images, prepared by a transform of PIL's images: items (tensor, label)."""

    def __init__(self, source: Union[ImageSet, ClassFolder], transform: Callable):
        self.source = source
        self.classes = tuple(source.classes)
        self.transform = transform

    def __len__(self) -> int:
        return len(self.source.labels) if isinstance(self.source, ImageSet) else len(self.source.samples)

    def __getitem__(self, index: int) -> Tuple[torch.Tensor, int]:
        if isinstance(self.source, ImageSet):
            image, label = Image.fromarray(self.source.images[index]), int(self.source.labels[index])
        else:
            path, label = self.source.samples[index]
            image = open_image(path)
        return self.transform(image), label

    def spread(self, count: int) -> Tuple[torch.Tensor, torch.Tensor]:
        """`count` images, or all where there are fewer, evenly spread over images that may be sorted by class.

        Returns:
            Images (count, C, H, W) and labels (count,).

        Raises:
            UserError: The count is not positive.
        """
        COUNT.check('count', count)
        count = min(count, len(self))
        images, labels = zip(*(self[i * len(self) // count] for i in range(count)), strict=True)
        return torch.stack(images), torch.tensor(labels)


class Protocol(NamedTuple):
    """How images are prepared for the test of a network, by the names of timm's data config.

    Attributes:
        input_size: (C, H, W).
        interpolation: Of the resize.
        mean: Of each channel.
        std: Of each channel.
        crop_pct: Crop as a share of the resized image.
        crop_mode: 'center', 'squash' or 'border'.
    """
    input_size: Tuple[int, int, int]
    interpolation: str
    mean: Tuple[float, ...]
    std: Tuple[float, ...]
    crop_pct: float
    crop_mode: str

    def transform(self) -> Callable:
        """Return timm's evaluation transform; a network of one input channel gets grey images.

        Raises:
            UserError: The network has neither 1 nor 3 input channels.
        """
        channels = self.input_size[0]
        if channels not in (1, 3):
            raise UserError(f'a network of {channels} input channels takes no image files: use one of 1 (grey) or 3 '
                            f'(RGB).')
        transform = create_transform(**self._asdict())
        return transform if channels == 3 else Compose([Grayscale(), *transform.transforms])

    def as_evaluation(self) -> Dict[str, Any]:
        """Return `input_size`, one number for a square and else [H, W], and `crop_pct`, for config.json."""
        _, height, width = self.input_size
        return dict(input_size=height if height == width else [height, width], crop_pct=self.crop_pct)


def format_protocol(evaluation: Dict[str, Any]) -> str:
    """Format what `Protocol.as_evaluation` returns, e.g. '48x64, crop 1.0' (height x width)."""
    size = evaluation['input_size']
    height, width = (size, size) if isinstance(size, int) else size
    return f'{height}x{width}, crop {evaluation["crop_pct"]}'


class Scores(NamedTuple):
    """Result of an evaluation; accuracies in percent.

    Attributes:
        images: Number of images.
        top1: The label is the highest logit.
        top5: The label is among the five highest logits.
        per_class: Top-1 accuracy of each class that has images.
        predictions: Index of the highest logit of each image.
    """
    images: int
    top1: float
    top5: float
    per_class: Dict[str, float]
    predictions: torch.Tensor

    @property
    def error(self) -> float:
        """Top-1 error in percent."""
        return 100 - self.top1


class Comparison(NamedTuple):
    """Two models on the same images.

    Attributes:
        scores: Of each.
        answers: int64 (2, images): each model's answers, as indices into the classes of the data.
    """
    scores: Tuple[Scores, Scores]
    answers: torch.Tensor

    @property
    def differ(self) -> List[int]:
        """Indices of the images that they name differently."""
        return (self.answers[0] != self.answers[1]).nonzero().flatten().tolist()


def open_images(source: str, split: str, transform: Callable) -> Images:
    """Labelled images from what `timm_preact.data.load_image_set` reads, or from a folder with a subfolder a class.

    Raises:
        UserError: `source` is empty.
        DataError: `source` is none of these.
    """
    if not source:
        raise ArgumentError('source', 'must not be empty.')
    path = Path(source)
    if path.is_dir() and not holds_arrays(path):
        return Images(class_folder(split_folder(path, split)), transform)
    return Images(load_image_set(source, split), transform)


def import_modules(names: Sequence[str]) -> None:
    """Import modules that register names, as `python -m` finds them: those of the current folder too.

    Raises:
        UserError: One cannot be imported.
    """
    sys.path.insert(0, '')
    try:
        for name in names:
            importlib.import_module(name)
    except Exception as e:  # whatever a module of the user's does
        raise UserError(f'--device-modules {name} cannot be imported ({type(e).__name__}: {e}): name a module that is '
                        f'installed, or lies in this folder.') from e
    finally:
        sys.path.remove('')


def load_model(
        name: str,
        weights: Optional[str] = None,
        device: str = 'cpu',
        num_classes: Optional[int] = None,
        model_kwargs: Optional[Dict[str, Any]] = None,
        as_in_file: bool = False,
        class_map: Optional[Path] = None,
) -> nn.Module:
    """Return a model in eval mode with its published weights, or with a file or folder of weights of one's own.

    Args:
        name: Registered name, with or without tag; or 'hf-hub:ORG/NAME', a repository on the Hub whose
            model.safetensors is a network of ours.
        weights: A file or folder that `timm_preact.loading.load_into` reads, None for the published weights.
        device: 'cpu' or 'cuda'.
        num_classes: Of `weights`, where they are not the name's or those that config.json or args.yaml states.
        model_kwargs: Further arguments of the network, in place of those that the layout or config.json asks for.
        as_in_file: The numbers of classes and input channels are those of `weights`.
        class_map: Text file with the class names of `weights`, one a line, in the order of the logits.

    Raises:
        UserError: The name is unknown or has no weights, or `num_classes` or `class_map` does not fit the weights.
        WeightsError: The weights are damaged, or do not fit the name.
    """
    if name.startswith(HUB):
        if weights is not None:
            raise UserError(f'{name} has weights of its own: leave out --weights.')
        repo_id, _, revision = name.removeprefix(HUB).partition('@')
        file = from_hub(repo_id, revision or None)
        if file is None:
            raise WeightsError(f'{repo_id} has no model.safetensors: publish it with timm-preact publish.')
        name, weights, as_in_file = find_name(file.parent, '--model'), str(file.parent), True
    check_name(name)
    if weights is None:
        if name.partition('.')[0] not in MODEL_ARGS and not timm.models.is_model_pretrained(name):
            raise UserError(f'{name} has no published weights: pass --weights, or choose another network.')
        if class_map is not None:
            raise ArgumentError('class_map', 'requires --weights: published weights have their class names.')
        model = create_model(name, pretrained=True, **(model_kwargs or {}))
    else:
        classes = {} if num_classes is None else dict(num_classes=num_classes)
        class_names = None if class_map is None else read_class_map(class_map)
        model = load_into(
            name, weights, {**classes, **(model_kwargs or {})}, as_in_file, class_names=class_names).model
    if num_classes not in (None, model.num_classes):
        raise ArgumentError('num_classes', f'is {num_classes}, and the weights of {name} have {model.num_classes} '
                                           f'classes: leave it out, or pass --weights of your own.')
    return model.to(device).eval()


def load_states(
        name: str,
        weights: Optional[str] = None,
        fetch: bool = False,
        model_kwargs: Optional[Dict[str, Any]] = None,
        seed: int = 0,
) -> Iterator[Tuple[str, nn.Module]]:
    """What a network holds, and the network: its initial weights, then trained ones where there are any.

    Args:
        name: Any registered name, with or without tag.
        weights: A file or folder of weights; None for those of the name.
        fetch: Load the name's weights wherever they are; else only those in the package, into the network of the name.
        model_kwargs: Further arguments of the network.
        seed: Of the initial weights.

    Raises:
        UserError: The name is unknown, or cannot be made so.
        WeightsError: The weights are damaged, or do not fit the name.
    """
    check_name(name)
    loaded = load_into(name, weights, model_kwargs) if weights else None
    kwargs = loaded.model_args if loaded else model_kwargs or {}
    torch.manual_seed(seed)
    yield 'initialisation', create_model(name, **kwargs)
    if loaded:
        yield Path(weights).name, loaded.model.eval()
        return
    cfg = timm.models.get_pretrained_cfg(name)
    if cfg and cfg.has_weights and (fetch or cfg.file and not model_kwargs):
        try:
            yield cfg.tag or 'pretrained', timm.create_model(name, pretrained=True, **kwargs)
        except RuntimeError as e:
            problem = ' '.join(str(e).split())[:200]
            raise WeightsError(f'the weights of {name} do not fit {model_kwargs}: {problem}') from e


def resolve_protocol(
        model: nn.Module,
        size: Union[int, Tuple[int, int], None] = None,
        crop_pct: Optional[float] = None,
        use_test_size: bool = False,
) -> Protocol:
    """Resolve how a network is tested: the only place that decides it.

    Args:
        model: A network with a `pretrained_cfg`.
        size: Height and width of the images, or one number for both; None for those of the model's config.
        crop_pct: Crop as a share of the resized image; None for that of the model's config.
        use_test_size: Take the config's test size and test crop where it has them, as timm's validate.py does by
            option: 320x320 from crop 1.0 for the paper's ImageNet tags.

    Raises:
        UserError: The size is below 1, or the crop is not above 0 and at most 1.
    """
    COUNT.check('size', size)
    SHARE.check('crop_pct', crop_pct)
    channels = input_channels(model)
    sides = (size, size) if isinstance(size, int) else size
    args = dict(input_size=None if sides is None else (channels, *sides), crop_pct=crop_pct)
    config = resolve_data_config(args, model=model, use_test_size=use_test_size)
    config.update(normalisation(model), input_size=(channels, *config['input_size'][1:]))
    return Protocol(**config)


def eval_transform(
        model: nn.Module,
        size: Union[int, Tuple[int, int], None] = None,
        crop_pct: Optional[float] = None,
        use_test_size: bool = False,
) -> Callable:
    """Return the transform of `resolve_protocol`, which has the same arguments.

    Raises:
        UserError: As `resolve_protocol` and `Protocol.transform`.
    """
    return resolve_protocol(model, size, crop_pct, use_test_size).transform()


def input_channels(model: nn.Module) -> int:
    """Channels of the images that a model takes."""
    return getattr(model, 'in_chans', None) or model.pretrained_cfg['input_size'][0]


def normalisation(model: nn.Module) -> Dict[str, Tuple[float, ...]]:
    """`mean` and `std` by the model's config, a value a channel; a grey image's are the means of three channels'."""
    values = {key: tuple(model.pretrained_cfg[key]) for key in ('mean', 'std')}
    if input_channels(model) == 1:
        return {key: (sum(of_channels) / len(of_channels),) for key, of_channels in values.items()}
    return values


def class_names(model: nn.Module) -> List[str]:
    """Return the names of the classes in the order of the logits, numbers where the model's config has none.

    1000 classes without names are ImageNet's, as everywhere in timm.
    """
    names = model.pretrained_cfg.get('label_names')
    if names and len(names) == model.num_classes:
        return list(names)
    if model.num_classes == 1000:
        info = ImageNetInfo()
        return [info.index_to_description(i) for i in range(1000)]
    return [str(i) for i in range(model.num_classes)]


def label_order(model: nn.Module, classes: Sequence[str], match: str = 'name') -> torch.Tensor:
    """For each class of a data set, which logit is its own.

    Args:
        model: With as many outputs.
        classes: The data set's, in the order of its labels.
        match: 'name', where both have names; 'index' takes the order as it is.

    Returns:
        int64 (classes,).

    Raises:
        UserError: The numbers of classes differ, or their names do.
    """
    if match not in MATCHES:
        raise UserError(f'--match {match} is not known: choose one of {", ".join(MATCHES)}.')
    if len(classes) != model.num_classes:
        raise UserError(f'the data has {len(classes)} classes and the model {model.num_classes}: choose a model '
                        f'trained on this data set.')
    names = _names_like(model, classes)
    if match == 'index' or names is None:
        return torch.arange(len(classes))
    classes, names = ([HUB_NAMES.get(name, name) for name in one] for one in (classes, names))
    if names == classes:
        return torch.arange(len(classes))
    if set(names) != set(classes) or len(set(names)) < len(names):
        theirs, ours = (', '.join(sorted(set(one) - set(other))[:3]) for one, other in (
            (classes, names), (names, classes)))
        raise UserError(f'the data has classes that the model has not ({theirs}), and the model others ({ours}): '
                        f'choose a model trained on this data set, name the classes of --weights by --class-map, or '
                        f'take the order as it is by --match index.')
    return torch.tensor([names.index(name) for name in classes])


def _names_like(model: nn.Module, classes: Sequence[str]) -> Optional[List[str]]:
    """The model's names of classes, of the kind that the data set has; None where one of them has only numbers."""
    if all(name.isdigit() for name in classes):
        return None
    names = model.pretrained_cfg.get('label_names')
    if names and len(names) == model.num_classes:
        return list(names)
    synsets = ImageNetInfo().label_names()
    return synsets if len(classes) == len(synsets) and set(classes) & set(synsets) else None


def evaluate(
        model: nn.Module,
        images: Images,
        batch_size: int = 250,
        device: str = 'cpu',
        advance: Callable[[int], None] = lambda done: None,
        match: str = 'name',
) -> Scores:
    """Top-1 and top-5 accuracy in float32.

    Args:
        model: In eval mode, with as many outputs as `images` has classes.
        images: Labelled images.
        batch_size: Images a forward pass.
        device: Where the model is.
        advance: Called with the number of images after each batch.
        match: How classes of the data are found among the model's, see `label_order`.

    Raises:
        UserError: The batch size is not positive or the classes differ.
    """
    COUNT.check('batch_size', batch_size)
    order = label_order(model, images.classes, match)
    top5, labels = [], []
    with torch.inference_mode():
        for x, y in DataLoader(images, batch_size=batch_size):
            x = x.to(device, memory_format=torch.channels_last)
            top5.append(model(x).topk(min(5, model.num_classes)).indices.cpu())
            labels.append(order[y])
            advance(len(y))
    ranked, labels = torch.cat(top5), torch.cat(labels)
    hits = ranked == labels[:, None]
    per_class = {
        name: 100 * hits[labels == i, 0].double().mean().item()
        for name, i in zip(images.classes, order, strict=True) if (labels == i).any()
    }
    return Scores(
        len(labels), 100 * hits[:, 0].double().mean().item(), 100 * hits.any(1).double().mean().item(), per_class,
        ranked[:, 0])


def compare(
        models: Tuple[nn.Module, nn.Module],
        open_with: Callable[[Callable], Images],
        batch_size: int = 250,
        device: str = 'cpu',
        advance: Callable[[int], None] = lambda done: None,
        match: str = 'name',
) -> Comparison:
    """Two models on the same images, each at its own test size.

    Args:
        models: As for `evaluate`, as are `batch_size`, `device`, `advance` (called for each model), `match` and the
            errors.
        open_with: Makes the images, prepared by the transform that it is given.
    """
    scores, answers = [], []
    for model in models:
        images = open_with(eval_transform(model, use_test_size=True))
        scores.append(evaluate(model, images, batch_size, device, advance, match))
        answers.append(label_order(model, images.classes, match).argsort()[scores[-1].predictions])
    return Comparison(tuple(scores), torch.stack(answers))


def classify(model: nn.Module, image: Image.Image, top_k: int = 5, device: str = 'cpu') -> List[Dict[str, Any]]:
    """The most probable classes of an image, [{class, probability}].

    Raises:
        UserError: `top_k` is below 1, or the model takes no images.
    """
    COUNT.check('top_k', top_k)
    return _most_probable(model, eval_transform(model)(image), class_names(model), top_k, device)


def _most_probable(
        model: nn.Module,
        x: torch.Tensor,
        names: Sequence[str],
        top_k: int,
        device: str,
) -> List[Dict[str, Any]]:
    with torch.inference_mode():
        logits = model(x[None].to(device))
    probabilities, indices = logits[0].softmax(0).topk(min(top_k, model.num_classes))
    return [{'class': names[i], 'probability': round(p, 4)}
            for i, p in zip(indices.tolist(), probabilities.tolist(), strict=True)]


def predict(model: nn.Module, files: List[Path], top_k: int = 5, device: str = 'cpu') -> List[Dict]:
    """The most probable classes of image files.

    Returns:
        A dict a file: file, and predictions, [{class, probability}], or error where it could not be read.

    Raises:
        DataError: No file could be read.
    """
    COUNT.check('top_k', top_k)
    transform, names = eval_transform(model), class_names(model)
    results = []
    for file in files:
        try:
            image = open_image(file)
        except DataError as e:
            results.append({'file': str(file), 'error': str(e)})
            continue
        results.append({
            'file': str(file), 'predictions': _most_probable(model, transform(image), names, top_k, device)})
    if all('error' in result for result in results):
        raise DataError(results[0]['error'])
    return results
