"""Results become rows of tables: checked by hand on small results."""
import pytest

from benchmarks import tables

SETTING = dict(name='preact_resnet50', task='inference', dtype='float32', batch_size=4)
ROWS = {'optimize()': dict(images_per_second=300., memory=50), 'as created': dict(images_per_second=90., memory=100),
        'timm resnetv2_50': dict(images_per_second=100., memory=100),
        'torchvision resnet50': dict(images_per_second=150., memory=None)}


@pytest.mark.parametrize('chosen, shown', [
    (['preact_resnet50'], True), ([('preact_resnet50', 'inference', 'float32', 4)], True),
    ([('preact_resnet50', 'inference', 'float32', 1)], False), (['preact_resnet5'], False)])
def test_speed_is_of_the_chosen_networks_against_the_fastest_peer(chosen, shown):
    lines = tables.format_speed([dict(runs=[dict(setting=SETTING, contestants=ROWS)])], chosen).split('\n')
    assert lines[2:] == ['| `preact_resnet50` inference, float32, batch 4: `optimize()` | 300.0 | '
                         'torchvision resnet50: 150.0 | 2.00 | - |'] * shown


def test_ratios_are_of_the_first_contestant():
    result = dict(unit='s', medians=dict(ours=1., peer=4., other=0.5))
    assert tables.format_ratios({'walk': result}).split('\n')[2:] == [
        '| walk: `ours` | 1.00 s | `peer` | 4.00 s | 0.25 |', '| walk: `ours` | 1.00 s | `other` | 0.50 s | 2.00 |']


def test_steps_have_rates_and_gigabytes():
    result = dict(medians=dict(net=1234.5), peak_memory_bytes=dict(net=3 * 2 ** 29))
    assert tables.format_steps(result).endswith('| `net` | 1,234 | 1.5 GiB |')


def test_calls_of_a_compiled_net_stand_in_one_row():
    medians = {f'net, units: {call}': value for call, value in (
        ('first call', 12.34), ('second call', 0.5), ('later calls', 0.25))}
    assert tables.format_compilation(dict(medians=medians)).endswith('| net, units | 12.3 | 0.5 | 0.25 |')


def test_growth_is_in_units_of_a_thousand_layers():
    line = dict(slope=2e-6, intercept=1e-3, r2=0.99996)
    result = dict(families=dict(basic=dict(inference=dict(unit='seconds an image', line=line))))
    assert tables.format_growth(result).endswith('| inference, ms an image | basic | 2.0 | 1.0 | 1.0000 |')


def test_a_type_that_was_not_timed_has_a_dash():
    result = dict(error=dict(float32=8.5, bfloat16=8.4, int8=8.7), bytes=dict(float32=2000, int8=900),
                  milliseconds_per_image={'batch 1': dict(float32=0.3, int8=0.2)})
    assert tables.format_int8(result).split('\n')[2:] == [
        '| error, % | 8.50 | 8.40 | 8.70 |', '| ms an image in onnxruntime, batch 1 | 0.30 | - | 0.20 |',
        '| bytes of the file | 2,000 | - | 900 |']
