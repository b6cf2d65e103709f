"""The record of a measurement says how it is made again."""
import subprocess
import sys
from pathlib import Path

import torch

from timm_preact import provenance
from timm_preact.version import __version__

ROOT = Path(provenance.__file__).parents[1]


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


def test_the_commit_is_the_clones_and_none_elsewhere(tmp_path, monkeypatch):
    git = subprocess.run(['git', 'rev-parse', 'HEAD'], cwd=ROOT, capture_output=True, text=True).stdout.strip()
    found = provenance.find_commit.__wrapped__()
    assert found is None if not (ROOT / '.git').exists() else found.removesuffix('-dirty') == git
    monkeypatch.setattr(provenance, '__file__', str(tmp_path / 'timm_preact' / 'provenance.py'))
    assert provenance.find_commit.__wrapped__() is None
