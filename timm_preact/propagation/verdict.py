"""Whether signal and gradient stay in a safe range, and what the paper would do where they do not."""
import math
from typing import Callable, List, NamedTuple, Tuple

import numpy as np
from torch import nn

from ..unit import ConstantScaling, DropoutShortcut, ShortcutGate
from .paths import post_of, residual_units
from .results import Propagation
from .steps import END

__all__ = ['SAFE', 'Verdict', 'check']

# By which factor the signal's standard deviation and the gradient through the shortcuts may change on their way. Of the
# paper's ResNet-110s at initialisation those that train well stay within a factor of 120, those that do not leave one
# of 6,000, but for exclusive gates at biases of -3 to -5 (docs/propagation.md).
SAFE = 1e3


class Verdict(NamedTuple):
    """Whether a network passes signal and gradient on, in a sentence."""
    safe: bool
    sentence: str


def check(model: nn.Module, found: Propagation) -> Verdict:
    """Whether signal or gradient leave the safe range, where, and what the paper would do about it.

    The range is a factor of SAFE either way: for the standard deviation of the stream, against the first unit's input;
    for the gradient, and for its part through the shortcuts alone, against what leaves the last unit. A gradient that
    grows on its way back is no alarm: the paper's own 1001 layers have one that grows by 200,000. A network that passes
    can still fail for other reasons, as the paper's exclusive gates at biases of -3 to -5.

    Args:
        model: The network.
        found: What `measure` found of it.
    """
    units = residual_units(model)
    what = f'{found.model} ({found.weights})'
    with np.errstate(all='ignore'):
        signal = np.sqrt(found.stream_var / found.stream_var[0])
        gradient = found.gradient / found.gradient[-1]
        direct = found.gradient_shortcuts / found.gradient[-1]
    forward, backward = range(len(found.units)), range(len(found.units))[::-1]
    for subject, values, order, lowest, highest in (
            ("the signal's standard deviation", signal, forward, 1 / SAFE, SAFE),
            ('the gradient through the shortcuts alone', direct, backward, 1 / SAFE, SAFE),
            ('the gradient', gradient, backward, 1 / SAFE, math.inf),
    ):
        row = next((row for row in order if not lowest <= values[row] <= highest or math.isinf(values[row])), None)
        if row is None:
            continue
        where = 'behind the last unit' if found.units[row] == END else f'at {found.units[row]}'
        way = ('is no finite number' if not math.isfinite(values[row]) else
               f'falls below 1/{SAFE:,.0f}' if values[row] < lowest else f'rises above {SAFE:,.0f} times')
        if math.isfinite(values[row]):
            way += ' that of the first unit' if order is forward else ' that of the last'
        passed = [units[name] for name in (found.units[:row] if order is forward else found.units[row:-1])]
        return Verdict(False, f'{what}: {subject} {way} {where}; {advice(passed)}.')
    return Verdict(True, (
        f"{what}: over {len(found.units) - 1} units the signal's standard deviation stays between {signal.min():.2g} "
        f'and {signal.max():.2g} times that of the first unit, and the gradient through the shortcuts alone between '
        f'{direct.min():.2g} and {direct.max():.2g} times what leaves the last.'))


def advice(units: List[nn.Module]) -> str:
    """What stands in the way in these units, the paper's worst first, and what the paper would do."""
    for stands, sentence in OBSTACLES:
        found = [unit for unit in units if stands(unit)]
        if found:
            return f'in {len(found)} of the {len(units)} units passed {sentence}'
    return ('nothing stands on the shortcuts passed: look at the branches, which the paper begins with BN and ReLU '
            '(Fig. 4(e)), and at the variances that BatchNorm divides by')


def merges_by(unit: nn.Module, kind: type) -> bool:
    return isinstance(getattr(unit, 'merge', None), kind)


def projects_in_vain(unit: nn.Module) -> bool:
    """Whether a 1x1 convolution stands on a shortcut that could be an identity."""
    conv = unit.shortcut[0] if isinstance(getattr(unit, 'shortcut', None), nn.Sequential) else None
    return conv is not None and conv.in_channels == conv.out_channels and conv.stride == (1, 1)


def normalises_sum(unit: nn.Module) -> bool:
    return any(isinstance(module, nn.modules.batchnorm._NormBase) for module in post_of(unit).modules())


# What may stand in the way, and what the paper would do, with its errors of ResNet-110 on CIFAR-10
OBSTACLES: List[Tuple[Callable[[nn.Module], bool], str]] = [
    (lambda unit: merges_by(unit, DropoutShortcut),
     'dropout stands on the shortcut, where the paper would leave an identity (Table 1: it fails)'),
    (lambda unit: merges_by(unit, ConstantScaling) and unit.merge.shortcut != 1,
     'a constant multiplies the shortcut, where the paper would leave an identity (Table 1: with 0.5 it fails, or has '
     '12.35 % error with 0.5 on the branch too, 6.61 without)'),
    (lambda unit: merges_by(unit, ShortcutGate),
     'a gate multiplies the shortcut by 1 - g, where the paper would leave an identity, or start the gate at a bias of '
     '-6 (Table 1: 12.86 % error at 0, 6.91 at -6, 6.61 without)'),
    (projects_in_vain,
     'a 1x1 convolution stands on the shortcut, where the paper would leave an identity (Table 1: 12.22 % error, 6.61 '
     'without)'),
    (normalises_sum,
     'a BatchNorm follows the addition, where the paper would have nothing and put BN and ReLU before the weights '
     '(Table 2: 8.17 % error, 6.37 so)'),
    (lambda unit: not isinstance(post_of(unit), nn.Identity),
     'a ReLU follows the addition, where the paper would have nothing and put BN and ReLU before the weights (Table 3: '
     '7.61 % error at 1001 layers, 4.92 so)'),
]
