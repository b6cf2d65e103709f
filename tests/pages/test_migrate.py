"""The table of docs/migrate.md: what it says of layouts that no other test loads."""
import pytest
import timm
import torch
import torchvision
from pytorch_cifar import PreActResNet50
from pytorchcv.model_provider import get_model

from timm_preact.preact_resnet import PreActResNet
from timm_preact.weights.keymaps import KEY_MAPS, KeyMap, source_of, to_ours


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


def test_pytorch_cifars_bottlenecks_take_the_arguments_that_the_page_names(monkeypatch):
    monkeypatch.setitem(KEY_MAPS, 'pytorch_cifar', KeyMap('pytorch-cifar', mark='layer1.0.bn1.weight', modules={
        'stem.conv': 'conv1',
        'stages.S.blocks.U.pre': 'layer{s+1}.{u}.bn1',
        'stages.S.blocks.U.residual.convI': 'layer{s+1}.{u}.conv{i}',
        'stages.S.blocks.U.residual.normI': 'layer{s+1}.{u}.bn{i+1}',
        'stages.S.blocks.U.shortcut.conv': 'layer{s+1}.{u}.shortcut.0',
        'head.fc': 'linear',
    }))
    ours = PreActResNet(
        layers=(3, 4, 6, 3), channels=(256, 512, 1024, 2048), stem_chs=64, activated_shortcuts=('transition',),
        num_classes=10, kernels=(1, 3, 1), bottle_ratio=0.25, stride_on='3x3')
    ours.norm = torch.nn.Identity()
    assert_same(ours, PreActResNet50(), 'pytorch_cifar', 32)
