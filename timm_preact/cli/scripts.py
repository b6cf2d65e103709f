"""timm's own scripts with our names registered: run."""
import sys
from pathlib import Path
from typing import Annotated, List, Optional

import typer

from .options import PATH

__all__ = ['run_timm_script']


def run_timm_script(
        script: Annotated[str, typer.Argument(
            help='validate.py, inference.py, benchmark.py, onnx_export.py, train.py, ... ')],
        arguments: Annotated[Optional[List[str]], typer.Argument(help='Arguments of the script.')] = None,
        timm_scripts: Annotated[Optional[Path], typer.Option(
            **PATH, envvar='TIMM_SCRIPTS', help='Clone of huggingface/pytorch-image-models.')] = None,
) -> None:
    """Run one of timm's scripts with our names registered, its arguments checked first.

    Examples: `timm-preact run validate.py --model preact_resnet50 --pretrained --data-dir /imagenet`

    `torchrun --nproc-per-node 8 -m timm_preact run train.py --config CONFIG.yaml --data-dir /imagenet`
    """
    from ..scripts import find_script, run_script, version_warning
    path = find_script(script, timm_scripts)
    if warning := version_warning(path):
        print(f'warning: {warning}', file=sys.stderr)
    run_script(path, arguments or [])
