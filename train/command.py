"""Commands: those that experiments run in processes of their own, and the one that started this process."""
import os
import subprocess
from pathlib import Path
from typing import Any, Dict, List, Optional

import torch

from timm_preact.errors import UserError
from timm_preact.provenance import quote_command, record
from train.places import ROOT

__all__ = ['record_command', 'run_command']


def run_command(command: List[str], *modules: Path, **variables: str) -> str:
    """Run a command in the clone, where it can import from the folders `modules` too.

    Args:
        command: Program and arguments.
        modules: Folders.
        variables: More of its environment.

    Returns:
        What it printed, on stdout and then on stderr.

    Raises:
        UserError: It failed; the message is the end of what it printed.
    """
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(map(str, (ROOT, *modules))), **variables)
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, env=environment)
    if result.returncode:
        raise UserError(f'{" ".join(command[:3])} failed: {(result.stderr or result.stdout).strip()[-2000:]}')
    return result.stdout + result.stderr


def record_command(program: str, device: torch.device, *packages: str, seed: Optional[int] = None) -> Dict[str, Any]:
    """Record the command that started this process, with the commit of this clone; see `timm_preact.provenance.record`.

    Args:
        program: What stands before its arguments, 'python -m NAME'.
        device: What the measurement ran on.
        packages: Whose versions matter beside torch, timm and timm_preact.
        seed: Of the measurement, where it draws anything.
    """
    return record(quote_command(program), device, *packages, seed=seed, clone=ROOT)
