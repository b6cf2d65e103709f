"""The registered networks: names, sizes, the order of layers, configs, arguments; torchvision's logits."""
import ast
import functools
import inspect
import re

import pytest
import timm
import torch
import torchvision
from timm.layers import BatchNormAct2d, GroupNormAct
from torch import nn

from timm_preact import preact_resnet
from timm_preact.data import CIFAR100_CLASSES
from timm_preact.errors import UserError
from timm_preact.evaluation import label_order
from timm_preact.preact_resnet import MODEL_ARGS, PreActResNet
from timm_preact.unit import PLACEMENTS, ResidualUnit
from timm_preact.weights.keymaps import to_ours
from timm_preact.weights.sources import SOURCES

# Of every name, with 10 classes on CIFAR and 1000 on ImageNet. How the numbers hang together:
# * 6n + 2 layers: each n adds 2 convolutions and their BatchNorms to each stage, 2 * (9 c^2 + 2 c) for c = 16, 32, 64,
#   97,216 in all: 20 (n = 3) + 6 * 97,216 = 56 (n = 9), + 9 * 97,216 = 110 (n = 18).
# * A placement moves BatchNorms, it adds none. One sits before each convolution and one before the head, or one after
#   each convolution: the sums telescope to the same count. 1-layer units at the same depth: the same convolutions.
# * The post-activation placements have a BatchNorm on each projection: none in 110 (option A), 2 * (64 + 128 + 256) =
#   896 in 164 and 1001.
# * A projection in each of 110's units: 18 * (c^2 + 2 c) for c = 16, 32, 64, less c^2 / 2 where the input is narrower
#   for c = 32, 64, 98,240 in all. A gate in each, with bias, on the width of the output: 18 * (c^2 + c), 98,784 in all.
# * The original ImageNet nets are torchvision's; 200 has 16 units more than 152 in its second stage, of
#   512 * 128 + 9 * 128 * 128 + 128 * 512 + 2 * (128 + 128 + 512) = 280,064 each.
# * Full pre-activation has no BatchNorm on projections, 2 * (256 + 512 + 1024 + 2048) = 7,680 fewer, and one on the
#   stem's 64 channels more, as stem and first unit each have one: 7,552 fewer than the original.
# * pytorchcv's nets have projections, 16 * 32 + 32 * 64 = 2,560 in the basic ones; with bottlenecks the stride alone
#   differs. Its own table has the same counts. Chenyaofo's have BatchNorms on them, 2 * (32 + 64) = 192.
# * kuangliu's original nets are torchvision's with 10 classes and a 3x3 stem, 40 * 3 * 64 = 7,680 fewer. Full
#   pre-activation has no BatchNorm on projections, 2 * (128 + 256 + 512) = 1,792 or 7,680 fewer, and none before the
#   head, 2 * 512 or 2 * 2048 fewer. Weiaicunzai's has one in the stem, 2 * 64, and a bias for each channel that a
#   convolution writes.
# * FAIR's: BatchNorms on the projections, 7,680, the biases of every convolution, 88,000, as the .t7 has them; Keras's:
#   biases of the stem, of each last convolution and of the projections, no BatchNorm in the stem.
PARAMETERS = {
    'preact_resnet20': 269_722,
    'preact_resnet56': 853_018,
    'preact_resnet110': 1_727_962,
    'preact_resnet164': 1_703_258,
    'preact_resnet1001': 10_327_706,
    'preact_resnet20_orig': 269_722,
    'preact_resnet32_orig': 464_154,
    'preact_resnet44_orig': 658_586,
    'preact_resnet56_orig': 853_018,
    'preact_resnet110_orig': 1_727_962,
    'preact_resnet110_bn_after_add': 1_727_962,
    'preact_resnet110_relu_before_add': 1_727_962,
    'preact_resnet110_relu_only': 1_727_962,
    'preact_resnet164_orig': 1_704_154,
    'preact_resnet164_bn_after_add': 1_704_154,
    'preact_resnet164_relu_before_add': 1_704_154,
    'preact_resnet164_relu_only': 1_703_258,
    'preact_resnet1001_orig': 10_328_602,
    'preact_resnet1202_orig': 19_421_274,
    'preact_resnet110_1layer': 1_727_962,
    'preact_resnet110_1layer_orig': 1_727_962,
    'preact_resnet110_orig_const_scale': 1_727_962,
    'preact_resnet110_orig_excl_gate': 1_826_746,
    'preact_resnet110_orig_shortcut_gate': 1_826_746,
    'preact_resnet110_orig_conv_shortcut': 1_826_202,
    'preact_resnet110_orig_dropout_shortcut': 1_727_962,
    'preact_resnet18': 11_687_848,
    'preact_resnet34': 21_796_008,
    'preact_resnet50': 25_549_480,
    'preact_resnet101': 44_541_608,
    'preact_resnet152': 60_185_256,
    'preact_resnet200': 64_666_280,
    'preact_resnet101_orig': 44_549_160,
    'preact_resnet152_orig': 60_192_808,
    'preact_resnet200_orig': 64_673_832,
    'preact_resnet101_bn_after_add': 44_549_160,
    'preact_resnet200_fb': 64_666_280 + 7_680 + 88_000,
    'preact_resnet20_pcv': 269_722 + 2_560,
    'preact_resnet56_pcv': 853_018 + 2_560,
    'preact_resnet110_pcv': 1_727_962 + 2_560,
    'preact_resnet164_pcv': 1_703_258,
    'preact_resnet272_pcv': 2_816_090,
    'preact_resnet542_pcv': 5_598_170,
    'preact_resnet1001_pcv': 10_327_706,
    'preact_resnet1202_pcv': 19_423_834,
    'preact_resnet20_orig_chen': 269_722 + 2_560 + 192,
    'preact_resnet32_orig_chen': 464_154 + 2_560 + 192,
    'preact_resnet44_orig_chen': 658_586 + 2_560 + 192,
    'preact_resnet56_orig_chen': 853_018 + 2_560 + 192,
    'preact_resnet18_orig_kuang': 11_689_512 - 7_680 - 507_870,
    'preact_resnet34_orig_kuang': 21_797_672 - 7_680 - 507_870,
    'preact_resnet50_orig_kuang': 25_557_032 - 7_680 - 2_028_510,
    'preact_resnet101_orig_kuang': 44_549_160 - 7_680 - 2_028_510,
    'preact_resnet152_orig_kuang': 60_192_808 - 7_680 - 2_028_510,
    'preact_resnet18_kuang': 11_173_962 - 1_792 - 1_024,
    'preact_resnet34_kuang': 21_282_122 - 1_792 - 1_024,
    'preact_resnet50_kuang': 23_520_842 - 7_680 - 4_096,
    'preact_resnet101_kuang': 42_512_970 - 7_680 - 4_096,
    'preact_resnet152_kuang': 58_156_618 - 7_680 - 4_096,
    'preact_resnet18_wei': 11_171_146 + 128 + 4_800,
    'preact_resnet34_wei': 21_279_306 + 128 + 8_512,
    'preact_resnet50_wei': 23_509_066 + 128 + 26_560,
    'preact_resnet101_wei': 42_501_194 + 128 + 52_672,
    'preact_resnet152_wei': 58_144_842 + 128 + 75_712,
    'preact_resnet50_keras': 25_568_360,
    'preact_resnet101_keras': 44_577_896,
    'preact_resnet152_keras': 60_236_904,
    'preact_resnet18_timm': 11_687_720,
    'preact_resnet34_timm': 21_795_880,
    'preact_resnet50_timm': 25_549_352,
    'preact_resnet101_timm': 44_541_480,
}
FOREIGN_NAMES = [name for name in PARAMETERS
                 if name.endswith(('_fb', '_pcv', '_chen', '_keras', '_timm', '_kuang', '_wei'))]
IMAGENET_NAMES = [name for name in PARAMETERS if name not in FOREIGN_NAMES and MODEL_ARGS[name].get('stem_type')]
CIFAR_NAMES = [name for name in PARAMETERS if name not in FOREIGN_NAMES and name not in IMAGENET_NAMES]
SMALL_IMAGENET = dict(layers=(2, 2, 2, 2), channels=(16, 32, 64, 128), stem_chs=16)


def count(model):
    return sum(p.numel() for p in model.parameters())


def randomise_norms(model):
    """Fill all that is trivial in a fresh norm; the variances stay positive."""
    torch.manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.2, 0.8)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.1)
            nn.init.normal_(module.running_mean, std=0.1)
    return model


# Names and sizes


def test_the_family_is_registered():
    assert sorted(timm.list_models('preact_*')) == sorted(PARAMETERS)
    assert sorted(timm.list_models(module='preact_resnet')) == sorted(PARAMETERS)


def test_every_name_is_a_function_that_a_search_finds():
    definitions = [node for node in ast.parse(inspect.getsource(preact_resnet)).body
                   if isinstance(node, ast.FunctionDef) and node.name.startswith('preact_resnet')]
    assert [node.name for node in definitions] == list(MODEL_ARGS)
    for node in definitions:
        assert [ast.unparse(decorator) for decorator in node.decorator_list] == ['register_model']
        assert ast.get_docstring(node) and f"('{node.name}', pretrained, **kwargs)" in ast.unparse(node)


def test_no_name_is_one_of_timms():
    modules = [module for module in timm.list_modules() if module != 'preact_resnet']
    timms = {name for module in modules for name in timm.list_models(module=module)}
    assert len(timms) > 1000
    assert not timms & set(PARAMETERS)


@pytest.mark.parametrize('name, parameters', PARAMETERS.items())
def test_a_net_has_exactly_the_parameters_of_its_layers(name, parameters):
    assert count(timm.create_model(name, device='meta')) == parameters


@pytest.mark.parametrize('name, parameters', [
    ('preact_resnet110', 1_733_812),
    ('preact_resnet164', 1_726_388),
    ('preact_resnet1001', 10_350_836),
])
def test_a_net_has_exactly_the_parameters_of_its_layers_on_cifar_100(name, parameters):
    assert count(timm.create_model(f'{name}.cifar100', device='meta')) == parameters


@pytest.mark.parametrize('name', ['resnet101', 'resnet152'])
def test_an_original_net_is_as_large_as_torchvisions(name):
    with torch.device('meta'):
        theirs = torchvision.models.get_model(name)
    assert count(theirs) == PARAMETERS[f'preact_{name}_orig']


@pytest.mark.parametrize('name', ['preact_resnet56', 'preact_resnet110_orig_shortcut_gate'])
def test_no_two_units_share_a_tensor(name):
    tensors = timm.create_model(name).state_dict().values()
    assert len({tensor.data_ptr() for tensor in tensors}) == len(tensors)


# The order of layers


ORDERS = {
    # placement: CIFAR stem, unit of two convolutions, what stands before the pooling
    'full': ('c', '(nacnac+)', 'na'),
    'relu_only': ('cn', '(acnacn+)', 'a'),
    'orig': ('cna', '(cnacn+a)', ''),
    'bn_after_add': ('cna', '(cnac+na)', ''),
    'relu_before_add': ('cna', '(cnacna+)', ''),
}


def run_order(model, x):
    """The layers as they run, shortcuts aside, with '(' and ')' for units, '+' for additions, 'm' and 'p' for pools."""
    letters = [(nn.Conv2d, 'c'), (nn.BatchNorm2d, 'n'), (nn.ReLU, 'a'), (nn.MaxPool2d, 'm'), (ResidualUnit, '(')]
    order = []
    for name, module in model.named_modules():
        letter = next((letter for kind, letter in letters if isinstance(module, kind)), '')
        letter = {'merge': '+', 'global_pool': 'p'}.get(name.rpartition('.')[-1], letter)
        if 'shortcut' not in name:
            module.register_forward_pre_hook(lambda *_, letter=letter: order.append(letter))
        if letter == '(':
            module.register_forward_hook(lambda *_: order.append(')'))
    model(x)
    return ''.join(order)


@pytest.mark.parametrize('placement', PLACEMENTS)
def test_a_cifar_net_runs_its_layers_in_the_papers_order(placement):
    """Fig. 4, and the appendix on the first and the last unit."""
    stem, unit, last = ORDERS[placement]
    model = PreActResNet(layers=(1, 2, 1), placement=placement)
    assert run_order(model, torch.randn(2, 3, 32, 32)) == stem + 4 * unit + last + 'p'


@pytest.mark.parametrize('placement', PLACEMENTS)
def test_an_imagenet_net_runs_its_layers_in_the_papers_order(placement):
    _, unit, last = ORDERS[placement]
    model = timm.create_model('preact_resnet18', placement=placement, **SMALL_IMAGENET)
    assert run_order(model, torch.randn(2, 3, 64, 64)) == 'cnam' + 8 * unit + last + 'p'


@pytest.mark.parametrize('stem_norm', [False, True])
@pytest.mark.parametrize('placement', PLACEMENTS)
def test_stem_and_final_norms_are_arguments(placement, stem_norm):
    _, unit, _ = ORDERS[placement]
    kwargs = dict(placement=placement, stem_norm=stem_norm, final_norm=False)
    model = PreActResNet(layers=(1, 2, 1), **kwargs)
    assert run_order(model, torch.randn(2, 3, 32, 32)) == 'c' + 'na' * stem_norm + 4 * unit + 'p'
    model = timm.create_model('preact_resnet18', **kwargs, **SMALL_IMAGENET)
    assert run_order(model, torch.randn(2, 3, 64, 64)) == 'c' + 'na' * stem_norm + 'm' + 8 * unit + 'p'


@pytest.mark.parametrize('name, layers, kernels', [
    ('preact_resnet110', [18, 18, 18], [3, 3]),
    ('preact_resnet110_1layer', [36, 36, 36], [3]),
    ('preact_resnet164', [18, 18, 18], [1, 3, 1]),
    ('preact_resnet1001', [111, 111, 111], [1, 3, 1]),
    ('preact_resnet34', [3, 4, 6, 3], [3, 3]),
    ('preact_resnet152', [3, 8, 36, 3], [1, 3, 1]),
    ('preact_resnet200', [3, 24, 36, 3], [1, 3, 1]),
])
def test_a_net_has_the_papers_units(name, layers, kernels):
    model = timm.create_model(name, device='meta')
    assert [len(stage.blocks) for stage in model.stages] == layers
    for stage in model.stages:
        for unit in stage.blocks:
            assert [m.kernel_size[0] for m in unit.residual if isinstance(m, nn.Conv2d)] == kernels


@pytest.mark.parametrize('name, conv', [
    ('preact_resnet164', 'conv1'), ('preact_resnet50', 'conv2'), ('preact_resnet50_kuang', 'conv2'),
    ('preact_resnet50_orig_kuang', 'conv2'), ('preact_resnet50_wei', 'conv1')])
def test_a_bottleneck_has_its_stride_where_its_source_has_it(name, conv):
    """resnet-1k-layers on the first 1x1, the ImageNet nets on the 3x3."""
    model = timm.create_model(name, device='meta')
    convs = {k: m for k, m in model.stages[1].blocks[0].residual.named_children() if isinstance(m, nn.Conv2d)}
    assert [k for k, m in convs.items() if m.stride == (2, 2)] == [conv]


# Against torchvision


@pytest.mark.parametrize('name, kwargs, theirs', [
    ('preact_resnet18', dict(placement='orig'), 'resnet18'),
    ('preact_resnet152_orig', {}, 'resnet152'),
])
def test_an_original_net_computes_what_torchvisions_does(name, kwargs, theirs):
    with torch.device('meta'):
        theirs = torchvision.models.get_model(theirs).double().eval()
    theirs = randomise_norms(theirs.to_empty(device='cpu'))
    for module in theirs.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_uniform_(module.weight)
    nn.init.normal_(theirs.fc.bias)
    ours = timm.create_model(name, device='meta', **kwargs).eval()
    ours.load_state_dict(to_ours(theirs.state_dict(), 'torchvision', ours), assign=True)
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        expected = theirs(x)
        assert expected.std() > 1e-3
        torch.testing.assert_close(ours(x), expected, rtol=1e-10, atol=1e-10)


# Configs


@pytest.mark.parametrize('tag, classes, size, pool, mean, std', [
    ('cifar10', 10, 32, 8, (0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    ('cifar100', 100, 32, 8, (0.5071, 0.4865, 0.4409), (0.2673, 0.2564, 0.2762)),
    ('in1k', 1000, 224, 7, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
])
def test_a_tag_describes_its_data_set(tag, classes, size, pool, mean, std):
    for name in IMAGENET_NAMES if tag == 'in1k' else CIFAR_NAMES:
        cfg = timm.get_pretrained_cfg(f'{name}.{tag}')
        assert (cfg.num_classes, cfg.input_size, cfg.pool_size) == (classes, (3, size, size), (pool, pool))
        assert (cfg.mean, cfg.std) == (mean, std)
        assert (cfg.first_conv, cfg.classifier) == ('stem.conv', 'head.fc')


def test_every_tag_of_cifar_100_names_its_classes_in_the_order_of_the_alphabet():
    names = sorted(CIFAR100_CLASSES)
    assert len(set(names)) == 100 and {'maple_tree', 'sweet_pepper', 'lawn_mower', 'aquarium_fish'} <= set(names)
    tagged = [name for name in timm.list_models('preact_*', include_tags=True) if name.endswith('.cifar100')]
    assert {f'preact_resnet{name}.cifar100' for name in ('20', '164_pcv', '56_orig_chen')} <= set(tagged)
    assert all(list(timm.get_pretrained_cfg(name).label_names) == names for name in tagged)


def test_the_class_that_the_hub_misspells_is_still_the_class():
    """uoft-cs/cifar100 says 'cra'; so do networks that were trained on it."""
    model = timm.create_model('preact_resnet20.cifar100', device='meta')
    hub = ['cra' if name == 'crab' else name for name in CIFAR100_CLASSES]
    assert label_order(model, hub).tolist() == list(range(100))
    assert label_order(model, hub[::-1]).tolist() == list(range(100))[::-1]
    model.pretrained_cfg['label_names'] = hub
    assert label_order(model, CIFAR100_CLASSES).tolist() == list(range(100))
    with pytest.raises(UserError, match='classes that the model has not'):
        label_order(model, [*hub[:-1], 'wasp'])


@pytest.mark.parametrize('name', PARAMETERS)
def test_a_bare_name_has_the_classes_of_its_data_set(name):
    model = timm.create_model(name, device='meta')
    tag = 'in1k' if MODEL_ARGS[name].get('stem_type') == 'imagenet' else 'cifar10'
    assert model.num_classes == (1000 if tag == 'in1k' else 10)
    published = [key.partition('.')[2] for key in SOURCES if key.partition('.')[0] == name and key.endswith(f'_{tag}')
                 and '.aka_' not in key]
    assert model.pretrained_cfg['tag'] == (published[0] if published else tag)
    assert {'stem.conv.weight', 'head.fc.weight', 'head.fc.bias'} <= set(model.state_dict())


@pytest.mark.parametrize('name', ['preact_resnet20', 'preact_resnet18'])
def test_the_config_names_the_size_of_the_last_feature_map(name):
    model = timm.create_model(name, device='meta')
    x = torch.empty(1, *model.pretrained_cfg['input_size'], device='meta')
    assert model.forward_features(x).shape[-2:] == model.pretrained_cfg['pool_size']


# Arguments


def test_an_unknown_argument_is_refused():
    with pytest.raises(TypeError, match='stem_width'):
        timm.create_model('preact_resnet20', stem_width=32)


@pytest.mark.parametrize('placement', ['full', 'orig'])
@pytest.mark.parametrize('name, stride_on', [
    ('preact_resnet18', '3x3'),
    ('preact_resnet50', '3x3'),
    ('preact_resnet50', '1x1'),
])
def test_dilation_computes_the_same_features_more_densely(name, stride_on, placement):
    kwargs = dict(
        layers=(1, 2, 2, 2), channels=(8, 16, 24, 32), stem_chs=8, stride_on=stride_on, placement=placement,
        num_classes=0, global_pool='')
    model = randomise_norms(timm.create_model(name, **kwargs)).double().eval()
    x = torch.randn(1, 3, 65, 64, dtype=torch.float64)
    expected = model(x)
    assert expected.std() > 1e-3
    for output_stride in (16, 8):
        dilated = timm.create_model(name, output_stride=output_stride, **kwargs).double().eval()
        dilated.load_state_dict(model.state_dict())
        features = dilated(x)
        step = 32 // output_stride
        assert features.shape == (1, 32, -(-65 // output_stride), 64 // output_stride)
        torch.testing.assert_close(features[:, :, ::step, ::step], expected, rtol=0, atol=1e-10)
        reductions = [info['reduction'] for info in dilated.feature_info]
        assert reductions == [min(r, output_stride) for r in (2, 4, 8, 16, 32)]


@pytest.mark.parametrize('norm_layer', ['groupnorm', functools.partial(GroupNormAct, num_groups=8)])
def test_group_norm_replaces_every_batch_norm(norm_layer):
    model = timm.create_model('preact_resnet18', norm_layer=norm_layer, layers=(1, 1, 1, 1))
    assert not any(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    groups = {module.num_groups for module in model.modules() if isinstance(module, nn.GroupNorm)}
    assert groups == {32 if norm_layer == 'groupnorm' else 8}
    assert model(torch.randn(2, 3, 64, 64)).isfinite().all()


@pytest.mark.parametrize('placement', PLACEMENTS)
def test_group_norm_on_narrow_stages_needs_a_number_of_groups(placement):
    with pytest.raises(ValueError, match='16 channels .*num_groups=8'):
        timm.create_model('preact_resnet20', norm_layer='groupnorm', placement=placement)
    norm_layer = functools.partial(GroupNormAct, num_groups=8)
    model = timm.create_model('preact_resnet20', norm_layer=norm_layer, placement=placement)
    assert model(torch.randn(2, 3, 32, 32)).isfinite().all()


@pytest.mark.parametrize('act_layer', ['silu', nn.SiLU])
@pytest.mark.parametrize('placement', PLACEMENTS)
def test_an_activation_replaces_every_relu(placement, act_layer):
    relu = PreActResNet(layers=(1, 1, 1), placement=placement)
    silu = PreActResNet(layers=(1, 1, 1), placement=placement, act_layer=act_layer)
    assert [name for name, module in silu.named_modules() if isinstance(module, nn.SiLU)] == \
        [name for name, module in relu.named_modules() if isinstance(module, nn.ReLU)]
    assert not any(isinstance(module, nn.ReLU) for module in silu.modules())
    silu(torch.randn(2, 3, 32, 32)).sum().backward()


class Odd(nn.Module):
    """A norm of a user's own: weights of any shape, some frozen, a parametrisation, buffers kept and not, a counter."""

    made = []

    def __init__(self, channels, apply_act=True, device=None, dtype=None):
        super().__init__()
        self.scale = nn.Parameter(torch.randn(1, channels, 1, 1))
        self.shift = nn.Parameter(torch.randn(1, channels, 1, 1), requires_grad=False)
        self.mix = nn.utils.parametrizations.weight_norm(nn.Conv2d(channels, channels, 1))
        self.inner = nn.BatchNorm2d(channels)
        nn.init.constant_(self.inner.weight, 0.25)
        self.register_buffer('kept', torch.randn(2, channels))
        self.register_buffer('lost', torch.randn(2, channels), persistent=False)
        self.calls, self.table = [], torch.randn(channels)
        self.act = nn.ReLU() if apply_act else nn.Identity()
        tensors = [*self.parameters(), *self.buffers(), self.table]
        self.made.append((self, [(tensor.clone(), tensor.requires_grad) for tensor in tensors]))

    def forward(self, x):
        return self.act(self.inner(x) * self.scale + self.shift + self.mix(x))


@pytest.mark.parametrize('name', ['preact_resnet20', 'preact_resnet164', 'preact_resnet110_orig'])
def test_a_norm_of_ones_own_comes_out_as_its_constructor_made_it(name):
    """In every unit, the third of a stage and those behind it too."""
    Odd.made.clear()
    model = timm.create_model(name, layers=(4, 4, 4), norm_layer=lambda *args, **kwargs: Odd(*args, **kwargs))
    norms = [module for module in model.modules() if isinstance(module, Odd)]
    assert [id(norm) for norm in norms] == [id(norm) for norm, _ in Odd.made] and len(norms) > 20
    assert len({id(norm.calls) for norm in norms}) == len(norms)
    for norm, made in Odd.made:
        tensors = [*norm.parameters(), *norm.buffers(), norm.table]
        for tensor, (was, trainable) in zip(tensors, made, strict=True):
            assert torch.equal(tensor, was) and tensor.requires_grad == trainable


def test_a_norm_may_be_any_callable():
    model = PreActResNet(layers=(1, 1, 1), norm_layer=functools.partial(BatchNormAct2d, eps=1e-3))
    assert {module.eps for module in model.modules() if isinstance(module, BatchNormAct2d)} == {1e-3}


def test_a_dilated_net_has_the_strided_nets_weights_where_stages_are_equally_wide():
    args = dict(channels=(64,) * 4, device='meta')
    keys = [timm.create_model('preact_resnet18', output_stride=s, **args).state_dict().keys() for s in (8, 32)]
    assert keys[0] == keys[1]


@pytest.mark.parametrize('name', [name for name in MODEL_ARGS if not re.search('542|1001|1202', name)])
def test_every_net_is_made_in_a_device_context(name):
    with torch.device('meta'):
        model = timm.create_model(name)
    assert all(tensor.is_meta for tensor in [*model.parameters(), *model.buffers()])
