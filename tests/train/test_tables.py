"""The paper's tables as rows: numbers from result files alone, campaigns, and what is refused."""
import json
import os
import re
import shlex
import shutil
import signal
import statistics
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from support.runs import CPU, TINY, cut
from typer.testing import CliRunner

from timm_preact.catalog import PAPER
from timm_preact.data import load_image_set
from train.cifar import app as cifar
from train.evidence import collect, find_median, format_error, format_report, format_rows, locate_result
from train.places import DOCS, RESULTS
from train.recipe import choose_recipe
from train.rows import CIFAR, FIGURES, PAPER_ROWS, ROWS, SMALL_FIGURES, SMALL_ROWS, TRAINED_ROWS, Row
from train.run import lock_folder
from train.tables import Campaign, app, command_of, data_of, order_of, share_of

ROOT = Path(__file__).parents[2]
TINY_ROWS = {f'tiny-{i}': Row(
    '-', f'case {i}', 'preact_resnet20', None, model_kwargs=TINY,
    options={'recipe': 'modern', 'epochs': 2, 'batch_size': 32, 'lr': 0.05 * (i + 1)}) for i in range(3)}


def invoke(*arguments):
    return CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


def succeed(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 0, result.output
    return result.output


def refusal(*arguments):
    result = invoke(*arguments)
    assert result.exit_code == 2 and result.output.count('\n') == 1, result.output
    return result.output


@pytest.fixture
def results(tmp_path):
    """An empty folder of results."""
    (tmp_path / 'results' / 'tables').mkdir(parents=True)
    return tmp_path / 'results'


@pytest.fixture
def tiny(monkeypatch, small_folder, tmp_path, results):
    """Rows that take a second each, and the options with which a campaign runs them."""
    for key, row in TINY_ROWS.items():
        monkeypatch.setitem(ROWS, key, row)
    return '--data', small_folder, '--runs', tmp_path / 'runs', '--results', results


def write(results, key, errors, state='finished', train_sha256='a', **changes):
    """Results as a campaign writes them, as far as anything reads them."""
    row = ROWS[key]
    recipe = json.loads(json.dumps(asdict(choose_recipe(**row.options))))
    for seed, error in enumerate(errors):
        curve = [dict(epoch=1, train_loss=1., test_error=error)] if state == 'finished' else []
        locate_result(results, key, seed, cut=state == 'cut').write_text(json.dumps(dict(dict(
            row=key, seed=seed, model=row.model, model_kwargs=row.model_kwargs, recipe=recipe, test_error=error,
            state=state, hardware='a CPU', step=5, iterations=10, curve=curve,
            data=dict(train_sha256=train_sha256, test_sha256='b')), **changes)))


def read(results, key, seed):
    return json.loads(locate_result(results, key, seed).read_text())


@pytest.mark.parametrize('key', ROWS)
def test_a_row_is_a_network_of_its_depth(key):
    row = ROWS[key]
    model = timm.create_model(f'{row.model}.{row.data}', device='meta', **row.model_kwargs)
    units = sum(len(stage.blocks) for stage in model.stages)
    depth = key.removeprefix('tuned-').split('-')[0]
    layers = {'20': 9, '56': 27, '110': 54, '164': 54, '1001': 333, '1202': 600}[depth]
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


def test_the_catalog_has_the_same_numbers():
    for key, row in PAPER_ROWS.items():
        if not row.model_kwargs and row.options['recipe'] == 'paper':
            assert PAPER[row.model][row.data] == row.paper, key


def test_the_kinds_of_the_papers_numbers():
    kinds = {key: row.kind for key, row in PAPER_ROWS.items()}
    assert {key for key, kind in kinds.items() if kind == 'fail'} == {
        '110-const_scale_0_1', '110-const_scale_0.5_1', '110-dropout_shortcut',
        *(f'110-excl_gate_{bias}' for bias in range(0, -6, -1))}
    assert {key for key, kind in kinds.items() if kind == 'run'} == {'1202-orig'}
    assert set(kinds.values()) == {'median', 'fail', 'run'}
    assert format_error(4.92, PAPER_ROWS['1001-full'].mean) == '4.92 (4.89 ± 0.14)'
    assert format_error(24.33) == '24.33'  # above 20, on 100 classes, and no failure


def test_a_number_is_the_median_of_the_runs_and_a_diverged_run_counts_as_the_worst(results):
    write(results, '110-full', [6.0, 7.0, 6.5])
    assert find_median(collect(results)['110-full']) == 6.5
    write(results, '110-orig', [None], state='diverged')
    assert find_median(collect(results)['110-orig']) == float('inf')
    assert find_median([]) is None


def test_a_run_that_was_cut_is_kept_and_does_not_count(results):
    write(results, '110-full', [None], state='cut')
    assert find_median(collect(results)['110-full']) is None
    assert '| full pre-activation | cifar10 | 6.37 | - | 0 of 5 |' in format_rows(PAPER_ROWS, collect(results))
    assert 'Not finished: 110-full, seed 0: cut at step 5 of 10.' in format_report(results, collect(results))


def test_the_table_says_how_many_runs_a_number_is_of(results):
    write(results, '110-full', [6.0, 7.0, 6.5])
    lines = format_rows(PAPER_ROWS, collect(results)).split('\n')
    assert '| `110-full` | 2, 3 | full pre-activation | cifar10 | 6.37 | 6.50 | 3 of 5 | 6.00 to 7.00 |' in lines


def test_a_number_of_five_runs_or_more_just_says_how_many(results):
    write(results, '110-full', [6.0, 7.0, 6.5, 6.2, 6.3, 6.4])
    assert '| 6.37 | 6.35 | 6 | 6.00 to 7.00 |' in format_rows(PAPER_ROWS, collect(results))


@pytest.mark.parametrize('content', [b'', b'{}', b'[1]', b'\0\0', b'\xff', b'[' * 100_000])
def test_a_file_that_is_no_result_is_named_and_left_out(results, capsys, content):
    write(results, '110-full', [6.0])
    locate_result(results, '110-full', 1).write_bytes(content)
    assert [result['seed'] for result in collect(results)['110-full']] == [0]
    assert '110-full.seed1.json is no result' in capsys.readouterr().err


@pytest.mark.parametrize('field, value', [
    ('row', '110-orig'), ('row', '110-none'), ('row', []), ('seed', 1), ('seed', '0'), ('seed', None),
    ('state', 'done'), ('test_error', 6.2), ('test_error', '6.1'), ('test_error', None), ('curve', []), ('curve', None),
    ('curve', [dict(epoch=1, train_loss=1., test_error=float('nan'))]), ('curve', [dict(epoch=1, test_error=6.1)]),
    ('curve', [dict(epoch=1, train_loss='1', test_error=6.1)]), ('hardware', None), ('hardware', {}), ('data', {}),
    ('data', dict(train_sha256=1, test_sha256='b')), ('model', 'resnet18'), ('model_kwargs', dict(layers=[3, 3, 3])),
    ('recipe', dict(epochs=1)),
])
def test_a_result_with_one_field_amiss_is_left_out(results, capsys, field, value):
    write(results, '110-full', [6.1])
    assert find_median(collect(results)['110-full']) == 6.1
    write(results, '110-full', [6.1], **{field: value})
    assert collect(results) == {}
    assert '110-full.seed0.json is no result' in capsys.readouterr().err


def test_half_a_result_file_is_left_out(results, capsys):
    write(results, '110-full', [6.0, 7.0])
    path = locate_result(results, '110-full', 1)
    path.write_bytes(path.read_bytes()[:100])
    assert find_median(collect(results)['110-full']) == 6.0
    assert '110-full.seed1.json is no result' in capsys.readouterr().err


def test_results_of_other_data_are_never_averaged_with_the_rest(results, capsys):
    write(results, '110-orig', [6.6, 6.7], train_sha256='cifar')
    write(results, '110-full', [6.0, 7.0], train_sha256='cifar')
    write(results, '110-full', [1.0], train_sha256='other')
    assert find_median(collect(results)['110-full']) == 7.0
    assert '110-full.seed0.json is of other data' in capsys.readouterr().err
    write(results, '110-full', [1.0], data=dict(train_sha256='cifar', test_sha256='other'))
    assert find_median(collect(results)['110-full']) == 7.0


def test_results_of_several_machines_merge_by_copying(results, tmp_path):
    for machine, (key, error) in enumerate((('110-full', 6.1), ('110-orig', 6.6))):
        folder = tmp_path / f'machine{machine}'
        (folder / 'tables').mkdir(parents=True)
        write(folder, key, [error])
        shutil.copytree(folder / 'tables', results / 'tables', dirs_exist_ok=True)
    assert {key: find_median(runs) for key, runs in collect(results).items()} == {'110-full': 6.1, '110-orig': 6.6}


def test_a_missing_run_is_run_once_and_its_result_says_what_made_it(tiny, results, tmp_path):
    output = succeed('run', 'tiny-0', '--seeds', 2, *tiny)
    assert 'tiny-0, seed 0: finished' in output and 'tiny-0, seed 1: finished' in output
    result = read(results, 'tiny-0', 1)
    assert {'row', 'model', 'model_kwargs', 'recipe', 'recipe_name', 'seed', 'data', 'images_per_second', 'versions',
            'peak_memory_bytes', 'hardware', 'commit', 'trainer_sha256', 'weights_sha256'} <= set(result)
    assert result['seed'] == 1 and len(result['curve']) == 2 and result['state'] == 'finished'
    assert result['curve'][-1]['test_error'] == result['test_error']
    hashes = [load_image_set(tiny[1], split).sha256 for split in ('train', 'test')]
    assert result['data'] == dict(train_sha256=hashes[0], test_sha256=hashes[1], classes=10)
    assert succeed('run', 'tiny-0', '--seeds', 2, *tiny) == f'All 2 runs have a result in {results / "tables"}.\n'
    assert result['together'] == 1


def test_the_command_in_a_result_gives_the_same_weights(tiny, results, tmp_path):
    succeed('run', 'tiny-1', '--seeds', 1, *tiny)
    words = shlex.split(read(results, 'tiny-1', 0)['command'])
    assert words[:3] == ['python', '-m', 'train.cifar']
    *command, output = words[3:]
    assert CliRunner().invoke(cifar, [*command, f'{output}-again'], catch_exceptions=False).exit_code == 0
    one, other = (load_file(f'{folder}/model.safetensors') for folder in (output, f'{output}-again'))
    assert all((one[name] == other[name]).all() for name in one)


def test_a_seed_of_each_row_comes_before_the_next_seed(tiny, results):
    output = succeed('run', 'tiny-*', '--seeds', 2, *tiny)
    ended = [line for line in output.split('\n') if line.endswith(': finished')]
    assert ended == [f'tiny-{i}, seed {seed}: finished' for seed in (0, 1) for i in range(3)]


def test_a_campaign_of_several_at_once_has_the_results_of_one_by_one(tiny, results, tmp_path):
    succeed('run', 'tiny-*', '--seeds', 2, '--together', 4, *tiny)
    alone = tmp_path / 'alone'
    succeed('run', 'tiny-*', '--seeds', 2, *tiny[:2], '--runs', tmp_path / 'alone_runs', '--results', alone)
    for key in TINY_ROWS:
        for seed in (0, 1):
            assert read(results, key, seed)['weights_sha256'] == read(alone, key, seed)['weights_sha256']
            assert read(results, key, seed)['test_error'] == read(alone, key, seed)['test_error']


def test_a_campaign_that_the_budget_cuts_goes_on_where_it_stopped(tiny, results, monkeypatch, tmp_path):
    monkeypatch.setitem(ROWS, 'tiny-0', TINY_ROWS['tiny-0']._replace(
        options=dict(TINY_ROWS['tiny-0'].options, epochs=30)))
    steps = []
    for _ in range(200):
        succeed('run', 'tiny-0', '--seeds', 1, '--budget', '1s', *tiny)
        path, = (results / 'tables').iterdir()
        result = json.loads(path.read_text())
        steps.append(result['step'])
        if result['state'] == 'finished':
            break
        assert result['state'] == 'cut' and result['test_error'] is None and path.name == 'tiny-0.seed0.cut.json'
    assert len(steps) > 1 and steps == sorted(steps) and steps[-1] == 300


def test_a_finished_result_outdoes_one_of_the_same_run_that_was_cut_elsewhere(results):
    write(results, '110-full', [None], state='cut')
    write(results, '110-full', [6.4])
    assert [result['state'] for result in collect(results)['110-full']] == ['finished']


def test_a_run_that_cannot_go_on_does_not_stop_the_others(tiny, results, tmp_path):
    folder = tmp_path / 'runs' / 'tiny-0.seed0'
    folder.mkdir(parents=True)
    (folder / 'checkpoint.pt').write_bytes(b'something else')
    result = invoke('run', 'tiny-0', 'tiny-1', '--seeds', 1, *tiny)
    assert result.exit_code == 2 and 'tiny-1, seed 0: finished' in result.output
    assert 'error: 1 runs could not be trained, the first: tiny-0, seed 0: ' in result.output
    assert 'is not a checkpoint of train.cifar: remove it' in result.output


def test_without_git_a_result_has_no_commit(tiny, results, monkeypatch):
    monkeypatch.setenv('PATH', '')
    succeed('run', 'tiny-0', '--seeds', 1, *tiny)
    assert read(results, 'tiny-0', 0)['commit'] is None


def test_a_run_that_diverges_is_kept_marked_and_not_run_again(tiny, results, monkeypatch):
    monkeypatch.setitem(ROWS, 'tiny-0', TINY_ROWS['tiny-0']._replace(
        options=dict(TINY_ROWS['tiny-0'].options, lr=1e30)))
    output = succeed('run', 'tiny-0', 'tiny-1', '--seeds', 1, '--together', 2, *tiny)
    assert 'tiny-0, seed 0: diverged' in output and 'tiny-1, seed 0: finished' in output
    result = read(results, 'tiny-0', 0)
    assert result['state'] == 'diverged' and 'the run diverged' in result['error'] and result['test_error'] is None
    assert succeed('run', 'tiny-0', 'tiny-1', '--seeds', 1, *tiny).startswith('All 2 runs have a result in ')
    assert 'seed 0 diverged at step 10 of 20' in succeed('list', '--results', results)


def test_a_second_campaign_leaves_a_run_to_the_first_and_says_so_if_nothing_else_is_missing(tiny, results, tmp_path):
    with lock_folder(tmp_path / 'runs' / 'tiny-0.seed0'):
        output = succeed('run', 'tiny-0', 'tiny-1', '--seeds', 1, *tiny)
        assert 'tiny-1, seed 0: finished' in output and 'tiny-0, seed 0' not in output
        assert '1 runs are missing, 1 of them left to other processes: run again' in output
        assert 'another process trains in' in refusal('run', 'tiny-0', '--seeds', 1, *tiny)
    assert 'tiny-0, seed 0: finished' in succeed('run', 'tiny-0', '--seeds', 1, *tiny)


def test_shares_are_all_the_runs_each_once(tiny, results):
    todo = [(key, seed) for seed in range(5) for key in ROWS]
    parts = [todo[share_of(f'{rank}/7')] for rank in range(7)]
    assert sorted(run for part in parts for run in part) == sorted(todo)
    succeed('run', 'tiny-*', '--seeds', 1, '--share', '1/2', *tiny)
    assert [path.name for path in (results / 'tables').iterdir()] == ['tiny-1.seed0.json']


def test_a_rank_of_torchrun_takes_its_share(monkeypatch):
    monkeypatch.setenv('RANK', '2')
    monkeypatch.setenv('WORLD_SIZE', '4')
    assert share_of(None) == slice(2, None, 4) and share_of('0/2') == slice(0, None, 2)


# Other rows of the same names, for campaigns that are stopped
LONGER_ROWS = {f'tiny-{i}': Row(
    '-', f'case {i}', 'preact_resnet20', None, model_kwargs=TINY,
    options=dict(recipe='modern', epochs=4, batch_size=32)) for i in range(3)}
SMALL_CAMPAIGN = f"""
from train.tables import ROWS, app
from train.rows import Row
ROWS.update({LONGER_ROWS})
app()
"""


@pytest.fixture
def longer(tiny, monkeypatch):
    """Of this process the rows of `campaign` too."""
    for key, row in LONGER_ROWS.items():
        monkeypatch.setitem(ROWS, key, row)
    return tiny


def campaign(*arguments, **options):
    """Three runs at once in a process of its own, all that differs from a user's being that the rows are tiny."""
    words = ['run', 'tiny-*', '--seeds', '1', '--together', '3', *map(str, arguments)]
    return subprocess.Popen([sys.executable, '-c', SMALL_CAMPAIGN, *words], cwd=ROOT, stdout=subprocess.PIPE,
                            stderr=subprocess.PIPE, text=True, **options)


def test_a_campaign_killed_at_any_moment_loses_no_checkpoint_and_counts_no_run_twice(longer, results, tmp_path):
    """SIGKILL after the first checkpoints, twice, then to the end: the results are those of a campaign left alone."""
    runs = tmp_path / 'runs'
    for checkpoints in (1, 3):
        process = campaign(*longer)
        while process.poll() is None and len(list(runs.glob('*/checkpoint.pt'))) < checkpoints:
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert len(list(runs.glob('*/checkpoint.pt'))) == 3
    output = succeed('run', 'tiny-*', '--seeds', 1, '--together', 3, *longer)
    assert sorted(line for line in output.split('\n') if line.endswith(': finished')) == [
        f'tiny-{i}, seed 0: finished' for i in range(3)]
    succeed('run', 'tiny-*', '--seeds', 1, '--together', 3, *longer[:2], '--runs', tmp_path / 'whole', '--results',
            tmp_path / 'whole_results')
    for i in range(3):
        killed, whole = (read(folder, f'tiny-{i}', 0) for folder in (results, tmp_path / 'whole_results'))
        assert killed['weights_sha256'] == whole['weights_sha256'] and len(killed['curve']) == len(whole['curve']) == 4
    assert len(list((results / 'tables').iterdir())) == 3


def test_two_campaigns_at_once_share_the_runs(tiny, results):
    processes = [campaign(*tiny, '--together', '1') for _ in range(2)]
    outputs = [process.communicate() for process in processes]
    ended = [line for output, _ in outputs for line in output.split('\n') if line.endswith(': finished')]
    assert sorted(ended) == [f'tiny-{i}, seed 0: finished' for i in range(3)], outputs


def test_a_disk_that_is_full_ends_with_a_sentence_and_what_was_written_is_whole(longer, results, tmp_path):
    """A limit on the size of files in place of a full disk: the checkpoint does not fit, the result file would."""
    whole = campaign(*longer)
    while whole.poll() is None and len(list((tmp_path / 'runs').glob('*/checkpoint.pt'))) < 3:
        time.sleep(0.01)
    whole.send_signal(signal.SIGKILL)
    whole.communicate()
    before = {path: path.read_bytes() for path in (tmp_path / 'runs').glob('*/checkpoint.pt')}

    def limit():
        import resource
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))

    process = campaign(*longer, preexec_fn=limit)
    _, errors = process.communicate()
    assert process.returncode == 2
    assert errors.strip().split('\n')[-1].startswith('error: File too large: ')
    assert 'checkpoint.pt' in errors
    assert {path: path.read_bytes() for path in before} == before
    assert not list((results / 'tables').iterdir())
    succeed('run', 'tiny-*', '--seeds', 1, '--together', 3, *longer)


@pytest.fixture
def other_data(small_folder, tmp_path):
    """The same images with their colours reversed."""
    folder = tmp_path / 'other_data'
    folder.mkdir()
    for split in ('train', 'test'):
        with np.load(small_folder / f'{split}.npz') as arrays:
            np.savez(folder / f'{split}.npz', **dict(arrays, images=255 - arrays['images']))
    return folder


def test_results_and_runs_are_used_for_their_own_data_only(tiny, results, tmp_path, small_folder, other_data):
    succeed('run', 'tiny-0', '--seeds', 1, *tiny)
    path, folder = locate_result(results, 'tiny-0', 0), tmp_path / 'runs' / 'tiny-0.seed0'
    again = 'run', 'tiny-0', '--seeds', 1, '--data', other_data, '--runs', tmp_path / 'runs', '--results'
    assert refusal(*again, results) == (
        f'error: {path} was measured on other images (--data {small_folder}) than --data {other_data}: choose another '
        f'--results.\n')
    assert 'was measured on other images' in refusal('run', 'tiny-1', *again[2:], results)  # a row without results
    assert refusal(*again, tmp_path / 'others') == (
        f'error: {folder} was trained on other images (--data {small_folder}) than --data {other_data}: choose another '
        f'--runs.\n')
    succeed('run', 'tiny-0', '--seeds', 1, '--data', other_data, '--runs', tmp_path / 'other_runs', '--results',
            tmp_path / 'others')
    assert read(tmp_path / 'others', 'tiny-0', 0)['data']['train_sha256'] == load_image_set(other_data, 'train').sha256


def test_a_run_that_was_cut_on_other_data_keeps_its_result(results, tiny, other_data):
    write(results, 'tiny-0', [None], state='cut')
    path = locate_result(results, 'tiny-0', 0, cut=True)
    before = path.read_bytes()
    assert 'was measured on other images' in refusal('run', 'tiny-0', '--seeds', 1, *tiny)
    assert path.read_bytes() == before


def test_a_finished_run_without_a_result_gets_it_from_its_folder(tiny, results, tmp_path):
    succeed('run', 'tiny-0', '--seeds', 1, *tiny)
    whole, folder = read(results, 'tiny-0', 0), tmp_path / 'runs' / 'tiny-0.seed0'
    before = {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()}
    locate_result(results, 'tiny-0', 0).unlink()
    succeed('run', 'tiny-0', '--seeds', 1, *tiny)
    assert read(results, 'tiny-0', 0) == whole == json.loads(before['run.json'][0])
    assert {path.name: (path.read_bytes(), path.stat().st_mtime_ns) for path in folder.iterdir()} == before


def test_a_run_is_continued_under_its_own_conditions_or_with_leave(tiny, results, tmp_path):
    campaign = Campaign(str(tiny[1]), tmp_path / 'runs', results, CPU, 1, False, True)
    folder = cut(campaign.open('tiny-0', 0), 3)
    state = torch.load(folder / 'checkpoint.pt', weights_only=True)
    state['sessions'][0].update(processes=2, bn_group=16)
    torch.save(state, folder / 'checkpoint.pt')
    result = invoke('run', 'tiny-0', '--seeds', 1, *tiny)
    assert result.exit_code == 2 and '(processes 2 before and 1 now, bn_group 16 before and 32 now)' in result.output
    succeed('run', 'tiny-0', '--seeds', 1, '--allow-changes', *tiny)
    assert [(session['first_step'], session['processes']) for session in read(results, 'tiny-0', 0)['sessions']] == [
        (0, 2), (3, 1)]


def test_own_data_is_kept_out_of_the_papers_tables(tiny, tmp_path, small_folder, monkeypatch):
    for options in ((), ('--results', os.path.relpath(RESULTS))):
        result = invoke('run', 'tiny-0', '--seeds', 1, *tiny[:4], *options)
        assert result.exit_code == 2 and 'is not cifar10: name a folder of its own by --results' in result.output
    assert data_of(ROWS['164-full-cifar100'], str(small_folder)) == str(small_folder)
    assert data_of(ROWS['164-full-cifar100'], 'uoft-cs') == 'uoft-cs/cifar100'
    assert data_of(ROWS['164-full-cifar100'], 'me/tiny') == 'me/tiny'
    (tmp_path / 'cifar10').mkdir()
    assert data_of(ROWS['110-full'], str(tmp_path)) == str(tmp_path / 'cifar10')
    monkeypatch.chdir(tmp_path)
    assert 'there is no folder data here: name the images by --data' in invoke('run', '110-full').output


def test_what_is_no_row_no_time_or_no_share_is_refused(results, tmp_path):
    assert 'is no row' in refusal('run', '110-none', '--runs', tmp_path)
    assert 'write 90s, 25m or 2h' in refusal('run', '110-full', '--budget', 'soon', '--runs', tmp_path)
    assert 'name rows, or all' in refusal('run', '--runs', tmp_path)
    assert 'write K/N' in refusal('run', '110-full', '--share', '2/2')
    assert '--together must be at least 1, got 0.' in refusal('run', '110-full', '--together', '0')
    assert '--seeds must be at least 1, got 0.' in refusal('run', '110-full', '--seeds', '0')
    assert '--device abacus is not there' in refusal('run', '110-full', '--device', 'abacus')


def test_the_command_of_a_row_is_the_papers_recipe(tmp_path):
    command = ' '.join(command_of('110-full', 3, 'uoft-cs', tmp_path / 'out'))
    assert command.startswith('preact_resnet110 --data uoft-cs/cifar10 --recipe paper --bn-group 64 --seed 3')


def test_a_figure_compares_the_rows_that_have_runs(results, capsys):
    write(results, '20-orig', [19.])
    write(results, '20-bn_after_add', [20.5, 20.])
    assert 'small_figure6: 20 layers: BN after addition\n' in succeed('plot', '--results', results)
    assert [path.name for path in results.glob('*.png')] == ['small_figure6.png']
    assert '![small_figure6](small_figure6.png)' in format_report(results, collect(results))


def test_every_figure_compares_rows_with_the_original():
    for panels in [*FIGURES.values(), *SMALL_FIGURES.values()]:
        for original, other in panels.values():
            assert original in ROWS and other in ROWS and original.endswith('-orig') and original != other


def test_the_reports_are_what_the_result_files_say():
    """A number in them is re-derived here from the files, without the code that wrote it."""
    found = collect(RESULTS)
    assert (RESULTS / 'README.md').read_text() == format_report(RESULTS, found)
    text = (DOCS / 'tables.md').read_text()
    by_row = {}
    for path in (RESULTS / 'tables').glob('*.json'):
        result = json.loads(path.read_text())
        if result['state'] == 'finished':
            by_row.setdefault(result['row'], []).append(result['curve'][-1]['test_error'])
    assert by_row, 'no result ships'
    for key, errors in by_row.items():
        line = next(line for line in text.split('\n') if line.startswith(f'| `{key}` |'))
        count = f'{len(errors)} of 5' if len(errors) < 5 else '5'
        assert f'| {statistics.median(errors):.2f} | {count} |' in line


def test_every_result_that_ships_counts_and_says_what_made_it():
    found = collect(RESULTS)
    assert sum(map(len, found.values())) == len(list((RESULTS / 'tables').glob('*.json')))
    for runs in found.values():
        for result in runs:
            assert [result['data']['train_sha256'], result['data']['test_sha256']] == CIFAR[ROWS[result['row']].data]
            assert len(result['weights_sha256']) == 64
            if result['row'] not in TRAINED_ROWS:  # by train.cifar, before it noted what it was
                assert result['commit'] and len(result['trainer_sha256']) == 64
            assert not re.search(r'[ =]/', result['command']), 'a path of one machine'


def test_the_slurm_array_is_a_script_with_options_that_exist():
    script = ROOT / 'train' / 'tables.sbatch'
    subprocess.run(['bash', '-n', script], check=True)
    options = set(re.findall(r'\s(--[a-z]+)', script.read_text().split('python -m')[1].split('|')[0]))
    offered = succeed('run', '--help')
    assert len(options) == 6 and all(option in offered for option in options)
    assert 'runs are missing' in script.read_text()


def test_seeds_that_train_as_one_are_taken_together_and_shared_together():
    everything = slice(None)
    assert order_of(['a', 'b'], 2, 1, everything) == [('a', 0), ('b', 0), ('a', 1), ('b', 1)]
    assert order_of(['a', 'b'], 5, 3, everything) == [
        ('a', 0), ('a', 1), ('a', 2), ('b', 0), ('b', 1), ('b', 2), ('a', 3), ('a', 4), ('b', 3), ('b', 4)]
    assert order_of(['a', 'b'], 5, 5, slice(1, None, 2)) == [('b', seed) for seed in range(5)]
