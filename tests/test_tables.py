"""The paper's tables as rows: numbers from result files alone, runs that are taken up, and what is refused."""
import json
import re

import pytest
import timm
from typer.testing import CliRunner

from train import tables
from train.tables import PAPER_ROWS, ROWS, SMALL_ROWS, app, collect, command_of, measured, report, result_file, table


def invoke(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


def refusal(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 2 and result.output.count('\n') == 1
    return result.output


@pytest.fixture
def results(tmp_path, monkeypatch):
    """An empty folder of results."""
    monkeypatch.setattr(tables, 'RESULTS', tmp_path / 'results' / 'tables')
    tables.RESULTS.mkdir(parents=True)
    return tables.RESULTS


def write(key, errors, state='finished'):
    for seed, error in enumerate(errors):
        result_file(key, seed).write_text(json.dumps(
            dict(row=key, seed=seed, test_error=error, state=state, hardware='a CPU')))


@pytest.fixture
def data(npz_folder, tmp_path):
    (tmp_path / 'data').mkdir()
    (tmp_path / 'data' / 'cifar10').symlink_to(npz_folder)
    return tmp_path / 'data'


@pytest.mark.parametrize('key', ROWS)
def test_a_row_is_a_network_of_its_depth(key):
    row = ROWS[key]
    model = timm.create_model(f'{row.model}.{row.data}', device='meta', **row.model_kwargs)
    units = sum(len(stage.blocks) for stage in model.stages)
    layers = {'20': 9, '110': 54, '164': 54, '1001': 333}[key.split('-')[0]]
    assert units == (108 if '1layer' in key else layers)


@pytest.mark.parametrize('word, paper', [
    ('110-full', 6.37), ('110-orig', 6.61), ('110-bn_after_add', 8.17), ('110-relu_before_add', 7.84),
    ('110-relu_only', 6.71), ('164-full', 5.46), ('164-orig', 5.93), ('110-const_scale_0.5_0.5', 12.35),
    ('110-excl_gate_-6', 8.70), ('110-excl_gate_-7', 9.81), ('110-excl_gate_-3', 'fail'),
    ('110-shortcut_gate_0', 12.86), ('110-shortcut_gate_-6', 6.91), ('110-conv_shortcut', 12.22),
    ('110-dropout_shortcut', 'fail'), ('110-1layer', 8.91),
    ('110-1layer-orig', 9.90), ('1001-full', 4.92), ('1001-full-batch64', 4.62),
    ('1001-orig-cifar100', 27.82), ('1001-full-cifar100', 22.71),
])
def test_the_papers_numbers_are_the_papers(word, paper):
    assert PAPER_ROWS[word].paper == paper


def test_gates_start_at_the_bias_of_their_row():
    model = timm.create_model('preact_resnet110_orig_excl_gate', **SMALL_ROWS['20-excl_gate_-7'].model_kwargs)
    assert (model.stages[0].blocks[0].merge.gate.bias == -7).all()


def test_a_number_is_the_median_of_the_runs_and_a_diverged_run_counts_as_the_worst(results):
    write('110-full', [6.0, 7.0, 6.5])
    assert measured(collect()['110-full']) == 6.5
    write('110-orig', [6.0])
    result_file('110-orig', 1).write_text(json.dumps(dict(row='110-orig', seed=1, test_error=100., state='diverged')))
    assert measured(collect()['110-orig']) == float('inf')
    assert measured([]) is None


def test_the_table_says_how_many_runs_a_number_is_of(results):
    write('110-full', [6.0, 7.0, 6.5])
    line = next(line for line in table(PAPER_ROWS, collect(), small=False).split('\n') if '`110-full`' in line)
    assert line == '| `110-full` | 2, 3 | full pre-activation | cifar10 | 6.37 | 6.50 | 3 | 6.00 to 7.00 |'


@pytest.mark.parametrize('content', ['', '{}', '[1]', '{"row": "110-orig", "seed": 0, "state": "finished"}'])
def test_a_file_that_is_no_result_is_named_and_left_out(results, capsys, content):
    write('110-full', [6.0])
    (results / '110-full.seed1.json').write_text(content)
    assert [result['seed'] for result in collect()['110-full']] == [0]
    assert '110-full.seed1.json is no result' in capsys.readouterr().err


def test_a_missing_run_is_run_once_and_its_result_says_what_made_it(results, data, tmp_path):
    arguments = ('run', '20-full', '--data', data, '--runs', tmp_path / 'runs')
    assert '20-full, seed 0: finished' in invoke(*arguments).output
    result = json.loads(result_file('20-full', 0).read_text())
    assert result['command'].startswith('python -m train.cifar preact_resnet110 --data')
    assert len(result['curve']) == tables.SMALL_EPOCHS and result['curve'][-1]['test_error'] == result['test_error']
    assert {'commit', 'trainer_sha256', 'weights_sha256', 'versions', 'hardware', 'data'} <= set(result)
    assert invoke(*arguments).output == ''


def test_a_run_that_the_budget_cuts_is_no_result(results, data, tmp_path):
    assert 'seed 0: cut' in invoke(
        'run', '20-orig', '--data', data, '--runs', tmp_path / 'runs', '--budget', '1s').output
    assert collect() == {}


def test_a_run_that_diverges_is_kept_and_marked(results, data, tmp_path, monkeypatch):
    row = SMALL_ROWS['20-full']
    monkeypatch.setitem(ROWS, '20-full', row._replace(options=dict(row.options, lr=1e8)))
    assert '20-full, seed 0: diverged' in invoke(
        'run', '20-full', '--data', data, '--runs', tmp_path / 'runs').output
    assert collect()['20-full'][0]['state'] == 'diverged'


def test_a_second_campaign_in_a_folder_is_refused(results, data, tmp_path):
    with tables.locked(tmp_path / 'runs'):
        assert 'another campaign runs' in refusal('run', '20-full', '--data', data, '--runs', tmp_path / 'runs')


def test_what_is_no_row_or_no_time_is_refused(results, tmp_path):
    assert 'is no row' in refusal('run', '110-none', '--runs', tmp_path)
    assert 'write 90s, 25m or 2h' in refusal('run', '110-full', '--budget', 'soon', '--runs', tmp_path)
    assert 'name rows, or all' in refusal('run', '--runs', tmp_path)


def test_the_command_of_a_row_is_the_papers_recipe(tmp_path):
    command = ' '.join(command_of('110-full', 3, tmp_path, tmp_path / 'out'))
    assert command.startswith('preact_resnet110 --data') and '--recipe paper --bn-group 64' in command
    assert '--seed 3' in command and re.search(r'cifar10 ', command)


def test_the_report_is_what_the_result_files_say():
    assert (tables.RESULTS.parent / 'README.md').read_text() == report()
