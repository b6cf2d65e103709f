"""Commands that experiments run in processes of their own."""
import os
import subprocess
from pathlib import Path
from typing import List

from timm_preact.errors import UserError
from train.places import ROOT

__all__ = ['run_command']


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
