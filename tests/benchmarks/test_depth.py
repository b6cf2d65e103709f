"""The measurements of growth with depth and of int8 run and say what they measured."""
import json

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from train import growth, quantization


@pytest.fixture(autouse=True)
def threads():
    """Both set how many PyTorch uses, which is not for the tests after these."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_a_line_is_the_least_squares_one():
    fit = growth.line({1: 1., 2: 3., 3: 5.})
    assert (fit['slope'], fit['intercept'], fit['r2']) == (pytest.approx(2), pytest.approx(-1), pytest.approx(1))
    assert growth.line({1: 0., 2: 2., 3: 1.})['r2'] == pytest.approx(0.25)


def test_growth_is_measured_fitted_and_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(growth, 'LEAST_SECONDS', 1e-3)
    monkeypatch.setattr(growth, 'INFERENCE_BATCH', 2)
    monkeypatch.setattr(growth, 'FAMILIES', {
        'basic': {20: 'preact_resnet20', 56: 'preact_resnet56'},
        'bottleneck': {164: 'preact_resnet164', 272: 'preact_resnet272_pcv'}})
    result = CliRunner().invoke(
        growth.app, ['--rounds', '1', '--threads', '1', '--output', str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    families = json.loads((tmp_path / 'growth.json').read_text())['families']
    for quantities in families.values():
        plain, recomputing = (quantities[name]['line']['slope'] for name in (
            'kept_for_backward', 'kept_for_backward_recompute_norms'))
        assert 0.49 < recomputing / plain < 0.51
        assert all(min(q['medians'].values()) > 0 for q in quantities.values())
    with Image.open(tmp_path / 'growth.png') as picture:
        assert picture.width > picture.height > 1000


def test_no_rounds_measure_nothing(tmp_path):
    result = CliRunner().invoke(growth.app, ['--rounds', '0', '--output', str(tmp_path)], catch_exceptions=False)
    assert result.exit_code == 2 and not list(tmp_path.iterdir())


def test_int8_is_measured_beside_float32_and_bfloat16(npz_folder, tmp_path, monkeypatch):
    monkeypatch.setattr(quantization, 'SECONDS', 1e-3)
    monkeypatch.setattr(quantization, 'RESULT', tmp_path / 'int8.json')
    quantization.main(data=str(npz_folder), rounds=1)
    result = json.loads((tmp_path / 'int8.json').read_text())
    assert result['test_images'] == 100
    assert abs(result['error']['int8'] - result['error']['float32']) <= 3
    assert abs(result['error']['bfloat16'] - result['error']['float32']) <= 2
    assert result['bytes']['int8'] < 0.4 * result['bytes']['float32']
