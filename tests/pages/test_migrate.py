"""The table of docs/migrate.md: what it says of layouts that no other test loads."""
import pytest
import timm
import torch
import torchvision
from pytorchcv.model_provider import get_model

import timm_preact  # noqa: F401
from timm_preact.weights.keymaps import source_of, to_ours


def assert_same(ours, theirs, source, size):
    """The logits, after a network with statistics other than a fresh one's."""
    torch.manual_seed(0)
    for module in theirs.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    tensors = theirs.eval().state_dict()
    ours.eval().load_state_dict(to_ours(tensors, source or source_of(tensors), ours))
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = theirs(images)
        assert (ours(images) - expected).abs().max() <= 1e-5 * expected.abs().max()


@pytest.mark.parametrize('depth', [18, 34, 50])
def test_torchvisions_other_depths_are_the_original_placement(depth):
    ours = timm.create_model(f'preact_resnet{depth}', placement='orig', num_classes=5)
    assert_same(ours, torchvision.models.get_model(f'resnet{depth}', num_classes=5), 'torchvision', 64)


def test_pytorchcvs_networks_without_b_have_the_stride_on_the_first_1x1():
    assert_same(timm.create_model('preact_resnet50', stride_on='1x1'), get_model('preresnet50'), None, 224)
