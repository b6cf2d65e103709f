"""One place that turns a mistake of the user into one sentence and exit code 2."""
import ast
import difflib
import functools
import json
import math
import sys
from typing import Any, Callable, Dict, List, Optional

__all__ = [
    'UserError', 'check_above_0', 'check_device', 'check_name', 'create_model', 'one_sentence_errors',
    'parse_model_kwargs',
]


class UserError(ValueError):
    """Something the user can put right; the message is one sentence that says how."""


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
    except (UserError, OSError):
        raise
    except Exception as e:  # whatever a network makes of arguments that are none
        given = ', '.join(f'{key}={value!r}' for key, value in kwargs.items() if key != 'device')
        raise UserError(f'{name} cannot be made with {given or "these versions"} ({type(e).__name__}: '
                        f'{" ".join(str(e).split())[:200]}): correct the arguments.') from e


def check_above_0(what: str, value: Optional[float], most: float = math.inf) -> None:
    """Refuse a number that is not above 0, or above `most`; None passes.

    Raises:
        UserError: It is not.
    """
    if value is not None and not 0 < value <= most:
        bound = f' and at most {most}' if most < math.inf else ''
        raise UserError(f'{what} is {value}: it must be above 0{bound}.')


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


def parse_model_kwargs(pairs: List[str]) -> Dict[str, Any]:
    """KEY=VALUE with a value in JSON or Python, e.g. merge_kwargs={"bias": -7} or stem_norm=False; else a string.

    Raises:
        UserError: There is no =.
    """
    kwargs = {}
    for pair in pairs:
        key, equals, value = pair.partition('=')
        if not equals:
            raise UserError(f'--model-kwargs {pair}: write KEY=VALUE.')
        for parse in (json.loads, ast.literal_eval, str):
            try:
                kwargs[key] = parse(value)
                break
            except (ValueError, SyntaxError):
                continue
    return kwargs


def one_sentence_errors(command: Callable) -> Callable:
    """Let `command` end with one sentence on stderr and exit code 2 where the user or the system made it fail."""

    @functools.wraps(command)
    def wrapped(*args, **kwargs):
        if hasattr(sys.stdout, 'reconfigure'):  # names of files need not be UTF-8
            sys.stdout.reconfigure(errors='backslashreplace')
        try:
            return command(*args, **kwargs)
        except UserError as e:
            message = str(e)
        except OSError as e:
            message = f'{e.strerror or e}: {e.filename}.' if e.filename else f'{e}.'
        print(f'error: {message}', file=sys.stderr)
        raise SystemExit(2)

    return wrapped
