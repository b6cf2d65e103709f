"""What depth costs is measured, fitted and drawn."""
import json

import pytest
from PIL import Image
from support.commands import run

from benchmarks import depth


def test_a_line_is_the_least_squares_one():
    fit = depth.fit_line({1: 1., 2: 3., 3: 5.})
    assert (fit['slope'], fit['intercept'], fit['r2']) == (pytest.approx(2), pytest.approx(-1), pytest.approx(1))
    assert depth.fit_line({1: 0., 2: 2., 3: 1.})['r2'] == pytest.approx(0.25)


def test_growth_is_measured_fitted_and_drawn(results, monkeypatch):
    monkeypatch.setattr(depth, 'INFERENCE_BATCH', 2)
    monkeypatch.setattr(depth, 'FAMILIES', {
        'basic': {20: 'preact_resnet20', 56: 'preact_resnet56'},
        'bottleneck': {164: 'preact_resnet164', 272: 'preact_resnet272_pcv'}})
    result = run(depth.main, '--rounds', 1, '--threads', 1, '--output', results)
    assert result.exit_code == 0, result.output
    written = json.loads((results / 'growth.json').read_text())
    assert written['command'].startswith('python -m benchmarks.depth') and written['versions']['timm_preact']
    for quantities in written['families'].values():
        plain, recomputing = (quantities[name]['line']['slope'] for name in (
            'kept_for_backward', 'kept_for_backward_recompute_norms'))
        assert 0.49 < recomputing / plain < 0.51
        assert all(min(q['medians'].values()) > 0 for q in quantities.values())
    with Image.open(results / 'growth.png') as picture:
        assert picture.width > picture.height > 1000


def test_no_rounds_measure_nothing(tmp_path):
    result = run(depth.main, '--rounds', 0, '--output', tmp_path)
    assert result.exit_code == 2 and not list(tmp_path.iterdir())
