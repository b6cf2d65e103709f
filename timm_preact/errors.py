"""One place that turns a mistake of the user into one sentence and exit code 2."""
import difflib
import functools
import sys
from typing import Callable

__all__ = ['UserError', 'check_name', 'one_sentence_errors']


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
