"""Measurements that write into a folder of their own, take one call each, and leave PyTorch's threads as they were."""
import pytest
import torch

from timm_preact.benchmark import timing
from train import places


@pytest.fixture(autouse=True)
def threads():
    """Some set how many PyTorch uses, which is not for the tests after these."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def results(tmp_path, monkeypatch):
    """Where results go in place of benchmarks/results."""
    monkeypatch.setattr(timing, 'SECONDS', 1e-3)
    monkeypatch.setattr(places, 'BENCHMARKS', tmp_path)
    return tmp_path
