"""Training steps are measured as the script names them, here on a CPU."""
import json

from support.commands import run

from benchmarks import steps
from benchmarks.training import write_npz


def test_steps_are_measured_alone_together_in_processes_and_beside_a_plain_loop(sets, results):
    write_npz(results, {split: images._replace(images=images.images[:, ::2, ::2])
                        for split, images in zip(('train', 'test'), sets, strict=True)})
    result = run(steps.main, '--data', results, '--model', 'preact_resnet20', '--device', 'cpu', '--together', 2,
                 '--steps', 1, '--warm-up', 1, '--rounds', 1)
    assert result.exit_code == 0, result.output
    assert '64000 steps and' in result.output and 'minutes at these rates' in result.output
    measured = json.loads((results / 'benchmark_steps_preact_resnet20_cpu.json').read_text())
    assert list(measured['medians']) == [
        'train.run', 'plain loop, bfloat16', 'plain loop, float32', 'train.run, 2 runs together',
        'train.run, 2 processes']
    assert all(rate > 0 for rate in measured['medians'].values()) and min(measured['evaluation_seconds']) > 0
    assert {'command', 'hardware', 'environment', 'versions', 'commit'} <= set(measured)


def test_a_device_that_is_not_there_is_refused(npz_folder):
    result = run(steps.main, '--data', npz_folder, '--device', 'abacus')
    assert result.exit_code == 2 and '--device abacus is not there' in result.output
