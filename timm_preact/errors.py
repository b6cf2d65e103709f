"""Errors that the user can correct: one clear message, and exit code 2 on the command line."""
import ast
import difflib
import functools
import inspect
import json
import math
import sys
from functools import partial
from typing import Any, Callable, Collection, Dict, List, Mapping, NamedTuple, get_type_hints

__all__ = [
    'COUNT', 'NOT_NEGATIVE', 'POSITIVE', 'RESERVED_ARGS', 'SEED', 'SHARE', 'ArgumentError', 'Range', 'UserError',
    'check_device', 'check_model_args', 'check_name', 'check_ranges', 'create_model', 'one_sentence_errors',
    'parse_model_kwargs',
]


class UserError(ValueError):
    """An error that the user can correct; the message names the problem, then the remedy."""


class ArgumentError(UserError):
    """A value that an argument does not take. On the command line the message names the option instead.

    Attributes:
        argument: Name of the Python argument.
        problem: The rest of the message.
    """

    def __init__(self, argument: str, problem: str):
        super().__init__(f'{argument} {problem}')
        self.argument = argument
        self.problem = problem


class Range(NamedTuple):
    """The numbers that an argument takes, declared in its annotation: `lr: Annotated[float, Range(above=0)]`.

    Every command checks its numbers by these annotations (`one_sentence_errors`). NaN and infinity are never allowed.

    Attributes:
        least: Smallest number allowed.
        above: Every number allowed is larger.
        most: Largest number allowed.
        below: Every number allowed is smaller.
    """
    least: float = -math.inf
    above: float = -math.inf
    most: float = math.inf
    below: float = math.inf

    def check(self, argument: str, value: Any) -> None:
        """Raise ArgumentError unless `value`, or each number in a list of them, is in the range; None passes."""
        for number in value if isinstance(value, (list, tuple)) else (value,):
            if number is not None and not (
                    isinstance(number, (int, float)) and math.isfinite(number)
                    and self.least <= number <= self.most and self.above < number < self.below):
                raise ArgumentError(argument, f'must be {self}, got {number!r}.')

    def __str__(self) -> str:
        bounds = [f'{word} {bound}' for word, bound in (
            ('at least', self.least), ('above', self.above), ('at most', self.most), ('below', self.below)
        ) if math.isfinite(bound)]
        return ' and '.join(bounds) or 'a finite number'


COUNT = Range(least=1)
NOT_NEGATIVE = Range(least=0)
POSITIVE = Range(above=0)
SHARE = Range(above=0, most=1)
SEED = Range(least=0, most=2 ** 31 - 1)

# Arguments that timm's create_model, build_model_with_cfg and feature extraction take for themselves, or that the data
# or the command decide -> what to do instead
RESERVED_ARGS = {
    'pretrained': 'use --pretrained of train.cifar, or --weights',
    'checkpoint_path': 'use --weights',
    'num_classes': 'the data or the weights decide it, or --num-classes',
    'in_chans': 'the data or the weights decide it',
    'device': 'use --device',
    **dict.fromkeys((
        'model_name', 'variant', 'model_cls', 'model_cfg', 'pretrained_cfg', 'pretrained_cfg_overlay',
        'pretrained_model_args', 'pretrained_strict', 'pretrained_filter_fn', 'kwargs_filter', 'cache_dir',
        'scriptable', 'exportable', 'no_jit', 'pruned', 'features_only', 'feature_cfg', 'feature_cls', 'feature_norm',
        'out_indices', 'dtype'), ''),
}


def check_ranges(declared: Callable, values: Mapping[str, Any]) -> None:
    """Check values by the `Range` in the annotations of a function or a class.

    Raises:
        ArgumentError: A number is out of its range, or is not finite.
    """
    for name, hint in get_type_hints(declared, include_extras=True).items():
        for metadata in getattr(hint, '__metadata__', ()):
            if isinstance(metadata, Range) and name in values:
                metadata.check(name, values[name])


def check_name(name: str) -> str:
    """Return a registered model name, with or without tag.

    Raises:
        UserError: timm knows no such name; the message names the nearest.
    """
    import timm
    names = timm.list_models(include_tags=True) + timm.list_models()
    if name in names:
        return name
    nearest = difflib.get_close_matches(name, names, n=1, cutoff=0.)
    raise UserError(f'{name} is no model that timm knows: did you mean {nearest[0]}?')


def create_model(name: str, **kwargs: Any):
    """timm.create_model of a registered name, with arguments that a user gave.

    Raises:
        UserError: timm knows no such name, or the network takes no such arguments.
    """
    import timm
    check_name(name)
    try:
        return timm.create_model(name, **kwargs)
    except ArgumentError as e:  # an argument of the network, whatever option of a command has its name
        raise UserError(str(e)) from e
    except (UserError, OSError):
        raise
    except Exception as e:  # whatever a network makes of arguments that are none
        given = ', '.join(f'{key}={value!r}' for key, value in kwargs.items() if key != 'device')
        raise UserError(f'{name} cannot be made with {given or "these versions"} ({type(e).__name__}: '
                        f'{" ".join(str(e).split())[:200]}): correct the arguments.') from e


def check_device(name: str):
    """Return the torch.device.

    Raises:
        UserError: torch knows no such device, this machine has none, or it has no memory.
    """
    import torch
    try:
        device = torch.empty(0, device=name).device
    except (RuntimeError, AssertionError, ValueError, TypeError) as e:
        reason = str(e).splitlines()[0].rstrip('.') if str(e) else type(e).__name__
        raise UserError(f'--device {name} is not there ({reason}): choose cpu, or cuda on a machine with a GPU.') from e
    if device.type == 'meta':
        raise UserError(f'--device {name} computes nothing: choose cpu, or cuda on a machine with a GPU.')
    return device


def check_model_args(model_args: Mapping[str, Any], allowed: Collection[str] = ()) -> None:
    """Check that arguments of a network are its own, and not of what makes, loads or wraps it.

    Args:
        model_args: Arguments by name.
        allowed: Names in `RESERVED_ARGS` that may be given here.

    Raises:
        UserError: An argument is in `RESERVED_ARGS`, or `global_pool` is empty, which leaves no classifier.
    """
    for name in model_args:
        if name in RESERVED_ARGS and name not in allowed:
            remedy = RESERVED_ARGS[name] and f' ({RESERVED_ARGS[name]})'
            raise UserError(f'{name} is not an argument of the network: leave it out of model_kwargs{remedy}.')
    if not model_args.get('global_pool', 'avg'):
        raise UserError('global_pool must not be empty: choose avg, max, avgmax or catavgmax.')


def parse_model_kwargs(pairs: List[str], allowed: Collection[str] = ()) -> Dict[str, Any]:
    """Parse KEY=VALUE with a value in JSON or Python, e.g. merge_kwargs={"bias": -7}, or else a string.

    Args:
        pairs: One for each argument of the network.
        allowed: As in `check_model_args`.

    Raises:
        UserError: There is no =, or the key is not an argument of the network.
    """
    kwargs = {}
    for pair in pairs:
        key, equals, value = pair.partition('=')
        if not equals:
            raise UserError(f'--model-kwargs {pair}: write KEY=VALUE.')
        for parse in (partial(json.loads, parse_constant=refuse_constant), ast.literal_eval, str):
            try:
                kwargs[key] = parse(value)
                break
            except (ValueError, SyntaxError):
                continue
    check_model_args(kwargs, allowed)
    return kwargs


def refuse_constant(name: str) -> None:
    """Refuse NaN and Infinity, which Python reads in JSON and no other program does."""
    raise ValueError(f'{name} is not JSON')


def name_options(command: Callable) -> Dict[str, str]:
    """Return the name of each argument on the command line: --top-k for top_k, IMAGES for a positional images."""
    names = {}
    for name, parameter in inspect.signature(command).parameters.items():
        declared = *getattr(parameter.annotation, '__metadata__', ()), parameter.default
        is_positional = any(type(info).__name__ == 'ArgumentInfo' for info in declared)  # typer's, not imported here
        names[name] = name.upper() if is_positional else f"--{name.replace('_', '-')}"
    return names


def one_sentence_errors(command: Callable) -> Callable:
    """Wrap a command: check its numbers and texts, and print an error of the user or the system in one line.

    The exit code is then 2. An `ArgumentError` names the option of the command that has the argument's name.
    """
    names = name_options(command)

    @functools.wraps(command)
    def wrapped(*args, **kwargs):
        if hasattr(sys.stdout, 'reconfigure'):  # names of files need not be UTF-8
            sys.stdout.reconfigure(errors='backslashreplace')
        try:
            check_ranges(command, kwargs)
            for name, value in kwargs.items():
                if '' in (value if isinstance(value, (list, tuple)) else (value,)):
                    raise ArgumentError(name, 'must not be empty.')
            return command(*args, **kwargs)
        except ArgumentError as e:
            message = f'{names.get(e.argument, e.argument)} {e.problem}'
        except UserError as e:
            message = str(e)
        except OSError as e:
            message = f'{e.strerror or e}: {e.filename}.' if e.filename else f'{e}.'
        print(f'error: {message}', file=sys.stderr)
        raise SystemExit(2)

    return wrapped
