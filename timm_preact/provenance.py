"""Where a measurement came from: the one record that every result file holds beside its numbers."""
import os
import platform
import re
import shlex
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any, Dict, Optional

import torch

from .version import __version__

__all__ = ['find_commit', 'name_hardware', 'quote_command', 'record']

CLONE = Path(__file__).parents[1]  # where this package runs from one
AFFECTING = ('MALLOC_', 'OMP_', 'KMP_', 'LD_PRELOAD')  # variables of the environment that change how fast a CPU is


def quote_command(program: str) -> str:
    """Quote the command that started this process.

    Args:
        program: What stands before its arguments: 'timm-preact' or 'python -m NAME'.
    """
    return ' '.join([program, *map(shlex.quote, sys.argv[1:])])


def record(
        command: str,
        device: torch.device,
        *packages: str,
        seed: Optional[int] = None,
        clone: Path = CLONE,
) -> Dict[str, Any]:
    """Say how a measurement can be made again.

    Args:
        command: What makes it.
        device: What the measurement ran on.
        packages: Distributions whose versions matter beside torch, timm and this package.
        seed: Of the measurement, where it draws anything.
        clone: Of the program that measures, where that is not this package.

    Returns:
        `command`, `hardware`, `environment` (variables that change a CPU's speed), `versions`, `commit`, and `seed` if
        there is one.
    """
    return dict(
        command=command,
        hardware=name_hardware(device),
        environment={name: value for name, value in os.environ.items() if name.startswith(AFFECTING)},
        versions=dict(python=platform.python_version(), timm_preact=__version__, **{
            package: version(package) for package in ('torch', 'timm', *packages)}),
        commit=find_commit(clone),
        **({} if seed is None else dict(seed=seed)),
    )


def name_hardware(device: torch.device) -> str:
    """Name the GPU, or the CPU and how many threads of it are used."""
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    cpuinfo = Path('/proc/cpuinfo')  # of Linux
    name = re.search(r'model name\s*: (.*)', cpuinfo.read_text()) if cpuinfo.exists() else None
    threads = torch.get_num_threads()
    return f'{name[1] if name else platform.machine()} CPU, {threads} thread{"s" * (threads > 1)}'


def find_commit(clone: Path = CLONE) -> Optional[str]:
    """Find the commit of a clone, '-dirty' behind it if a tracked file differs.

    None where the folder is no clone, such as that of an installed package, or git is missing.
    """
    if not (clone / '.git').exists():
        return None
    git = ['git', 'describe', '--always', '--dirty', '--abbrev=40', '--exclude=*']
    try:
        return subprocess.run(git, cwd=clone, capture_output=True, text=True).stdout.strip() or None
    except OSError:
        return None
