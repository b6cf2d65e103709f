"""torch.compile by region: every unit, from inside the model, where equal units share what was compiled.

Compiling a network whole compiles every layer of it, a thousand times the same. A compiled unit knows its parameters as
inputs, so that one graph serves all units of its kind: a network of any depth has two or three kinds a stage.

That is for CPUs: on a GPU a training step became slower by it.
"""
from functools import partial
from types import FunctionType
from typing import Any, Callable, Dict, Iterable

import torch
from torch import nn

__all__ = ['compile_each']


def compile_each(units: Iterable[nn.Module]) -> None:
    """Have each unit compile itself on its first call, and equal units share the result.

    Nothing else of a unit changes; a copy of it (copy.deepcopy, pickle) runs uncompiled.
    """
    compiled: Dict[str, Callable] = {}
    for unit in units:
        kind = repr(unit)
        if kind not in compiled:
            compiled[kind] = torch.compile(with_code_of_its_own(call))
        unit._compiled_call_impl = partial(compiled[kind], unit)


def call(unit: nn.Module, *args: Any) -> torch.Tensor:
    """What unit(*args) runs, hooks included."""
    return unit._call_impl(*args)


def with_code_of_its_own(function: Callable) -> Callable:
    """A copy of `function` with its own code object: for each one, PyTorch compiles eight cases and no more."""
    return FunctionType(function.__code__.replace(), function.__globals__, function.__name__)
