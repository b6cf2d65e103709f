"""The Space of hub_cards/space goes to the Hub as it stands, with the package in it, or not at all."""
import re
import shutil
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from support.hub_server import READ
from typer.testing import CliRunner

from timm_preact.cli import app
from timm_preact.hub import SPACE_FILES, HubError, publish

ROOT = Path(__file__).parents[2]
SPACE = ROOT / 'hub_cards' / 'space'
REPO = 'lab/preact'
pytestmark = pytest.mark.filterwarnings('ignore:Use .content:DeprecationWarning')  # the client's own, at each PUT


@pytest.fixture
def folder(tmp_path):
    """A copy of the Space."""
    return Path(shutil.copytree(SPACE, tmp_path / 'space'))


def refusal(*args, **kwargs):
    """The one sentence with which a Space is refused."""
    with pytest.raises(HubError) as e:
        publish(*args, repo_type='space', **kwargs)
    assert re.fullmatch(r'[^\n]+\.', str(e.value))
    return str(e.value)


def front_matter(folder):
    return yaml.safe_load((folder / 'README.md').read_text().split('---\n')[1])


def write_front_matter(folder, **facts):
    kept = {key: value for key, value in dict(front_matter(folder), **facts).items() if value is not None}
    (folder / 'README.md').write_text(f'---\n{yaml.safe_dump(kept)}---\n# A page\n')


def test_the_space_is_published_with_the_package_and_nothing_else(lab, folder):
    (folder / '.env').write_text('SECRET=1')
    (folder / 'notes.txt').write_text('mine')
    published = publish(folder, REPO, repo_type='space')
    sent = lab.files(f'spaces/{REPO}')
    assert published.url == f'{lab.url}/spaces/{REPO}' and published.changed and set(published.files) == set(sent)
    assert {name for name in sent if '/' not in name} == set(SPACE_FILES)
    packaged = {name for name in sent if '/' in name}
    assert {'timm_preact/__init__.py', 'timm_preact/web/page.py', 'timm_preact/sample/cifar10_test_500.webp',
            'timm_preact/weights/shipped/preact_resnet20.cifar10.safetensors'} <= packaged
    assert all(name.startswith('timm_preact/') and '__pycache__' not in name for name in packaged)
    assert sent['app.py'] == (SPACE / 'app.py').read_bytes()
    assert not publish(folder, REPO, repo_type='space').changed


def test_a_dry_run_by_the_command_line_says_what_would_be_sent_and_sends_nothing(hub):
    result = CliRunner().invoke(
        app, ['publish', str(SPACE), '--repo-id', REPO, '--repo-type', 'space', '--dry-run'], catch_exceptions=False)
    assert result.exit_code == 0 and f'/spaces/{REPO} would get app.py, requirements.txt, README.md' in result.stdout
    assert hub.requests == []


def test_a_private_space_and_a_branch(lab, folder):
    publish(folder, REPO, revision='v2', private=True, repo_type='space')
    assert lab.repos[f'spaces/{REPO}'].private and lab.files(f'spaces/{REPO}') == {}
    assert 'app.py' in lab.files(f'spaces/{REPO}', 'v2')


@pytest.mark.parametrize('facts', [
    dict(sdk='docker'), dict(sdk=None), dict(sdk_version=None), dict(app_file='main.py'), dict(title=None),
    dict(license=None)])
def test_front_matter_that_the_space_cannot_start_by_is_refused_before_anything_is_sent(hub, folder, facts):
    write_front_matter(folder, **facts)
    assert 'needs sdk: gradio' in refusal(folder, REPO, dry_run=True)
    assert hub.requests == []


@pytest.mark.parametrize('name', SPACE_FILES)
def test_a_space_without_a_file_is_refused(hub, folder, name):
    (folder / name).unlink()
    assert f'has no {name}' in refusal(folder, REPO)


def test_front_matter_that_is_no_yaml_is_refused(hub, folder):
    (folder / 'README.md').write_text('---\nsdk: [gradio\n---\n')
    assert 'no valid front matter' in refusal(folder, REPO)


def test_who_may_not_write_is_told_so(hub, folder, monkeypatch):
    monkeypatch.setenv('HF_TOKEN', READ)
    assert 'the token may not write there' in refusal(folder, REPO)
    assert hub.repos == {}


def test_another_type_of_repository_is_refused(folder):
    with pytest.raises(HubError, match='choose one of model, space'):
        publish(folder, REPO, repo_type='dataset')


def test_the_space_asks_for_what_the_package_does_and_pins_a_gradio_that_it_takes():
    tomllib = pytest.importorskip('tomllib')
    project = tomllib.loads((ROOT / 'pyproject.toml').read_text())['project']
    gradio, *extra = project['optional-dependencies']['web']
    assert (SPACE / 'requirements.txt').read_text().split() == [*project['dependencies'], *extra]
    pinned = front_matter(SPACE)['sdk_version']
    assert (wanted := Requirement(gradio)).name == 'gradio' and pinned in wanted.specifier
