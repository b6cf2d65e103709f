"""Every number and every path of a command is checked where it is declared."""
import importlib
import inspect
from pathlib import Path
from typing import get_args, get_type_hints

import pytest
from typer.models import ParameterInfo

from timm_preact import cli
from timm_preact.cli.options import PATH
from timm_preact.errors import Range
from train.recipe import Recipe

ROOT = Path(__file__).parents[2]
SCRIPTS = [f'{path.parent.name}.{path.stem}' for folder in ('train', 'benchmarks')
           for path in sorted((ROOT / folder).glob('*.py')) if 'typer.' in path.read_text()]


def commands():
    """The functions behind the commands, by name."""
    apps = {'timm-preact': cli.app}
    for name in SCRIPTS:
        module = importlib.import_module(name)
        if hasattr(module, 'app'):
            apps[name] = module.app
        else:
            yield name, module.main
    for name, app in apps.items():
        for command in app.registered_commands:
            yield f'{name} {command.name or ""}'.strip(), command.callback


def has_range(hint):
    return any(isinstance(metadata, Range) for metadata in getattr(hint, '__metadata__', ()))


def kinds(hint):
    """The types in a hint: int of Annotated[Optional[List[int]], ...]."""
    inside = [kind for argument in get_args(hint) if isinstance(argument, type) or get_args(argument)
              for kind in kinds(argument)]
    return [hint, *inside]


PARAMETERS = [
    pytest.param(hint, inspect.signature(command).parameters[name], id=f'{script} {name}')
    for script, command in commands() for name, hint in get_type_hints(command, include_extras=True).items()
    if name != 'return']
RECIPE = get_type_hints(Recipe, include_extras=True)


def test_every_script_is_found():
    assert len(SCRIPTS) >= 17 and len(PARAMETERS) > 150


@pytest.mark.parametrize('hint, parameter', PARAMETERS)
def test_numbers_have_a_range_and_paths_are_not_empty(hint, parameter):
    found = kinds(hint)
    if int in found or float in found:
        assert has_range(hint) or has_range(RECIPE.get(parameter.name)), 'annotate it: Annotated[int, COUNT]'
    if Path in found:
        info, = (info for info in (parameter.default, *getattr(hint, '__metadata__', ()))
                 if isinstance(info, ParameterInfo))
        assert info.parser is PATH['parser'], 'declare it by typer.Option(**PATH, ...)'
