"""Initial weights, and the running variances that keep an untrained net finite."""
import copy
import math

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import nn

import timm_preact  # noqa: F401
from timm_preact.unit import MERGES, PLACEMENTS, Merge, ZeroPadShortcut

IMAGENET = dict(layers=(1, 1, 1, 1))


def modules(model, kind):
    return [module for module in model.modules() if isinstance(module, kind)]


@pytest.mark.parametrize('name, kwargs', [
    ('preact_resnet56', {}),
    ('preact_resnet164', {}),
    ('preact_resnet110_orig_shortcut_gate', {}),
    ('preact_resnet110_orig_conv_shortcut', {}),
    ('preact_resnet18', IMAGENET),
    ('preact_resnet50', IMAGENET),
])
def test_convolutions_start_with_he_et_al(name, kwargs):
    """N(0, 2 / (k * k * out_chs)), as the paper's code draws them."""
    torch.manual_seed(0)
    convs = modules(timm.create_model(name, **kwargs), nn.Conv2d)
    for conv in convs:
        normalised = conv.weight.detach() / math.sqrt(2 / (conv.kernel_size[0] ** 2 * conv.out_channels))
        assert abs(normalised.mean().item()) < 5 / math.sqrt(normalised.numel())
        assert normalised.std().item() == pytest.approx(1, abs=5 / math.sqrt(2 * normalised.numel()))
    assert len(convs) > 5


@pytest.mark.parametrize('name, kwargs, width', [
    ('preact_resnet56', dict(num_classes=100), 64),
    ('preact_resnet164', {}, 256),
    ('preact_resnet50', IMAGENET, 2048),
])
def test_the_classifier_starts_uniform_without_bias(name, kwargs, width):
    """U(-1 / sqrt(in), 1 / sqrt(in)): Torch's default for a Linear, with the bias set to zero."""
    torch.manual_seed(0)
    fc = timm.create_model(name, **kwargs).get_classifier()
    scaled = fc.weight.detach() * math.sqrt(width)
    assert fc.in_features == width
    assert 0.98 < scaled.max() <= 1.0001 and -1.0001 <= scaled.min() < -0.98
    assert scaled.std().item() == pytest.approx(1 / math.sqrt(3), rel=0.05)
    assert not fc.bias.any()


@pytest.mark.parametrize('placement', PLACEMENTS)
def test_norms_start_as_the_identity_of_normalised_maps(placement):
    norms = modules(timm.create_model('preact_resnet20', placement=placement), BatchNormAct2d)
    assert all(norm.weight.eq(1).all() and not norm.bias.any() and not norm.running_mean.any() for norm in norms)


@pytest.mark.parametrize('merge', ['excl_gate', 'shortcut_gate'])
def test_gates_start_almost_open_to_the_shortcut(merge):
    """Table 1: b_g = -6."""
    model = timm.create_model(f'preact_resnet110_orig_{merge}', layers=(1, 1, 1))
    gates = [module for name, module in model.named_modules() if name.endswith('merge.gate')]
    assert len(gates) == 3
    assert all(gate.bias.eq(-6).all() for gate in gates)


# Running variances


@pytest.mark.parametrize('name, least', [
    ('preact_resnet110', 0.01),
    ('preact_resnet110_orig', 0.01),
    ('preact_resnet110_bn_after_add', 0.01),
    ('preact_resnet110_relu_before_add', 0.01),
    ('preact_resnet110_relu_only', 0.01),
    ('preact_resnet110_1layer', 0.01),
    ('preact_resnet110_orig_shortcut_gate', 0.01),
    ('preact_resnet110_orig_dropout_shortcut', 0.01),
    ('preact_resnet164', 0.01),
    ('preact_resnet1001', 0.01),
    ('preact_resnet1001_orig', 0.01),
    ('preact_resnet18_kuang', 0.01),
    ('preact_resnet50_orig_kuang', 0.01),
    ('preact_resnet50_wei', 0.01),
    # No path without factors: the draws of 54 of them multiply.
    ('preact_resnet110_orig_const_scale', 1e-6),
    ('preact_resnet110_orig_excl_gate', 1e-6),
    ('preact_resnet110_orig_conv_shortcut', 1e-6),
])
def test_an_untrained_net_is_finite_and_neither_tiny_nor_huge(name, least):
    torch.manual_seed(0)
    model = timm.create_model(name).eval()
    with torch.no_grad():
        features = model.forward_features(torch.randn(2, 3, 32, 32))
        logits = model.forward_head(features)
    assert least < features.square().mean().sqrt() < 100
    assert least / 2 < logits.std() < 100


def test_a_deep_net_would_overflow_with_running_variances_of_one():
    """What the running variances are for: the stream doubles with each of 333 units."""
    torch.manual_seed(0)
    model = timm.create_model('preact_resnet1001').eval()
    for norm in modules(model, BatchNormAct2d):
        norm.running_var.fill_(1)
    with torch.no_grad():
        assert not model(torch.randn(2, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize('name', [
    'preact_resnet20', 'preact_resnet164', 'preact_resnet110_orig', 'preact_resnet110_bn_after_add'])
def test_running_variances_have_no_part_in_training(name):
    torch.manual_seed(0)
    model = timm.create_model(name, layers=(2, 1, 1)).train()
    from_one = copy.deepcopy(model)
    for norm in modules(from_one, BatchNormAct2d):
        norm.running_var.fill_(1)
    assert any(not b.eq(1).all() for key, b in model.named_buffers() if key.endswith('running_var'))

    x, y = torch.randn(8, 3, 32, 32), torch.arange(8)
    for net in (model, from_one):
        optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-4)
        for _ in range(3):
            optimizer.zero_grad()
            F.cross_entropy(net(x), y).backward()
            optimizer.step()
    for key, parameter in model.named_parameters():
        assert torch.equal(parameter, from_one.get_parameter(key)), key


@pytest.mark.parametrize('name, kwargs', [
    ('preact_resnet56', {}),
    ('preact_resnet164', dict(layers=(9, 9, 9))),
    ('preact_resnet18_kuang', {}),
    ('preact_resnet50_wei', dict(layers=(2, 2, 2, 1))),
])
def test_running_variances_are_those_of_a_batch(name, kwargs):
    """The stream's norms in the order they run; the variance of its batches grows linearly with depth."""
    torch.manual_seed(0)
    model = timm.create_model(name, **kwargs).train()
    norms = modules(nn.ModuleList([*(block.pre for stage in model.stages for block in stage.blocks), model.norm]),
                    BatchNormAct2d)
    implied = torch.stack([norm.running_var.mean() for norm in norms])
    for norm in norms:
        norm.momentum = 1.
    with torch.no_grad():
        model(torch.randn(16, 3, 32, 32))
    ratios = torch.stack([norm.running_var.mean() for norm in norms]) / implied
    assert ratios.min() > 0.5 and ratios.max() < 2


def test_running_variances_follow_the_zeros_of_option_a():
    model = timm.create_model('preact_resnet56')
    kept = [module.kept for module in modules(model, ZeroPadShortcut)]
    assert kept == [0.5, 0.5]


@pytest.mark.parametrize('name', ['preact_resnet56', 'preact_resnet164', 'preact_resnet110_orig'])
def test_running_variances_know_of_branches_that_start_at_zero(name):
    """Without branches the stream keeps the variance of its stage."""
    torch.manual_seed(0)
    model = timm.create_model(name, layers=(4, 1, 1), zero_init_last=True).eval()
    with torch.no_grad():
        features = model.forward_features(torch.randn(4, 3, 32, 32))
    assert 0.01 < features.square().mean().sqrt() < 100
    variances = [getattr(unit.pre, 'running_var', torch.ones(1)).mean().item() for unit in model.stages[0].blocks]
    assert variances[1:] == pytest.approx(variances[1:2] * len(variances[1:]))


def test_the_meta_device_draws_nothing():
    model = timm.create_model('preact_resnet20', device='meta')
    assert all(tensor.is_meta for tensor in model.state_dict().values())


def test_a_net_made_on_meta_is_initialised_whole_by_init_weights():
    """As timm and FSDP do: structure first, memory later, then init_weights."""
    model = timm.create_model('preact_resnet110_orig_shortcut_gate', layers=(2, 2, 2), device='meta')
    model.to_empty(device='cpu')
    with torch.no_grad():
        for tensor in [*model.parameters(), *model.buffers()]:
            tensor.fill_(float('nan') if tensor.is_floating_point() else 7)
    model.init_weights()
    assert all(tensor.isfinite().all() for tensor in [*model.parameters(), *model.buffers()])
    assert model.stages[0].blocks[0].merge.gate.bias.eq(-6).all() and model.stem.norm.weight.eq(1).all()
    assert model.stem.norm.num_batches_tracked == 0


def test_a_seed_gives_the_weights_it_always_gave():
    """The numbers are of version 0.1.0; what follows in the generator shows that nothing more or less was drawn."""
    torch.manual_seed(0)
    model = timm.create_model('preact_resnet110')
    assert model.stem.conv.weight[0, 0, 0].tolist() == pytest.approx([0.0839478, -0.0933756, 0.0029977], abs=1e-6)
    assert model.head.fc.weight[0, :3].tolist() == pytest.approx([-0.0018370, 0.0611157, -0.1212069], abs=1e-6)
    assert torch.rand(2).tolist() == pytest.approx([0.3628478, 0.7126245], abs=1e-6)


def test_biases_of_convolutions_start_at_zero():
    model = timm.create_model('preact_resnet50_keras', layers=(1, 1, 1, 1))
    biases = [m.bias for m in model.modules() if isinstance(m, nn.Conv2d) and m.bias is not None]
    assert len(biases) == 9 and not any(bias.any() for bias in biases)


class Mixing(Merge):
    """A merge of one's own, with a matrix in it."""

    def __init__(self, channels, device=None, dtype=None):
        super().__init__()
        self.mix = nn.Conv2d(channels, channels, 1, device=device, dtype=dtype)

    def forward(self, shortcut, residual):
        return shortcut + self.mix(residual)


def test_a_merge_of_ones_own_keeps_the_weights_of_its_constructor_in_every_unit(monkeypatch):
    monkeypatch.setitem(MERGES, 'mixing', Mixing)
    model = timm.create_model('preact_resnet20', merge='mixing')
    weights = [merge.mix.weight for merge in modules(model, Mixing)]
    assert len(weights) == 9 and len({weight.data_ptr() for weight in weights}) == 9
    assert all(0.01 < weight.std() * weight.shape[1] ** 0.5 < 1 for weight in weights)
