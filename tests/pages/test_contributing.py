"""CONTRIBUTING.md's map is the tree: one line a file, and no line of what is not there."""
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MAP = {
    folder: re.findall(r'^- `(.+?)`: \S', lines, re.MULTILINE) for folder, lines in re.findall(
        r'^### (\w+)/\n(.*?)(?=^##|\Z)', (ROOT / 'CONTRIBUTING.md').read_text(), re.MULTILINE | re.DOTALL)}
WRITTEN = ('.py', '.md', '.sh', '.sbatch', '.txt')  # the other files are data, for which their folder stands


def files_of(folder: str):
    """What somebody wrote in a folder, but what lies in folders that the map names, and Python's and Sphinx's own."""
    named = tuple(f'{ROOT / folder}/{line}' for line in MAP[folder] if line.endswith('/'))
    for path in sorted((ROOT / folder).rglob('*')):
        inside = path.relative_to(ROOT / folder)
        made = {'__pycache__', '_build'} & set(inside.parts)
        if path.suffix in WRITTEN and not made and not str(path).startswith(named):
            yield inside.as_posix()


def test_the_map_has_the_folders():
    assert list(MAP) == ['timm_preact', 'train', 'benchmarks', 'docs', 'tests']


@pytest.mark.parametrize('folder', MAP)
def test_a_folders_map_is_one_line_a_file(folder):
    lines = MAP[folder]
    assert len(set(lines)) == len(lines)
    assert sorted(line for line in lines if not line.endswith('/')) == sorted(files_of(folder))
    assert all((ROOT / folder / line).is_dir() for line in lines if line.endswith('/'))
