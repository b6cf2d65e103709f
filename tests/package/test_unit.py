"""The residual unit against the paper's equations and figures."""
import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from torch import nn

import timm_preact  # noqa: F401
from timm_preact.preact_resnet import PreActResNet
from timm_preact.unit import MERGES, PLACEMENTS, ResidualUnit, ZeroPadShortcut, create_shortcut, replicate

KERNELS = {'one_layer': (3,), 'basic': (3, 3), 'bottleneck': (1, 3, 1)}


def make_unit(in_chs=8, out_chs=8, **kwargs):
    """A float64 unit whose norms all do something."""
    torch.manual_seed(0)
    unit = ResidualUnit(in_chs, out_chs, norm_layer=BatchNormAct2d, dtype=torch.float64, **kwargs)
    return randomise_norms(unit)


def randomise_norms(model):
    for module in model.modules():
        if isinstance(module, BatchNormAct2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 1.5)
            nn.init.normal_(module.bias)
            nn.init.normal_(module.running_mean)
    return model


def images(channels=8, size=9, batch=4):
    return torch.randn(batch, channels, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


# Placements, Fig. 4


@pytest.mark.parametrize('num_convs', [1, 2, 3])
@pytest.mark.parametrize('placement', PLACEMENTS)
def test_a_placement_is_a_permutation_of_the_same_layers(placement, num_convs):
    place = PLACEMENTS[placement]
    assert sorted(place.branch(num_convs) + place.post) == sorted('cna' * num_convs)


@pytest.mark.parametrize('kernels', KERNELS.values(), ids=KERNELS)
@pytest.mark.parametrize('placement', PLACEMENTS)
def test_a_unit_runs_its_layers_in_the_order_of_its_placement(placement, kernels):
    unit = make_unit(placement=placement, kernels=kernels)
    order = []
    for module in unit.modules():
        for layer, letter in ((nn.Conv2d, 'c'), (BatchNormAct2d, 'n'), (nn.ReLU, 'a')):
            if isinstance(module, layer):
                module.register_forward_pre_hook(lambda *_, letter=letter: order.append(letter))
    unit(images())
    place = PLACEMENTS[placement]
    assert ''.join(order) == place.branch(len(kernels)) + place.post


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('placement, f', [
    ('full', lambda x: x),
    ('relu_only', lambda x: x),
    ('relu_before_add', lambda x: x),
    ('orig', F.relu),
])
def test_a_unit_with_zero_weights_is_f_of_its_input(placement, f, training):
    """Eq. 3: with an identity shortcut and an identity f nothing but x itself passes, its negative half included."""
    unit = ResidualUnit(8, 8, norm_layer=BatchNormAct2d, activated_shortcut=False, placement=placement)
    for module in unit.residual.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.zeros_(module.weight)
    x = images().float()
    assert x.min() < 0
    assert torch.equal(unit.train(training)(x), f(x))


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('merge', MERGES)
@pytest.mark.parametrize('placement', PLACEMENTS)
def test_a_unit_leaves_its_input_alone(placement, merge, training):
    for activated_shortcut in (False, True):
        unit = make_unit(placement=placement, merge=merge, activated_shortcut=activated_shortcut).train(training)
        x = images()
        before = x.clone()
        unit(x).sum().backward()
        assert torch.equal(x, before)


# Eq. 1 to 5, restated with torch.nn.functional alone


def norm(x, weights, name, training):
    mean, var = (None, None) if training else (weights[f'{name}.running_mean'], weights[f'{name}.running_var'])
    return F.batch_norm(x, mean, var, weights[f'{name}.weight'], weights[f'{name}.bias'], training=training, eps=1e-5)


def conv(x, weight, stride=1):
    return F.conv2d(x, weight, stride=stride, padding=weight.shape[-1] // 2)


def full_branch(x, weights, depth, training):
    """F of Fig. 4(e): every weight layer is preceded by BN and ReLU."""
    for i in range(1, depth + 1):
        x = F.relu(norm(x, weights, 'pre' if i == 1 else f'residual.norm{i - 1}', training))
        x = conv(x, weights[f'residual.conv{i}.weight'])
    return x


def orig_branch(x, weights, depth, training):
    """F of Fig. 4(a): every weight layer is followed by BN, and by ReLU except before the addition."""
    for i in range(1, depth + 1):
        x = norm(conv(x, weights[f'residual.conv{i}.weight']), weights, f'residual.norm{i}', training)
        x = F.relu(x) if i < depth else x
    return x


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('kernels', KERNELS.values(), ids=KERNELS)
def test_the_full_unit_is_eq_1(kernels, training):
    unit = make_unit(kernels=kernels, activated_shortcut=False).train(training)
    x = images()
    weights = {k: v.clone() for k, v in unit.state_dict().items()}
    torch.testing.assert_close(unit(x), x + full_branch(x, weights, len(kernels), training), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('training', [False, True])
@pytest.mark.parametrize('kernels', KERNELS.values(), ids=KERNELS)
def test_the_original_unit_is_eq_1_and_2(kernels, training):
    unit = make_unit(placement='orig', kernels=kernels).train(training)
    x = images()
    weights = {k: v.clone() for k, v in unit.state_dict().items()}
    expected = F.relu(x + orig_branch(x, weights, len(kernels), training))
    torch.testing.assert_close(unit(x), expected, rtol=1e-12, atol=1e-12)


def test_a_full_unit_that_changes_shape_projects_its_activated_input():
    unit = make_unit(8, 16, stride=2).eval()
    weights = unit.state_dict()
    x = images()
    a = F.relu(norm(x, weights, 'pre', False))
    branch = conv(a, weights['residual.conv1.weight'], stride=2)
    branch = conv(F.relu(norm(branch, weights, 'residual.norm1', False)), weights['residual.conv2.weight'])
    expected = conv(a, weights['shortcut.conv.weight'], stride=2) + branch
    torch.testing.assert_close(unit(x), expected, rtol=1e-12, atol=1e-12)


def test_an_original_unit_that_changes_shape_normalises_its_projection():
    unit = make_unit(8, 16, stride=2, placement='orig').eval()
    weights = unit.state_dict()
    x = images()
    branch = F.relu(norm(conv(x, weights['residual.conv1.weight'], stride=2), weights, 'residual.norm1', False))
    branch = norm(conv(branch, weights['residual.conv2.weight']), weights, 'residual.norm2', False)
    shortcut = norm(conv(x, weights['shortcut.conv.weight'], stride=2), weights, 'shortcut.norm', False)
    torch.testing.assert_close(unit(x), F.relu(shortcut + branch), rtol=1e-12, atol=1e-12)


def make_chain(kernels):
    chain = nn.Sequential(*[make_unit(kernels=kernels, activated_shortcut=False) for _ in range(4)]).eval()
    for unit in chain:
        for parameter in unit.parameters():
            nn.init.normal_(parameter, std=0.3)
    return chain


def sum_of_branches(chain, x, depth):
    """The sum over i of F(x_i), where x_{i+1} = x_i + F(x_i)."""
    total = torch.zeros_like(x)
    for unit in chain:
        total = total + full_branch(x + total, unit.state_dict(keep_vars=True), depth, False)
    return total


@pytest.mark.parametrize('kernels', KERNELS.values(), ids=KERNELS)
def test_a_deep_unit_is_a_shallow_one_plus_a_sum_of_branches(kernels):
    """Eq. 4: x_L = x_l + sum F(x_i)."""
    chain = make_chain(kernels)
    x = images()
    torch.testing.assert_close(chain(x), x + sum_of_branches(chain, x, len(kernels)), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize('kernels', KERNELS.values(), ids=KERNELS)
def test_the_gradient_of_a_deep_unit_reaches_a_shallow_one_directly(kernels):
    """Eq. 5: dE/dx_l = dE/dx_L (1 + d/dx_l sum F(x_i))."""
    chain = make_chain(kernels)
    x = images().requires_grad_()
    deep = chain(x)
    gradient, deep_gradient = torch.autograd.grad(deep.sin().sum(), [x, deep])
    through_branches, = torch.autograd.grad(sum_of_branches(chain, x, len(kernels)), x, deep_gradient)
    assert through_branches.abs().max() > 1e-3
    torch.testing.assert_close(gradient, deep_gradient + through_branches, rtol=1e-11, atol=1e-11)


# Merges, Table 1 and Fig. 2


@pytest.mark.parametrize('merge, kwargs, formula', [
    ('add', {}, lambda h, f, g: h + f),
    ('const_scale', {}, lambda h, f, g: 0.5 * h + 0.5 * f),
    ('const_scale', dict(shortcut=0., residual=1.), lambda h, f, g: f),
    ('const_scale', dict(shortcut=0.5, residual=1.), lambda h, f, g: 0.5 * h + f),
    ('excl_gate', {}, lambda h, f, g: (1 - g) * h + g * f),
    ('shortcut_gate', {}, lambda h, f, g: (1 - g) * h + f),
    ('dropout_shortcut', {}, lambda h, f, g: h + f),
])
def test_a_merge_is_its_row_of_table_1(merge, kwargs, formula):
    torch.manual_seed(0)
    module = MERGES[merge](8, **kwargs, dtype=torch.float64).eval()
    h, f = images(), images().flip(0)
    g = 1 / (1 + torch.exp(-F.conv2d(h, module.gate.weight, module.gate.bias))) if 'gate' in merge else None
    torch.testing.assert_close(module(h, f), formula(h, f, g), rtol=1e-14, atol=1e-14)


@pytest.mark.parametrize('p', [0.5, 0.2])
def test_shortcut_dropout_drops_and_rescales_the_shortcut_alone(p):
    torch.manual_seed(0)
    merge = MERGES['dropout_shortcut'](8, p=p).train()
    h, f = torch.full((4, 8, 16, 16), 2.), torch.ones(4, 8, 16, 16)
    merged = merge(h, f)
    assert merged.unique().tolist() == pytest.approx([1., 2 / (1 - p) + 1.])
    assert merged.eq(1.).float().mean().item() == pytest.approx(p, abs=0.03)


@pytest.mark.parametrize('merge', MERGES)
def test_a_merge_adds_up_what_it_multiplies_by_its_factors(merge):
    h, f = images(), images().flip(0)
    module = MERGES[merge](8, dtype=torch.float64).train()
    torch.manual_seed(0)
    expected = module(h, f)
    torch.manual_seed(0)
    on_shortcut, on_residual = module.factors(h)
    torch.testing.assert_close(on_shortcut * h + on_residual * f, expected)


@pytest.mark.parametrize('merge', ['excl_gate', 'shortcut_gate'])
@pytest.mark.parametrize('bias', [None, 0., -7.])
def test_gates_start_at_the_given_bias(merge, bias):
    """Table 1 names b_g = -6 as the best, which is the default."""
    kwargs = {} if bias is None else dict(merge_kwargs=dict(bias=bias))
    model = timm.create_model(f'preact_resnet110_orig_{merge}', layers=(2, 2, 2), **kwargs)
    biases = torch.cat([unit.merge.gate.bias for stage in model.stages for unit in stage.blocks])
    assert biases.unique().tolist() == [-6. if bias is None else bias]


@pytest.mark.parametrize('merge', ['excl_gate', 'shortcut_gate'])
@pytest.mark.parametrize('shortcut', ['A', 'B', 'C'])
def test_a_gate_reads_the_shortcut(merge, shortcut):
    """g is a function of h(x), which has the shape of the output also where the unit changes shape."""
    unit = make_unit(8, 16, stride=2, placement='orig', merge=merge, shortcut=shortcut, merge_kwargs=dict(bias=-1.))
    seen = {}
    unit.shortcut.register_forward_hook(lambda module, args, output: seen.update(h=output))
    unit.merge.gate.register_forward_pre_hook(lambda module, args: seen.update(read=args[0]))
    unit(images())
    assert torch.equal(seen['read'], seen['h'])


# Shortcuts


CIFAR = dict(layers=(2, 2, 2))
IMAGENET = dict(layers=(2, 2, 2, 2), stem_chs=16, channels=(16, 32, 64, 128))


@pytest.mark.parametrize('name, size, activated', [
    ('preact_resnet110', CIFAR, ['0.0', '1.0', '2.0']),
    ('preact_resnet110_1layer', CIFAR, ['0.0', '1.0', '2.0']),
    ('preact_resnet110_relu_only', CIFAR, ['0.0', '1.0', '2.0']),
    ('preact_resnet164', CIFAR, ['0.0', '1.0', '2.0']),
    ('preact_resnet18', IMAGENET, ['1.0', '2.0', '3.0']),
    ('preact_resnet34', IMAGENET, ['1.0', '2.0', '3.0']),
    ('preact_resnet50', dict(IMAGENET, channels=(32, 64, 128, 256)), ['0.0', '1.0', '2.0', '3.0']),
    ('preact_resnet110_orig', CIFAR, []),
    ('preact_resnet101_orig', IMAGENET, []),
])
def test_the_first_unit_and_those_that_change_shape_carry_the_activated_tensor(name, size, activated):
    """The paper's appendix and design.md; every other shortcut carries x_l itself."""
    torch.manual_seed(0)
    model = randomise_norms(timm.create_model(name, **size)).double().eval()
    weights = model.state_dict()
    entered, carried = {}, {}
    for i, stage in enumerate(model.stages):
        for j, unit in enumerate(stage.blocks):
            unit.register_forward_pre_hook(lambda _, x, k=f'{i}.{j}': entered.update({k: x[0].clone()}))
            unit.shortcut.register_forward_pre_hook(lambda _, x, k=f'{i}.{j}': carried.update({k: x[0].clone()}))
    model(images(3, 32, batch=1))

    not_raw = [key for key, x in entered.items() if not torch.equal(carried[key], x)]
    assert not_raw == activated
    for key in activated:
        x, pre = entered[key], 'stages.{}.blocks.{}.pre'.format(*key.split('.'))
        assert torch.equal(carried[key], F.relu(x if name.endswith('relu_only') else norm(x, weights, pre, False)))


@pytest.mark.parametrize('name', ['preact_resnet18', 'preact_resnet34'])
def test_the_first_shortcut_of_a_basic_imagenet_net_carries_the_output_of_the_stem(name):
    model = timm.create_model(name, **IMAGENET).eval()
    seen = {}
    model.stem.register_forward_hook(lambda module, args, output: seen.update(stem=output.clone()))
    model.stages[0].blocks[0].shortcut.register_forward_hook(lambda m, x, output: seen.update(shortcut=output.clone()))
    model(torch.randn(1, 3, 64, 64))
    assert torch.equal(seen['shortcut'], seen['stem'])


@pytest.mark.parametrize('size', [8, 7])
def test_option_a_subsamples_and_appends_zeros(size):
    shortcut = ZeroPadShortcut(8, 20, stride=2)
    x = images(8, size)
    y = shortcut(x)
    assert y.shape == (4, 20, 4, 4)
    assert torch.equal(y[:, :8], x[:, :, ::2, ::2])
    assert not y[:, 8:].any()
    assert not list(shortcut.parameters())


def test_option_a_cannot_remove_channels():
    with pytest.raises(ValueError, match='from 16 to 8'):
        create_shortcut('A', 16, 8)


@pytest.mark.parametrize('placement', PLACEMENTS)
@pytest.mark.parametrize('shortcut, projections', [
    ('A', [False, False, False, False]),
    ('B', [False, False, True, False]),
    ('C', [True, True, True, True]),
])
def test_a_projection_stands_where_the_option_says(shortcut, projections, placement):
    """Its BatchNorm is left out where an activation precedes it, as the paper's code has it."""
    model = PreActResNet(layers=(2, 2), channels=(16, 32), shortcut=shortcut, placement=placement)
    shortcuts = [unit.shortcut for stage in model.stages for unit in stage.blocks]
    assert [any(isinstance(m, nn.Conv2d) for m in s.modules()) for s in shortcuts] == projections
    has_norm = placement in ('orig', 'bn_after_add', 'relu_before_add')
    for s in shortcuts:
        projected = ['conv.weight', 'norm.weight', 'norm.bias'] if has_norm else ['conv.weight']
        assert [k for k, _ in s.named_parameters()] == (projected if isinstance(s, nn.Sequential) else [])
        if isinstance(s, nn.Sequential):
            assert s.conv.kernel_size == (1, 1)
            assert not any(isinstance(m, nn.ReLU) for m in s.modules())


# Strides and widths


@pytest.mark.parametrize('kernels, stride_on, strided', [
    ((1, 3, 1), '1x1', 1),
    ((1, 3, 1), '3x3', 2),
    ((3, 3), '1x1', 1),
    ((3, 3), '3x3', 1),
    ((3,), '1x1', 1),
])
@pytest.mark.parametrize('shortcut', ['A', 'B', 'C'])
def test_one_convolution_of_the_branch_has_the_stride(kernels, stride_on, strided, shortcut):
    unit = make_unit(8, 16, kernels=kernels, stride=2, stride_on=stride_on, shortcut=shortcut)
    convs = [module for module in unit.residual if isinstance(module, nn.Conv2d)]
    assert [conv.kernel_size[0] for conv in convs] == list(kernels)
    assert [conv.stride[0] for conv in convs] == [2 if i + 1 == strided else 1 for i in range(len(kernels))]
    assert unit(images(8, 9)).shape == (4, 16, 5, 5)
    assert unit(images(8, 8)).shape == (4, 16, 4, 4)


def test_a_bottleneck_is_narrow_before_its_last_convolution():
    unit = make_unit(8, 16, kernels=(1, 3, 1), bottle_ratio=0.25)
    convs = [module for module in unit.residual if isinstance(module, nn.Conv2d)]
    assert [(conv.in_channels, conv.out_channels) for conv in convs] == [(8, 4), (4, 4), (4, 16)]


@pytest.mark.parametrize('merge', MERGES)
@pytest.mark.parametrize('placement', PLACEMENTS)
def test_a_replica_is_the_same_unit_and_shares_nothing(placement, merge):
    unit = make_unit(8, 16, placement=placement, merge=merge, drop_path=0.1).eval()
    twin = replicate(unit)
    assert [type(module) for module in twin.modules()] == [type(module) for module in unit.modules()]
    assert not set(twin.modules()) & set(unit.modules())
    twin.load_state_dict(unit.state_dict())
    x = images()
    expected = unit(x)
    assert torch.equal(twin(x), expected)
    with torch.no_grad():
        for tensor in twin.train().state_dict().values():
            tensor.zero_()
    assert torch.equal(unit(x), expected)
    assert [p.requires_grad for p in twin.parameters()] == [p.requires_grad for p in unit.parameters()]


# Arguments


@pytest.mark.parametrize('argument, value, choices', [
    ('placement', 'preact', ["'orig'", "'bn_after_add'", "'relu_before_add'", "'relu_only'", "'full'"]),
    ('merge', 'sum', ["'add'", "'const_scale'", "'excl_gate'", "'shortcut_gate'", "'dropout_shortcut'"]),
    ('shortcut', 'D', ["'A'", "'B'", "'C'"]),
    ('stem_type', 'deep', ["'cifar'", "'imagenet'"]),
    ('stride_on', '5x5', ["'1x1'", "'3x3'"]),
    ('output_stride', 4, ['8', '16', '32']),
])
def test_an_unknown_variant_is_refused_with_the_choices(argument, value, choices):
    with pytest.raises(ValueError, match=argument) as error:
        PreActResNet(layers=(1, 1, 1), **{argument: value})
    assert all(choice in str(error.value) for choice in [repr(value), *choices])


def test_an_unknown_activated_shortcut_is_refused_with_the_choices():
    with pytest.raises(ValueError, match="'last' is not known: choose one of 'first', 'transition'"):
        PreActResNet(layers=(1, 1, 1), activated_shortcuts=('first', 'last'))
