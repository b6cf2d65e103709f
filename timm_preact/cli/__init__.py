"""The command line: timm-preact list | predict | evaluate | export | run | demo | convert | verify | publish |
benchmark | propagate."""
import typer

from ..errors import one_sentence_errors
from ..version import __version__
from .benchmark import run_benchmark
from .export import export
from .networks import demo, evaluate, list_models, predict
from .propagate import propagate
from .scripts import run_timm_script
from .weights import convert, publish, verify

__all__ = ['app', 'run']

app = typer.Typer(
    name='timm-preact', no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    rich_markup_mode='markdown', help=f'Pre-activation residual networks for timm, version {__version__}.')
TAKES_ANYTHING = dict(allow_interspersed_args=False, ignore_unknown_options=True)  # and hands it to timm's script

for name, command, settings in (
        ('list', list_models, None),
        ('predict', predict, None),
        ('evaluate', evaluate, None),
        ('export', export, None),
        ('run', run_timm_script, TAKES_ANYTHING),
        ('demo', demo, None),
        ('convert', convert, None),
        ('verify', verify, None),
        ('publish', publish, None),
        ('benchmark', run_benchmark, None),
        ('propagate', propagate, None),
):
    app.command(name, context_settings=settings)(one_sentence_errors(command))


def run() -> None:
    """Start timm-preact, which python -m timm_preact is too."""
    app(prog_name='timm-preact')
