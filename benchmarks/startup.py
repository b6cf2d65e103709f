"""What one waits for before anything runs: creating a deep network, importing the package, starting the command line.

    python -m benchmarks.startup creation           # needs pip install 'timm-preact[benchmark]'
    python -m benchmarks.startup imports
"""
import sys
from functools import partial
from typing import Annotated

import timm
import typer

from benchmarks.side_by_side import compare
from timm_preact.benchmark import seconds_per_call
from timm_preact.errors import COUNT, UserError, one_sentence_errors
from train.command import run_command

AFTER_TIMM = 'import time, timm; start = time.perf_counter(); import timm_preact; print(time.perf_counter() - start)'
time_once = partial(seconds_per_call, calls=1)  # a second call would find everything warm

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, help=__doc__)


@app.command('creation')
@one_sentence_errors
def measure_creation(rounds: Annotated[int, COUNT] = typer.Option(7, help='Measurements of each.')) -> None:
    """Create preact_resnet1001, against pytorchcv's preresnet1001_cifar10 (the same network, on the CPU)."""
    try:
        from pytorchcv.model_provider import get_model
    except ImportError as e:
        raise UserError("the peer is missing: pip install 'timm-preact[benchmark]'.") from e
    compare('python -m benchmarks.startup', 'creation', 's', {
        "timm.create_model('preact_resnet1001')": partial(time_once, partial(timm.create_model, 'preact_resnet1001')),
        "pytorchcv get_model('preresnet1001_cifar10')": partial(time_once, partial(get_model, 'preresnet1001_cifar10')),
    }, rounds, packages=['pytorchcv'])


@app.command('imports')
@one_sentence_errors
def measure_imports(rounds: Annotated[int, COUNT] = typer.Option(9, help='Measurements of each.')) -> None:
    """Measure what timm_preact adds to importing timm, and what the command line adds to that."""
    python = sys.executable
    compare('python -m benchmarks.startup', 'imports', 's', {
        'import timm_preact, after timm': lambda: float(run_command([python, '-c', AFTER_TIMM])),
        'import timm': partial(time_once, partial(run_command, [python, '-c', 'import timm'])),
        'timm-preact --help': partial(time_once, partial(run_command, [python, '-m', 'timm_preact', '--help'])),
    }, rounds)


if __name__ == '__main__':
    app()
