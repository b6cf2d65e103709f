"""How a network is trained on CIFAR: the paper's recipe, its released code's, and ours."""
from dataclasses import dataclass, replace
from typing import Annotated, Any, Dict, List, Optional, Tuple, get_args, get_type_hints

import torch

from timm_preact.errors import COUNT, NOT_NEGATIVE, ArgumentError, Range, UserError, check_ranges

__all__ = ['RECIPES', 'Recipe', 'average_decay', 'choose_recipe', 'complete_recipe', 'count_steps', 'lr_at',
           'parameter_groups']

SCHEDULES = ('step', 'linear')
MEANS = ('pixel', 'channel')
RATE = Range(above=0, most=1e30)  # the optimizer computes in float32
PIXELS = Range(least=0, most=2 ** 31 - 1)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; everything but the network and the data.

    Attributes:
        iterations: Steps of the optimizer; used if `epochs` is None.
        epochs: Passes over the training set, the last incomplete batch of each left out.
        batch_size: Images a step, over all processes.
        bn_group: Images that share BatchNorm statistics; all that a process has of a batch if None.
        lr: Peak learning rate.
        warmup_lr: Constant rate of the first `warmup` steps; None for a linear rise from 0 to `lr`.
        warmup: Steps before the peak; a share of the run if below 1.
        schedule: 'step' (a tenth at each milestone) or 'linear' (to 0).
        milestones: Shares of the run at which 'step' drops the rate.
        momentum: Of SGD, in PyTorch's form; it is the same as Caffe's while the rate is constant.
        nesterov: Nesterov's form of momentum.
        weight_decay: L2 penalty.
        decay_all: Decay every parameter; False spares BatchNorm's and biases.
        mean: What is subtracted from a pixel in [0, 1]: 'pixel' the mean image of the training set, nothing else;
            'channel' the mean of its channel, then division by the channel's standard deviation.
        label_smoothing: Of the cross-entropy.
        translate: Pixels by which a crop of the zero-padded image is moved at most, in each direction.
        cutout: Side in pixels of a square that is set to the mean, its centre anywhere in the crop; 0 for none.
        alternate_flips: Flip an image in every other epoch, half of them in the first; False flips by chance.
        average: Memory of the moving average of the weights and running statistics that is tested and kept, as a share
            of the run; 0 tests and keeps the last ones.

    Raises:
        ArgumentError: A value is out of its range, or is not one of the choices.
    """
    iterations: Annotated[int, COUNT] = 64_000
    epochs: Annotated[Optional[float], Range(above=0, most=10 ** 9)] = None
    batch_size: Annotated[int, COUNT] = 128
    bn_group: Annotated[Optional[int], COUNT] = None
    lr: Annotated[float, RATE] = 0.1
    warmup_lr: Annotated[Optional[float], RATE] = None
    warmup: Annotated[float, NOT_NEGATIVE] = 0
    schedule: str = 'step'
    milestones: Annotated[Tuple[float, ...], Range(least=0, most=1)] = (0.5, 0.75)
    momentum: Annotated[float, Range(least=0, below=1)] = 0.9
    nesterov: bool = False
    weight_decay: Annotated[float, Range(least=0, most=1e30)] = 1e-4
    decay_all: bool = False
    mean: str = 'channel'
    label_smoothing: Annotated[float, Range(least=0, most=1)] = 0.
    translate: Annotated[int, PIXELS] = 4
    cutout: Annotated[int, PIXELS] = 0
    alternate_flips: bool = False
    average: Annotated[float, Range(least=0, most=1)] = 0.

    def __post_init__(self):
        check_ranges(Recipe, vars(self))
        for name, hint in get_type_hints(Recipe).items():
            value = getattr(self, name)
            if int in (hint, *get_args(hint)) and not isinstance(value, (int, type(None))):
                raise ArgumentError(name, f'must be a whole number, got {value!r}.')
        for name, choices in (('schedule', SCHEDULES), ('mean', MEANS)):
            if getattr(self, name) not in choices:
                raise ArgumentError(name, f'must be one of {", ".join(choices)}, got {getattr(self, name)!r}.')


RECIPES: Dict[str, Recipe] = {
    # The paper's appendix and "Deep Residual Learning", section 4.2. Its two GPUs held 64 images each: --bn-group 64.
    'paper': Recipe(warmup_lr=0.01, warmup=400, mean='pixel'),
    # The run behind the abstract's 4.62 %: KaimingHe/resnet-1k-layers through fb.resnet.torch's train.lua, which drops
    # the rate after epochs 80 and 121 of 200.
    'torch': Recipe(epochs=200, batch_size=64, milestones=(80 / 200, 121 / 200), nesterov=True, decay_all=True),
    # Ours: the best error for a given budget. Linear rise and fall reach it sooner than steps.
    'modern': Recipe(
        epochs=60, lr=0.2, warmup=0.15, schedule='linear', nesterov=True, weight_decay=5e-4, decay_all=True),
    # The same with what train.ablation found where few images are seen often: a higher rate, whose noise the average
    # takes out again. Where many are seen a few times it gained nothing.
    'tuned': Recipe(
        epochs=100, lr=0.4, warmup=0.15, schedule='linear', nesterov=True, weight_decay=5e-4, decay_all=True,
        average=0.05),
}


LATER = dict(translate=4, cutout=0, alternate_flips=False, average=0.)  # what older files are silent about


def complete_recipe(recipe: Dict[str, Any]) -> Dict[str, Any]:
    """Complete a recipe as a file has it: with what was done before it could be chosen."""
    return {**LATER, **recipe}


def choose_recipe(recipe: str = 'paper', **given: Any) -> Recipe:
    """A recipe by its name, with other values for what is given and not None.

    Raises:
        UserError: There is no such recipe, or a value makes no sense.
    """
    if recipe not in RECIPES:
        raise UserError(f'--recipe {recipe} is not known: choose one of {", ".join(RECIPES)}.')
    given = {key: value for key, value in given.items() if value is not None}
    if 'epochs' in given and 'iterations' in given:
        raise UserError('--epochs and --iterations say the same: give one of them.')
    if 'iterations' in given:
        given['epochs'] = None
    return replace(RECIPES[recipe], **given)


def count_steps(recipe: Recipe, images: int) -> int:
    """The steps of a run on so many training images."""
    return recipe.iterations if recipe.epochs is None else round(recipe.epochs * (images // recipe.batch_size))


def average_decay(recipe: Recipe, total: int) -> float:
    """What a step leaves of the average before it, in a run of `total` steps; 0: the average is the weights."""
    memory = recipe.average * total
    return 1 - 1 / memory if memory > 1 else 0.


def lr_at(recipe: Recipe, step: int, total: int) -> float:
    """The learning rate of a step, counted from 0, in a run of `total` steps."""
    warmup = recipe.warmup * total if recipe.warmup < 1 else recipe.warmup
    if step < warmup:
        return recipe.lr * (step + 1) / (warmup + 1) if recipe.warmup_lr is None else recipe.warmup_lr
    if recipe.schedule == 'linear':
        return recipe.lr * (total - step) / (total - warmup)
    return recipe.lr * 0.1 ** sum(step >= share * total for share in recipe.milestones)


def parameter_groups(model: torch.nn.Module, recipe: Recipe) -> List[Dict[str, Any]]:
    """For the optimizer: what the recipe decays, and what it spares."""
    spared = [p for p in model.parameters() if p.ndim == 1 and not recipe.decay_all]
    decayed = [p for p in model.parameters() if p.ndim > 1 or recipe.decay_all]
    return [dict(params=decayed, weight_decay=recipe.weight_decay), dict(params=spared, weight_decay=0.)]
