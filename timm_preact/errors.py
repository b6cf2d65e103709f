"""One place that turns a mistake of the user into one sentence and exit code 2."""
import ast
import difflib
import functools
import json
import sys
from typing import Any, Callable, Dict, List

__all__ = ['UserError', 'check_device', 'check_name', 'one_sentence_errors', 'parse_model_kwargs']


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


def check_device(name: str):
    """Return the torch.device.

    Raises:
        UserError: torch knows no such device, or this machine has none.
    """
    import torch
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as e:
        raise UserError(f'--device {name} is not there: {str(e).splitlines()[0]}') from e


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
        try:
            return command(*args, **kwargs)
        except UserError as e:
            message = str(e)
        except OSError as e:
            message = f'{e.strerror or e}: {e.filename}.' if e.filename else f'{e}.'
        print(f'error: {message}', file=sys.stderr)
        raise SystemExit(2)

    return wrapped
