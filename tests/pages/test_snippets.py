"""Every code block of every page runs as it stands there, or says in a comment before it why it is not run.

Comments directly before a block: <!-- not run: WHY -->, <!-- slow --> for what takes over ten seconds, and
<!-- needs: PACKAGE --> for a block of its own that is left out where a package is missing. All other blocks of a page
run in their order, in one process and one folder, without a network; Python's share a namespace. A Python block that
begins with # NAME.py is a file of that name. In the folder lies what the pages speak of: cifar10, photo.jpg, folder,
models.py. Commands that are not run are parsed: a command or an option that does not exist fails.
"""
import importlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import List, NamedTuple, Optional

import pytest
import typer
from page_shell import commands_in
from PIL import Image

from timm_preact import cli

ROOT = Path(__file__).parents[2]
PAGES = [
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md')), ROOT / 'train' / 'recipes' / 'README.md')]
PARTS = re.compile(
    r'^(?P<comments>(?:<!-- [^\n]* -->\n)*)```(?P<language>\S*)\n(?P<code>.*?)^```$', re.MULTILINE | re.DOTALL)
TRAIN_OPTIONS = {
    line for line in (ROOT / 'tests' / 'support' / 'train_options.txt').read_text().split() if line.isidentifier()}


class Block(NamedTuple):
    page: str
    line: int  # of its first line of code, from 1
    language: str
    code: str
    comments: str

    def said(self, what: str) -> Optional[str]:
        """What a comment <!-- WHAT: ... --> says; '' for <!-- WHAT -->."""
        found = re.search(rf'<!-- {what}(?:: (.*))? -->', self.comments)
        return found and (found[1] or '')

    @property
    def runs_alone(self) -> bool:
        return self.said('needs') is not None


def blocks_of(page: str) -> List[Block]:
    """The blocks of code; directives of Sphinx and text are none."""
    text = (ROOT / page).read_text()
    return [
        Block(page, text.count('\n', 0, found.start('code')) + 1, found['language'], found['code'], found['comments'])
        for found in PARTS.finditer(text) if found['language'] in ('python', 'sh')]


BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def script_of(blocks: List[Block]) -> str:
    """A Python script of these blocks, each on the lines that it has in its page, so that errors name them."""
    lines = ['from page_shell import shell']
    for block in blocks:
        lines += [''] * (block.line - 1 - len(lines))
        if block.language == 'sh':
            lines.append(f'shell({block.code!r})')
        elif found := re.match(r'# (\w+\.py)\n', block.code):
            lines.append(f'open({found[1]!r}, "w").write({block.code!r})')
        else:
            lines += block.code.splitlines()
    return '\n'.join(lines)


@pytest.fixture
def folder(npz_folder, sample, tmp_path):
    """Where a page's blocks run: a clone's train and benchmarks, and the user's own files that the pages name."""
    for name in ('train', 'benchmarks'):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(npz_folder, tmp_path / 'cifar10')
    shutil.copy(Path(__file__).parent / 'page_shell.py', tmp_path)
    shutil.copy(ROOT / 'tests' / 'support' / 'pytorch_cifar.py', tmp_path / 'models.py')
    Image.fromarray(sample.images[0]).resize((200, 150)).save(tmp_path / 'photo.jpg')
    for i in range(0, len(sample.labels), 10):
        kind = tmp_path / 'folder' / sample.classes[sample.labels[i]]
        kind.mkdir(parents=True, exist_ok=True)
        Image.fromarray(sample.images[i]).save(kind / f'{i}.png')
    return tmp_path


def run(blocks: List[Block], folder: Path) -> None:
    page = folder / Path(blocks[0].page).with_suffix('.py').name
    page.write_text(script_of(blocks))
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])
    result = subprocess.run(
        [sys.executable, page.name], cwd=folder, capture_output=True, text=True,
        env=dict(os.environ, PATH=path, CUDA_VISIBLE_DEVICES=''))
    assert result.returncode == 0, f'{blocks[0].page}:\n{result.stdout[-1000:]}\n{result.stderr[-3000:]}'


def of_page(page: str) -> List[Block]:
    return [block for block in BLOCKS if block.page == page and block.said('not run') is None and not block.runs_alone]


RUN = [page for page in PAGES if any(block.said('slow') is None for block in of_page(page))]
SLOW = [page for page in PAGES if any(block.said('slow') is not None for block in of_page(page))]


@pytest.mark.parametrize('page', RUN)
def test_a_page_runs_as_it_stands(page, folder, hub):
    run([block for block in of_page(page) if block.said('slow') is None], folder)


@pytest.mark.slow
@pytest.mark.parametrize('page', SLOW)
def test_a_page_with_long_blocks_runs_as_it_stands(page, folder, hub):
    run(of_page(page), folder)


@pytest.mark.parametrize('block', [
    pytest.param(block, id=f'{block.page}:{block.line}', marks=[pytest.mark.slow] * (block.said('slow') is not None))
    for block in BLOCKS if block.runs_alone])
def test_a_block_beside_another_library_runs(block, folder, hub):
    package = block.said('needs')
    if importlib.util.find_spec(package) is None:
        pytest.skip(f'{package} is not installed')
    before = [other for other in of_page(block.page) if other.line < block.line and other.language == 'sh']
    run([*before, block], folder)


def test_every_block_has_a_language_that_it_is_written_in_and_every_reason_is_given():
    for page in PAGES:
        for found in PARTS.finditer((ROOT / page).read_text()):
            assert re.fullmatch(r'python|sh|text|\{\S+\}', found['language']), f'{page}: {found["code"][:60]!r}'
    assert len(BLOCKS) > 40
    for block in BLOCKS:
        assert block.said('not run') != '', f'{block.page}:{block.line}'
        if block.language == 'python':
            compile(block.code, f'{block.page}:{block.line}', 'exec')


# Commands


def app_of(words: List[str]):
    """(command of click, its arguments) of a command of ours, None of any other."""
    if words[0] == 'torchrun':
        at = next((i for i, word in enumerate(words) if word == '-m'), None)
        words = ['python', *words[at:]] if at else words
    if words[0] == 'timm-preact' or words[:3] == ['python', '-m', 'timm_preact']:
        return typer.main.get_command(cli.app), words[1 if words[0] == 'timm-preact' else 3:]
    if words[:2] == ['python', '-m'] and words[2].split('.')[0] in ('train', 'benchmarks'):
        module = importlib.import_module(words[2])
        if not hasattr(module, 'app'):  # what typer.run makes of it
            (app := typer.Typer()).command()(module.main)
        return typer.main.get_command(getattr(module, 'app', None) or app), words[3:]
    return None


def parsed(command, words):
    """The command that is meant, of a group the one that its first word names, and its own words."""
    if hasattr(command, 'commands'):
        assert words and words[0] in command.commands, f'{command.name} has no command {words[:1]}'
        return command.commands[words[0]], words[1:]
    return command, words


COMMANDS = [(f'{block.page}:{block.line}', words) for block in BLOCKS if block.language == 'sh'
            for words in commands_in(block.code)]
INLINE = [(page, words) for page in PAGES for code in re.findall(r'`([^`\n]+)`', (ROOT / page).read_text())
          if re.match(r'(\w+=\S+ )*(timm-preact|python -m (train|benchmarks)\.\w+)( |$)', code)
          for words in commands_in(code.replace('|', ' '))]


@pytest.mark.parametrize('where, words', COMMANDS, ids=[f'{where} {" ".join(words[:3])}' for where, words in COMMANDS])
def test_a_command_and_its_options_exist(where, words):
    ours = app_of(words)
    if ours is not None:
        command, rest = parsed(*ours)
        command.make_context(command.name, list(rest))
        if command.name == 'run':
            words = rest
    if any(Path(word).name == 'train.py' for word in words):
        keys = {word[2:].partition('=')[0].replace('-', '_') for word in words[words.index(
            next(word for word in words if Path(word).name == 'train.py')):] if word.startswith('--')}
        assert keys <= TRAIN_OPTIONS | {'config', 'data_dir', 'device_modules'}, where
    for word in words:
        if word.startswith('train/') and word.endswith(('.yaml', '.sbatch', '.sh')) and 'CONFIG' not in word:
            assert (ROOT / word).is_file(), f'{where}: {word}'


@pytest.mark.parametrize('where, words', INLINE, ids=[f'{where} {" ".join(words)}' for where, words in INLINE])
def test_a_command_in_a_sentence_exists(where, words):
    command, rest = app_of(words)
    if rest and not rest[0].startswith('--'):
        command, rest = parsed(command, rest)
    options = {option for parameter in command.params for option in (*parameter.opts, *parameter.secondary_opts)}
    assert {word for word in rest if word.startswith('--')} <= options | {'--help'}
