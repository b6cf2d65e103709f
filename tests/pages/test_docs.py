"""The pages say what the measured files say, and point to what is there."""
import json
import re
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from timm_preact.propagation import SAFE, Propagation, check
from train import propagation
from train.places import PROPAGATION, RESULTS
from train.rows import CIFAR, ROWS

ROOT = Path(__file__).parents[2]
PAGES = ('propagation.md', 'guidelines.md')
LINKING = [path.relative_to(ROOT).as_posix() for pattern in (
    '*.md', 'docs/*.md', 'benchmarks/README.md', 'train/*/README.md', 'hub_cards/*/README.md')
    for path in sorted(ROOT.glob(pattern))]


@pytest.fixture(scope='module')
def measured():
    return propagation.read_measured(PROPAGATION)


def invoke(*arguments):
    return CliRunner().invoke(propagation.app, list(map(str, arguments)), catch_exceptions=False)


def anchors(path):
    """GitHub's, of the headings of a page."""
    return {re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')
            for heading in re.findall(r'^#+ (.*)$', path.read_text(), re.MULTILINE)}


@pytest.mark.parametrize('page', LINKING)
def test_every_link_leads_somewhere(page):
    text = re.sub(r'^```.*?^```$', '', (ROOT / page).read_text(), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r'\]\(([^)\s]+)\)', text):
        if re.match(r'https?://', link):
            continue
        file, _, anchor = link.partition('#')
        target = (ROOT / page).parent / file if file else ROOT / page
        assert target.exists(), link
        assert not anchor or anchor in anchors(target), link


def test_every_page_of_the_site_is_reached_from_its_first():
    """By its contents, which Sphinx reads, and from the README."""
    contents = re.findall(r'```\{toctree\}\n.*?\n\n(.*?)\n```', (ROOT / 'docs' / 'index.md').read_text(), re.DOTALL)
    pages = {path.stem for path in (ROOT / 'docs').glob('*.md')} - {'index'}
    assert sorted(re.findall(r'(\w+)>?$', '\n'.join(contents), re.MULTILINE)) == sorted(pages)
    linked = set(re.findall(r'\]\(docs/(\w+)\.md', (ROOT / 'README.md').read_text()))
    assert linked == (pages | {'index'}) - {'changelog'}


def test_every_guideline_points_to_its_evidence():
    text = (ROOT / 'docs' / 'guidelines.md').read_text()
    lines = re.findall(r'^\* \*\*.*?(?=^\* |^#|^<!-- |\Z)', text, re.MULTILINE | re.DOTALL)
    assert len(lines) > 15
    assert [line for line in lines if '](' not in line] == []


def test_measured_files_say_where_they_come_from_and_are_whole(measured):
    pictured = {row for rows in (*propagation.PICTURES.values(), propagation.OTHERS, propagation.GATES) for row in rows}
    assert set(measured) >= pictured
    for row, result in measured.items():
        assert result['command'].startswith('python -m train.propagation measure')
        assert result['data_sha256'] == CIFAR['cifar10'][0] and result['versions']['torch'] and result['hardware']
        assert len(result['draws']) == propagation.DRAWS and result['initial'].model == ROWS[row].model
    for row in (*propagation.LAYERS_20, *propagation.TRAINED_110):
        run = json.loads((RESULTS / 'tables' / f"{measured[row]['run']}.json").read_text())
        assert run['weights_sha256'] == measured[row]['weights_sha256'], 'measured weights are those of a result'


@pytest.mark.parametrize('value, text', [
    (0.0206, '0.021'), (5.55e-17, '5.6e-17'), (321_456., '320,000'), (1., '1'), (0., '0'), (0.0099999, '0.010'),
    (541., '540'), (12.6, '13'), (3.4e8, '3.4e8'), (float('inf'), 'inf')])
def test_numbers_have_two_digits(value, text):
    assert propagation.format_number(value) == text


def test_a_row_is_measured_initial_and_trained_into_one_file(npz_folder, tmp_path):
    row = ROWS['20-full']
    run = tmp_path / 'runs' / '20-full.seed1'
    shutil.copytree(ROOT / 'hub_cards' / 'preact_resnet20.cifar10', run)
    options = '--data', npz_folder, '--batch-size', 4, '--draws', 2, '--to', tmp_path / 'to'
    result = invoke('measure', '20-full', *options, '--runs', tmp_path / 'runs', '--seed', 1)
    assert result.exit_code == 2 and 'pass --model preact_resnet20' in result.output  # the row's name is another
    result = invoke('measure', '20-full', *options)
    assert result.exit_code == 0
    found = propagation.read_measured(tmp_path / 'to')['20-full']
    assert isinstance(found['initial'], Propagation) and len(found['draws']) == 2 and found['images'] == 4
    assert found['initial'].model == row.model and len(found['initial'].units) == 10
    direct = found['initial'].gradient_shortcuts[:-1].min() / found['initial'].gradient[-1]
    assert found['draws'][0]['direct'] == pytest.approx(direct, rel=1e-4) and found['draws'][0]['safe']


def test_a_run_that_is_not_there_is_said_and_nothing_is_written(npz_folder, tmp_path):
    result = invoke('measure', '20-orig', '--data', npz_folder, '--runs', tmp_path / 'runs', '--to', tmp_path / 'to')
    assert result.exit_code == 2 and 'train it by python -m train.tables run 20-orig' in result.output
    assert list((tmp_path / 'to').iterdir()) == []


def test_the_safe_range_lies_where_its_comment_says(measured):
    """Between what 110 layers that train well lose and what the others do, exclusive gates of -3 to -5 left out."""
    direct = {row: [draw['direct'] for draw in measured[row]['draws']] for row in measured if row[:4] == '110-'}
    well = {row for row in direct if ROWS[row].paper != 'fail' and ROWS[row].paper < 12 and row != '110-bn_after_add'}
    left_out = {f'110-excl_gate_{bias}' for bias in (-3, -4, -5)}
    assert min(min(direct[row]) for row in well) > 1 / 120
    assert max(max(direct[row]) for row in direct if row not in well | left_out) < 1 / 6000
    assert all(min(direct[row]) > 1 / SAFE for row in left_out)


def test_the_warning_is_that_of_every_draw(measured):
    import timm
    for row in ('110-full', '110-conv_shortcut'):
        result = measured[row]
        model = timm.create_model(ROWS[row].model, **ROWS[row].model_kwargs)
        assert {draw['safe'] for draw in result['draws']} == {check(model, result['initial']).safe}
