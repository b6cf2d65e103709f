"""The catalog's sizes are the networks' own."""
import pytest
import timm

from timm_preact.catalog import PAPER, SIZES, count_macs, depth_of
from timm_preact.preact_resnet import MODEL_ARGS


@pytest.mark.parametrize('name', MODEL_ARGS)
def test_parameters_and_multiply_adds_are_listed(name):
    input_size, size = timm.get_pretrained_cfg(name).input_size, SIZES[name]
    # PyTorch takes longer over a thousand BatchNorms of the meta device than a CPU over those of a small image
    model = timm.create_model(name, device='meta' if input_size[-1] > 32 else 'cpu')
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
