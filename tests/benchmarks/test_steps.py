"""The benchmark of steps runs what it names, here on a CPU."""
import json

import pytest
from typer.testing import CliRunner

from train import benchmark


def test_steps_are_measured_alone_together_in_processes_and_beside_a_plain_loop(sets, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, 'RESULTS', tmp_path)
    benchmark.write_npz(tmp_path, {split: images._replace(images=images.images[:, ::2, ::2])
                                   for split, images in zip(('train', 'test'), sets, strict=True)})
    result = CliRunner().invoke(benchmark.app, [
        'steps', '--data', str(tmp_path), '--model', 'preact_resnet20', '--device', 'cpu', '--together', '2',
        '--steps', '1', '--warm-up', '1', '--rounds', '1'], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert '64000 steps and' in result.output and 'minutes at these rates' in result.output
    measured = json.loads((tmp_path / 'benchmark_steps_preact_resnet20_cpu.json').read_text())
    assert list(measured['medians']) == [
        'train.run', 'plain loop, bfloat16', 'plain loop, float32', 'train.run, 2 runs together',
        'train.run, 2 processes']
    assert all(rate > 0 for rate in measured['medians'].values()) and min(measured['evaluation_seconds']) > 0


def test_a_device_that_is_not_there_is_refused(npz_folder):
    arguments = ['steps', '--data', str(npz_folder), '--device', 'abacus']
    result = CliRunner().invoke(benchmark.app, arguments, catch_exceptions=False)
    assert result.exit_code == 2 and '--device abacus is not there' in result.output


@pytest.mark.parametrize('command', ['training', 'steps', 'creation', 'imports', 'compilation'])
def test_every_command_explains_itself(command):
    assert CliRunner().invoke(benchmark.app, [command, '--help']).exit_code == 0
