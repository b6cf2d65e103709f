"""The catalog's sizes are the networks' own."""
import pytest
import timm

from timm_preact.catalog import DEMO_MODEL, MEASURED, PAPER, SIZES, count_macs, depth_of, list_networks
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
