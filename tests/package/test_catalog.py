"""The catalog's sizes are the networks' own."""
import pytest
import timm

from timm_preact import preact_resnet
from timm_preact.catalog import (
    DEMO_MODEL,
    MEASURED,
    PAPER,
    SIZES,
    count_macs,
    depth_of,
    error_of,
    find_best,
    find_better,
    list_networks,
)
from timm_preact.errors import UserError
from timm_preact.preact_resnet import MODEL_ARGS


@pytest.mark.parametrize('name', MODEL_ARGS)
def test_parameters_and_multiply_adds_are_listed(name):
    input_size, size = timm.get_pretrained_cfg(name).input_size, SIZES[name]
    # PyTorch takes longer over a thousand BatchNorms of the meta device than a CPU over those of a small image
    model = timm.create_model(name, device='cpu' if len(MODEL_ARGS[name]['layers']) == 3 else 'meta')
    assert sum(p.numel() for p in model.parameters()) == size.params
    assert count_macs(model, input_size) == size.macs


@pytest.mark.parametrize('name', MODEL_ARGS)
def test_the_depth_in_a_name_is_its_number_of_weight_layers(name):
    """Convolutions of the main path and the classifier; a 1-layer or basic or bottleneck unit has 1, 2 or 3."""
    model = timm.create_model(name, device='meta')
    units = [unit for stage in model.stages for unit in stage.blocks]
    convolutions = sum(key.startswith('conv') for unit in units for key, _ in unit.residual.named_children())
    assert convolutions + 2 == depth_of(name)


def test_every_number_of_the_paper_belongs_to_a_registered_name():
    assert set(PAPER) <= set(SIZES) == set(MODEL_ARGS)


def test_every_network_is_listed_with_its_facts():
    rows = list_networks()
    assert {row['name'] for row in rows} == set(MODEL_ARGS)
    row = next(row for row in rows if row['name'] == 'preact_resnet1001' and row['data_set'] == 'cifar100')
    assert (row['depth'], row['params'], row['paper_error']) == (1001, 10_327_706, 22.71)
    row = next(row for row in rows if row['name'] == 'preact_resnet20')
    assert row['weights'] and row['our_error'] == MEASURED[DEMO_MODEL]
    row = next(row for row in rows if row['name'] == 'preact_resnet200_fb')
    assert (row['paper_error'], row['published_error']) == (20.1, 21.66)


def test_a_pattern_lists_what_it_matches_and_no_network_of_others():
    assert {row['name'] for row in list_networks('*resnet20*')} == {name for name in MODEL_ARGS if 'resnet20' in name}
    with pytest.raises(UserError, match='no network matches resnet50'):
        list_networks('resnet50')


def test_rows_are_sorted_by_the_error_of_weights_of_one_data_set():
    rows = list_networks(data='imagenet', sort='error')
    errors = [error_of(f"{row['name']}.{row['data_set']}") for row in rows]
    known = [error for error in errors if error is not None]
    assert known == sorted(known) and len(known) >= 14 and set(errors[len(known):]) == {None}
    assert rows[0]['name'] == 'preact_resnet101_timm'
    assert all(row['data_set'].endswith('in1k') for row in rows)
    assert list_networks(data='in1k', sort='error') == rows


@pytest.mark.parametrize('kwargs, message', [
    (dict(data='mnist'), 'data must be one of cifar10, cifar100, svhn, imagenet'),
    (dict(sort='size'), 'sort must be one of name, error')])
def test_an_unknown_data_set_or_order_is_refused(kwargs, message):
    with pytest.raises(UserError, match=message):
        list_networks(**kwargs)


def test_one_row_of_each_data_set_and_depth_is_the_best():
    rows = list_networks()
    best = {(row['data_set'].rpartition('_')[2], row['depth']): row for row in rows if row['best']}
    assert best['in1k', 50]['name'] == 'preact_resnet50_timm' and best['cifar10', 110]['name'] == 'preact_resnet110_pcv'
    for row in rows:
        error = error_of(f"{row['name']}.{row['data_set']}")
        if error is not None:
            winner = best[row['data_set'].rpartition('_')[2], row['depth']]
            assert error >= error_of(f"{winner['name']}.{winner['data_set']}")


@pytest.mark.parametrize('data', ['cifar10', 'cifar100', 'svhn', 'in1k'])
def test_the_best_weights_by_size_are_smaller_or_better_than_each_other(data):
    best = find_best(data)
    sizes = [SIZES[key.partition('.')[0]].params for key in best]
    errors = [error_of(key) for key in best]
    assert sizes == sorted(set(sizes)) and errors == sorted(errors, reverse=True) and len(best) > 2


def test_the_documentation_of_a_bare_name_states_where_better_weights_are():
    better = {name: find_better(name) for name in MODEL_ARGS}
    assert better['preact_resnet50'] == ['preact_resnet50_timm.a1h_in1k'] and not better['preact_resnet152']
    for name, keys in better.items():
        doc = getattr(preact_resnet, name).__doc__
        siblings = {key.partition('.')[0] for key in keys}
        assert len(siblings) < 2 and ('Better weights' in doc) == bool(siblings)
        assert all(f'`{sibling}`' in doc for sibling in siblings)
