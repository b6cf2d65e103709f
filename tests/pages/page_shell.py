"""Blocks of shell in pages: their commands as words, and how a page's script runs them."""
import re
import shlex
import subprocess
import sys
from typing import List


def commands_in(code: str) -> List[List[str]]:
    """The words of each command, without variables before it and what follows a comment's mark."""
    found = []
    for line in code.replace('\\\n', ' ').splitlines():
        for part in line.split('&&'):
            words = shlex.split(part, comments=True)
            while words and re.match(r'\w+=|export$', words[0]):
                words = words[1:]
            if words:
                found.append(words)
    return found


def shell(code: str) -> None:
    """Run a block: timm-preact's commands by their entry point in this process, which spares their imports."""
    commands = commands_in(code)
    if any(words[0] != 'timm-preact' for words in commands):
        subprocess.run(['bash', '-euo', 'pipefail', '-c', code], check=True)
        return
    from timm_preact.cli import run
    for sys.argv in commands:
        try:
            run()
        except SystemExit as e:
            assert not e.code, f'{shlex.join(sys.argv)} ends with exit code {e.code}'
