"""Eight-bit integers are measured beside float32 and bfloat16."""
import json

from support.commands import run

from benchmarks import int8


def test_errors_times_and_sizes_are_measured(npz_folder, results):
    assert run(int8.main, '--data', npz_folder, '--rounds', 1).exit_code == 0
    result = json.loads((results / 'int8_preact_resnet20.json').read_text())
    assert result['test_images'] == 100 and {'onnx', 'onnxruntime', 'onnxscript'} <= set(result['versions'])
    assert abs(result['error']['int8'] - result['error']['float32']) <= 3
    assert abs(result['error']['bfloat16'] - result['error']['float32']) <= 2
    assert result['bytes']['int8'] < 0.4 * result['bytes']['float32']
    assert all(len(times) == 1 for kinds in result['rounds'].values() for times in kinds.values())
