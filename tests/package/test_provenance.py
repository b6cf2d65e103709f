"""The record of a measurement says how it is made again."""
import subprocess
import sys

import torch

from timm_preact import provenance
from timm_preact.version import __version__


def test_a_record_has_command_hardware_environment_versions_commit_and_seed(monkeypatch):
    monkeypatch.setenv('OMP_WAIT_POLICY', 'passive')
    monkeypatch.setattr(sys, 'argv', ['script', '--data', 'two words'])
    found = provenance.record(provenance.quote_command('python -m x'), torch.device('cpu'), 'numpy', seed=3)
    assert list(found) == ['command', 'hardware', 'environment', 'versions', 'commit', 'seed']
    assert found['command'] == "python -m x --data 'two words'" and found['seed'] == 3
    assert found['hardware'].endswith(f'{torch.get_num_threads()} thread{"s" * (torch.get_num_threads() > 1)}')
    assert found['environment']['OMP_WAIT_POLICY'] == 'passive' and 'PATH' not in found['environment']
    assert set(found['versions']) == {'python', 'timm_preact', 'torch', 'timm', 'numpy'}
    assert found['versions']['timm_preact'] == __version__


def test_without_a_seed_there_is_none():
    assert 'seed' not in provenance.record('x', torch.device('cpu'))


def test_the_commit_is_that_of_the_clone_named_and_none_where_there_is_none(tmp_path):
    """As when the package is installed and a clone's train/ runs beside it."""
    assert provenance.find_commit(tmp_path) is None
    git = ['git', '-C', str(tmp_path), '-c', 'user.name=a', '-c', 'user.email=b']
    (tmp_path / 'file').write_text('one')
    for words in (['init', '-q'], ['add', '.'], ['commit', '-q', '-m', 'first']):
        subprocess.run([*git, *words], check=True)
    head = subprocess.run([*git, 'rev-parse', 'HEAD'], capture_output=True, text=True, check=True).stdout.strip()
    assert provenance.record('x', torch.device('cpu'), clone=tmp_path)['commit'] == head
    (tmp_path / 'file').write_text('two')
    assert provenance.find_commit(tmp_path) == f'{head}-dirty'
