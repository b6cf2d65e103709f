"""What every experiment prints and writes, and the commands by which they are called."""
import json
import runpy
import sys

import pytest
from support.commands import run

from benchmarks import compilation, depth, imagenet, int8, propagation, startup, steps, training
from benchmarks.side_by_side import compare
from train import places
from train.benchmark import app as former


def test_contestants_are_printed_and_every_round_is_written(results, capsys):
    values = iter([4., 2., 1., 8.])
    contestants = dict(ours=lambda: next(values), peer=lambda: next(values))
    medians = compare('python -m benchmarks.trial', 'trial', 's', contestants, 2, packages=['pytorchcv'], batch_size=3)
    assert medians == dict(ours=6., peer=1.5)
    written = json.loads((results / 'benchmark_trial.json').read_text())
    assert written['rounds'] == dict(ours=[4., 8.], peer=[2., 1.]) and written['medians'] == medians
    assert written['command'].startswith('python -m benchmarks.trial') and written['versions']['pytorchcv']
    assert written['unit'] == 's' and written['batch_size'] == 3
    assert '4.00' in capsys.readouterr().out  # ours / this


@pytest.mark.parametrize('script', [training, steps, imagenet, compilation, propagation, depth, int8],
                         ids=lambda script: script.__name__)
def test_a_script_explains_itself(script):
    assert run(script.main, '--help').exit_code == 0


def test_the_command_line_and_creation_are_measured(results):
    done = [run(startup.measure_creation, '--rounds', 1), run(startup.measure_imports, '--rounds', 1)]
    assert [result.exit_code for result in done] == [0, 0]
    creation, imports = (json.loads((results / f'benchmark_{name}.json').read_text())
                         for name in ('creation', 'imports'))
    assert all(seconds > 0 for seconds in creation['medians'].values())
    assert imports['medians']['import timm_preact, after timm'] < imports['medians']['import timm']


def recorded():
    """The commands of all result files on speed and memory."""
    return sorted({json.loads(path.read_text())['command'] for path in places.BENCHMARKS.glob('*.json')})


@pytest.mark.parametrize('command', recorded())
def test_the_command_of_a_result_file_still_works(command, monkeypatch, capsys):
    """Its script is found and takes its options; --help behind them keeps it from measuring."""
    program, *words = command.split()
    module = 'timm_preact' if program == 'timm-preact' else words[1]
    if program != 'timm-preact':
        monkeypatch.delitem(sys.modules, module, raising=False)  # it starts anew
    monkeypatch.setattr(sys, 'argv', [module, *(words if program == 'timm-preact' else words[2:]), '--help'])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(module, run_name='__main__', alter_sys=True)
    assert not ended.value.code and 'Usage' in capsys.readouterr().out


def test_the_former_address_has_every_experiment():
    assert {command.name for command in former.registered_commands} == {
        'training', 'steps', 'imagenet', 'creation', 'imports', 'compilation', 'propagation'}
