"""What `python -m benchmarks.gpu` writes and prints of a card."""
import json

import pytest
import torch
from support.commands import run

from benchmarks import gpu
from benchmarks.tables import format_gpu
from timm_preact.provenance import record


def write(folder, section, results):
    facts = record('python -m benchmarks.gpu', torch.device('cpu'))
    (folder / f'{section}.json').write_text(json.dumps(dict(facts, seconds=1., results=results)))


def test_results_become_tables_and_nothing_else_does(tmp_path):
    assert format_gpu(tmp_path) == 'No card has run it yet.'
    write(tmp_path, 'cifar', {
        'five seeds': dict(images_per_second=80_000., goal=85_000), 'alone': dict(error='RuntimeError: no'),
        'five seeds: kernels': dict(convolution_kernel=dict(launches=109, microseconds=3.))})
    setting = dict(name='preact_resnet50', task='inference', dtype='bfloat16', batch_size=1, image_size=224)
    write(tmp_path, 'inference', {'net, inference, batch 1': dict(setting=setting, contestants={
        'optimize()': dict(images_per_second=300., memory=50),
        'timm resnetv2_50': dict(images_per_second=100., memory=100)})})
    found = format_gpu(tmp_path)
    assert '| five seeds | 80,000 | 85,000 |' in found and 'alone' not in found and 'kernels' not in found
    assert '| net, inference, batch 1: optimize() | 300 | timm resnetv2_50: 100 | 3.00 | 0.50 |' in found
    assert 'CPU' in found


def test_a_section_writes_as_it_goes(tmp_path, monkeypatch):
    def section(scale, device):
        yield 'first', 1
        raise RuntimeError('the card is gone')

    monkeypatch.setitem(gpu.SECTIONS, 'broken', (section, 1))
    with pytest.raises(RuntimeError):
        gpu.measure('broken', gpu.SMALL, torch.device('cpu'), tmp_path)
    assert json.loads((tmp_path / 'broken.json').read_text())['results'] == {'first': 1}


def test_the_sections_take_under_seven_minutes():
    assert sum(seconds for _, seconds in gpu.SECTIONS.values()) < 420


@pytest.mark.parametrize('arguments, sentence', [
    (['--small', '--sections', 'all'], '--sections all is not known: choose from tests, cifar'),
    *([] if torch.cuda.is_available() else [([], 'cuda')])])
def test_what_cannot_be_measured_ends_with_a_sentence(tmp_path, arguments, sentence):
    done = run(gpu.main, '--to', tmp_path, *arguments)
    assert done.exit_code == 2 and sentence in done.output
