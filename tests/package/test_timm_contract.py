"""What timm promises of every model: its own tests leave features and pruning out for modules they do not list."""
import copy
import fnmatch

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import BatchNormAct2d
from timm.models import create_feature_extractor, group_parameters
from timm.optim import create_optimizer_v2
from torch import nn

import timm_preact  # noqa: F401
from timm_preact.unit import ResidualUnit

CIFAR = dict(layers=(1, 2, 1))
IMAGENET = dict(layers=(1, 2, 1, 1), stem_chs=16, channels=(16, 32, 48, 64))
# One name for every unit, placement, merge, shortcut and stem.
NETS = {
    'preact_resnet20': CIFAR,
    'preact_resnet164': CIFAR,
    'preact_resnet110_1layer': CIFAR,
    'preact_resnet110_orig': CIFAR,
    'preact_resnet110_bn_after_add': CIFAR,
    'preact_resnet110_relu_before_add': CIFAR,
    'preact_resnet110_relu_only': CIFAR,
    'preact_resnet110_orig_const_scale': CIFAR,
    'preact_resnet110_orig_excl_gate': CIFAR,
    'preact_resnet110_orig_shortcut_gate': CIFAR,
    'preact_resnet110_orig_dropout_shortcut': CIFAR,
    'preact_resnet110_orig_conv_shortcut': CIFAR,
    'preact_resnet18': IMAGENET,
    'preact_resnet50': IMAGENET,
    'preact_resnet101_orig': IMAGENET,
    'preact_resnet200_fb': IMAGENET,
    'preact_resnet50_keras': IMAGENET,
    'preact_resnet18_kuang': IMAGENET,
    'preact_resnet50_orig_kuang': IMAGENET,
    'preact_resnet50_wei': IMAGENET,
}
every_net = pytest.mark.parametrize('name', NETS)
# Of each stem and number of convolutions one, for what is slow.
SOME = ['preact_resnet20', 'preact_resnet164', 'preact_resnet110_relu_only', 'preact_resnet50']
some_nets = pytest.mark.parametrize('name', SOME)


def create(name, **kwargs):
    """A small net of that name in eval mode, the same at each call, whose norms all shift what they read."""
    torch.manual_seed(0)
    model = timm.create_model(name, **NETS[name], **kwargs).eval()
    for module in model.modules():
        if isinstance(module, BatchNormAct2d):
            channels = torch.arange(module.num_features)
            module.running_mean.copy_(channels.sin())
            module.bias.data.copy_(0.5 * channels.cos())
    return model


def images(batch=2, size=32, channels=3):
    return torch.randn(batch, channels, size, size, generator=torch.Generator().manual_seed(1))


def levels(name):
    return len(NETS[name]['layers']) + 1


def activate(model, taps):
    """Raw taps as the next unit's pre-activation, or the last norm, makes them; a stem that pools has activated its."""
    pre = [stage.blocks[0].pre for stage in model.stages] + [model.norm]
    if model.stem_pools:
        pre[0] = nn.Identity()
    return [f(tap) for f, tap in zip(pre, taps, strict=True)]


def assert_same(actual, expected, **kwargs):
    torch.testing.assert_close(actual, expected, **{'rtol': 0, 'atol': 0, **kwargs})


# Features


@pytest.mark.parametrize('name, channels, reductions', [
    ('preact_resnet20', [16, 16, 32, 64], [1, 1, 2, 4]),
    ('preact_resnet164', [16, 64, 128, 256], [1, 1, 2, 4]),
    ('preact_resnet18', [16, 16, 32, 48, 64], [2, 4, 8, 16, 32]),
    ('preact_resnet50_wei', [16, 16, 32, 48, 64], [1, 1, 2, 4, 8]),
])
@pytest.mark.parametrize('out_indices, taken', [
    (None, slice(None)),
    ((0,), slice(0, 1)),
    ((1, 2), slice(1, 3)),
    ((-2, -1), slice(-2, None)),
    ((-1,), slice(-1, None)),
    (2, slice(-2, None)),
])
def test_features_have_the_channels_and_reductions_announced(name, channels, reductions, out_indices, taken):
    model = create(name, features_only=True, **({} if out_indices is None else dict(out_indices=out_indices)))
    assert model.feature_info.channels() == channels[taken]
    assert model.feature_info.reduction() == reductions[taken]
    shapes = [tuple(tap.shape) for tap in model(images(size=64))]
    expected = zip(channels[taken], reductions[taken], strict=True)
    assert shapes == [(2, c, 64 // r, 64 // r) for c, r in expected]


@every_net
def test_every_feature_class_gives_the_same_raw_sums(name):
    x = images()
    sums = {}
    model = create(name)
    for i, stage in enumerate(model.stages):
        stage.register_forward_hook(lambda module, args, output, i=i: sums.update({i: output.clone()}))
    model(x)
    for feature_cls in ('getter', 'list', 'fx', 'hook'):
        stem, *taps = create(name, features_only=True, feature_cls=feature_cls)(x)
        assert_same(stem, model.stem.norm(model.stem.conv(x)))
        assert_same(taps, list(sums.values()))


@every_net
def test_activated_features_are_what_the_next_unit_sees(name):
    x = images()
    model = create(name)
    raw = create(name, features_only=True)(x)
    activated = create(name, features_only=True, feature_norm=True)(x)
    assert_same(activated, activate(model, raw))
    assert_same(activated[-1], model.forward_features(x))


@pytest.mark.parametrize('name', ['preact_resnet20', 'preact_resnet110_relu_only', 'preact_resnet50'])
def test_activated_features_are_not_negative(name):
    x = images()
    assert min(tap.min() for tap in create(name, features_only=True)(x)) < 0
    assert min(tap.min() for tap in create(name, features_only=True, feature_norm=True)(x)) >= 0


@every_net
def test_activated_features_run_each_norm_once(name):
    for out_indices in ([i] for i in range(levels(name))), [range(levels(name))]:
        for indices in out_indices:
            model = create(name, features_only=True, feature_norm=True, out_indices=tuple(indices)).train()
            model(images())
            norms = [module for module in model.modules() if isinstance(module, BatchNormAct2d)]
            assert norms or (name, tuple(indices)) == ('preact_resnet50_keras', (0,))  # its stem has no norm
            assert all(norm.num_batches_tracked.item() == 1 for norm in norms)


@every_net
def test_intermediates_come_with_the_final_features(name):
    model, x = create(name), images()
    for norm in (False, True):
        final, taps = model.forward_intermediates(x, norm=norm)
        assert_same(final, model.forward_features(x))
        assert [tap.shape[1] for tap in taps] == [info['num_chs'] for info in model.feature_info]
        assert [32 // tap.shape[2] for tap in taps] == [info['reduction'] for info in model.feature_info]
        assert_same(model.forward_intermediates(x, norm=norm, intermediates_only=True), taps)
    assert_same(taps[-1], final)


@every_net
@pytest.mark.parametrize('norm', [False, True])
def test_indices_select_among_the_intermediates(name, norm):
    model, x, n = create(name), images(), levels(name)
    taps = model.forward_intermediates(x, norm=norm, intermediates_only=True)
    for indices in [None, 1, 2, n, [0], [1, 2], [0, n - 1], [-1], [-2], [-n, -1], *([i] for i in range(n))]:
        if indices is None or isinstance(indices, int):
            expected = taps[-(indices or n):]
        else:
            expected = [taps[i] for i in indices]
        for stop_early in (False, True):
            selected = model.forward_intermediates(
                x, indices=indices, norm=norm, stop_early=stop_early, intermediates_only=True)
            assert_same(selected, expected)


@every_net
def test_stopping_early_runs_no_stage_in_vain(name):
    model = create(name)
    ran = []
    for i, stage in enumerate(model.stages):
        for unit in stage.blocks:
            unit.residual.register_forward_hook(lambda *_, i=i: ran.append(i))
    model.forward_intermediates(images(), indices=[1], norm=True, stop_early=True)
    assert set(ran) == {0}


@some_nets
@pytest.mark.parametrize('norm', [False, True])
def test_checkpointing_leaves_the_intermediates_as_they_are(name, norm):
    model, x = create(name), images()
    final, taps = model.forward_intermediates(x, norm=norm)
    model.set_grad_checkpointing()
    again, taps_again = model.forward_intermediates(x, norm=norm)
    assert_same([again, *taps_again], [final, *taps])


def test_only_one_layout_is_offered():
    with pytest.raises(AssertionError, match='NCHW'):
        create('preact_resnet20').forward_intermediates(images(), output_fmt='NLC')


# Pruning


@every_net
@pytest.mark.parametrize('norm', [False, True])
def test_pruning_leaves_what_a_feature_needs_and_nothing_else(name, norm):
    model, x = create(name), images()
    taps = model.forward_intermediates(x, norm=norm, intermediates_only=True)
    for index, expected in enumerate(taps):
        pruned = copy.deepcopy(model)
        indices = pruned.prune_intermediate_layers([index - levels(name)], prune_norm=not norm)
        assert indices == [index]
        tap, = pruned.forward_intermediates(x, indices=indices, norm=norm, intermediates_only=True)
        assert_same(tap, expected)
        assert_same(pruned(x), expected)
        assert pruned.num_features == expected.shape[1] == pruned.head_hidden_size
        assert pruned.num_classes == 0
        tap.sum().backward()
        assert not [key for key, parameter in pruned.named_parameters() if parameter.grad is None]


@every_net
def test_pruning_at_the_last_level_may_keep_the_head(name):
    model, x = create(name), images()
    pruned = copy.deepcopy(model)
    pruned.prune_intermediate_layers(1, prune_head=False)
    assert_same(pruned(x), model(x))
    pruned.prune_intermediate_layers(1, prune_norm=True, prune_head=False)
    assert pruned(x).shape == model(x).shape


def test_pruning_before_the_last_level_takes_the_head_with_it():
    model = create('preact_resnet20')
    model.prune_intermediate_layers([1], prune_head=False)
    assert model(images()).shape == (2, 16, 32, 32)


@some_nets
def test_a_pruned_net_takes_a_new_classifier(name):
    model = create(name)
    model.prune_intermediate_layers([2])
    model.reset_classifier(7, 'avg')
    assert model(images()).shape == (2, 7)


# Scripting, tracing, exporting, compiling


@every_net
@pytest.mark.filterwarnings('ignore:.torch.jit.script. is deprecated')
def test_torchscript_computes_the_same(name):
    model, x = create(name, scriptable=True), images()
    assert_same(torch.jit.script(model)(x), create(name)(x))


@every_net
@pytest.mark.parametrize('norm', [False, True])
@pytest.mark.filterwarnings('ignore:.torch.jit.script. is deprecated')
def test_torchscript_extracts_the_same_features(name, norm):
    """Without timm's scriptable=True too, as segmentation_models_pytorch makes its encoders."""
    features = create(name, features_only=True, feature_norm=norm, out_indices=(0, 2))
    x = images()
    taps = create(name).forward_intermediates(x, indices=(0, 2), norm=norm, intermediates_only=True)
    assert_same(features(x), taps)
    assert_same(torch.jit.script(features)(x), taps)


@every_net
def test_an_fx_graph_computes_the_same(name):
    model, x = create(name), images()
    assert_same(create_feature_extractor(model, ['head.fc'])(x)['head.fc'], model(x))


@some_nets
def test_an_exported_program_computes_the_same(name):
    model, x = create(name), images()
    program = torch.export.export(model, (x,), strict=False)
    assert_same(program.module()(x), model(x), rtol=1e-5, atol=1e-5)


@some_nets
def test_a_compiled_net_is_one_graph_that_computes_the_same(name):
    model, x = create(name), images()
    assert_same(torch.compile(model, backend='eager', fullgraph=True)(x), model(x), rtol=1e-5, atol=1e-5)


# Head


@every_net
def test_the_classifier_is_replaced(name):
    model, x = create(name), images()
    pooled = model.forward_head(model.forward_features(x), pre_logits=True)
    assert pooled.shape == (2, model.num_features)
    assert_same(model.get_classifier()(pooled), model(x))

    model.reset_classifier(5)
    assert (model.num_classes, model.get_classifier().out_features, model(x).shape) == (5, 5, (2, 5))
    model.reset_classifier(0)
    assert model.num_classes == 0
    assert_same(model(x), pooled)
    model.reset_classifier(0, '')
    assert_same(model(x), model.forward_features(x))


@pytest.mark.parametrize('pool, pooling, width', [
    ('avg', lambda f: f.mean((2, 3)), 64),
    ('max', lambda f: f.amax((2, 3)), 64),
    ('avgmax', lambda f: (f.mean((2, 3)) + f.amax((2, 3))) / 2, 64),
    ('catavgmax', lambda f: torch.cat([f.mean((2, 3)), f.amax((2, 3))], 1), 128),
])
def test_the_pooling_is_chosen_at_creation_or_later(pool, pooling, width):
    x = images()
    model = create('preact_resnet20', global_pool=pool)
    reset = create('preact_resnet20', global_pool='max' if pool == 'avg' else 'avg')
    reset.reset_classifier(7, pool)
    for net, classes in ((model, 10), (reset, 7)):
        pooled = net.forward_head(net.forward_features(x), pre_logits=True)
        assert_same(pooled, pooling(net.forward_features(x)), rtol=1e-5, atol=1e-5)
        assert net.head_hidden_size == net.get_classifier().in_features == width
        assert net(x).shape == (2, classes)
    reset.reset_classifier(3)
    assert reset.get_classifier().in_features == width


def test_a_net_without_head_returns_its_features():
    model = create('preact_resnet20', num_classes=0, global_pool='')
    assert isinstance(model.get_classifier(), nn.Identity)
    assert_same(model(images()), model.forward_features(images()))


def test_a_new_classifier_is_of_the_nets_device_dtype_and_mode():
    model = create('preact_resnet20').to(device='meta', dtype=torch.float64).eval()
    model.reset_classifier(0)
    model.reset_classifier(2, 'max')
    weight = model.get_classifier().weight
    assert (weight.device.type, weight.dtype) == ('meta', torch.float64)
    assert not any(module.training for module in model.modules())


def test_a_frozen_net_stays_frozen_without_its_classifier():
    model = create('preact_resnet20').requires_grad_(False)
    model.reset_classifier(0)
    model.prune_intermediate_layers([1])
    assert not any(parameter.requires_grad for parameter in model.parameters())


# Creation


@every_net
def test_a_net_takes_any_number_of_input_channels(name):
    model = create(name, in_chans=1)
    assert (model.in_chans, model.stem.conv.in_channels) == (1, 1)
    assert model(images(channels=1)).shape == (2, model.num_classes)


@every_net
def test_a_net_is_created_on_a_device_and_in_a_dtype(name):
    tensors = timm.create_model(name, **NETS[name], device='meta', dtype=torch.bfloat16).state_dict()
    counters = [key for key, tensor in tensors.items() if not tensor.is_floating_point()]
    assert all(key.endswith('num_batches_tracked') for key in counters)
    assert {(t.device.type, t.dtype) for key, t in tensors.items() if key not in counters} == {('meta', torch.bfloat16)}


@every_net
def test_a_net_runs_in_bfloat16(name):
    model = timm.create_model(name, **NETS[name], dtype=torch.bfloat16).eval()
    logits = model(images().bfloat16())
    assert logits.dtype == torch.bfloat16
    assert logits.isfinite().all()


def test_the_head_drops_features_in_training():
    model, x = create('preact_resnet20', drop_rate=0.5), images()
    assert_same(model(x), create('preact_resnet20')(x))
    features = torch.ones(64, 64, 2, 2)
    dropped = model.train().forward_head(features, pre_logits=True)
    assert dropped.unique().tolist() == [0., 2.]
    assert dropped.mean().item() == pytest.approx(1., abs=0.1)


@every_net
def test_stochastic_depth_grows_linearly_to_the_last_unit(name):
    model, x = create(name, drop_path_rate=0.3), images()
    units = [module for module in model.modules() if isinstance(module, ResidualUnit)]
    assert isinstance(units[0].drop_path, nn.Identity)
    rates = [unit.drop_path.drop_prob for unit in units[1:]]
    assert rates == pytest.approx([0.3 * i / (len(units) - 1) for i in range(1, len(units))])
    assert_same(model(x), create(name)(x))


def test_stochastic_depth_drops_the_branch_of_an_image():
    model = create('preact_resnet20', drop_path_rate=0.5).train()
    unit, x = model.stages[2].blocks[0], images(batch=64, size=8, channels=32)
    unit.eval().drop_path.train()
    branch = unit.residual(unit.pre(x))
    dropped_or_not = unit(x) - unit.shortcut(unit.pre(x))
    kept = dropped_or_not.flatten(1).any(1)
    assert 16 < kept.sum() < 48
    assert_same(dropped_or_not[kept], 2 * branch[kept], rtol=1e-4, atol=1e-4)


@every_net
@pytest.mark.parametrize('training', [False, True])
def test_a_net_starts_as_its_shortcuts_with_zero_init_last(name, training):
    torch.manual_seed(0)
    model = timm.create_model(name, **NETS[name], zero_init_last=True).train(training)
    branches = []
    for module in model.modules():
        if isinstance(module, ResidualUnit):
            module.residual.register_forward_hook(lambda module, args, output: branches.append(output))
    logits = model(images())
    assert len(branches) == sum(NETS[name]['layers'])
    assert not any(branch.any() for branch in branches)
    assert logits.isfinite().all()


# Training


@every_net
def test_checkpointing_gives_the_same_loss_and_gradients(name):
    results, runs = [], []
    for checkpointing in (False, True):
        model = create(name).train()
        for module in model.modules():
            if isinstance(module, ResidualUnit):
                module.residual.register_forward_pre_hook(lambda *_: runs.append(checkpointing))  # noqa: B023
        model.set_grad_checkpointing(checkpointing)
        torch.manual_seed(2)
        loss = F.cross_entropy(model(images()), torch.tensor([1, 2]))
        loss.backward()
        results.append([loss, *(parameter.grad for parameter in model.parameters())])
    assert_same(results[1], results[0])
    assert runs.count(True) == 2 * runs.count(False) == 2 * sum(NETS[name]['layers'])


@some_nets
def test_every_parameter_learns(name):
    model = create(name).train()
    model(images()).sin().sum().backward()
    assert not [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]


@every_net
def test_layer_groups_follow_the_order_of_the_net(name):
    model = create(name)
    keys = {key for key, _ in model.named_parameters()}
    stages, units = len(NETS[name]['layers']), sum(NETS[name]['layers'])
    for coarse in (False, True):
        layers = group_parameters(model, model.group_matcher(coarse=coarse), reverse=True)
        assert set(layers) == keys
        of = {prefix: {layers[key] for key in keys if key.startswith(prefix)} for prefix in ('stem', 'stages', 'head')}
        assert of['stem'] == {0}
        assert of['stages'] == set(range(1, (stages if coarse else units) + 1))
        assert of['head'] == {max(layers.values())} and not of['head'] & of['stages']
        for i, stage in enumerate(model.stages):
            assert all(layers[f'stages.{i}.{key}'] == i + 1 for key, _ in stage.named_parameters()) or not coarse
    in_order = [layers[key] for key, _ in model.named_parameters()]
    assert in_order == sorted(in_order)


@every_net
def test_parameters_exempt_from_weight_decay_exist(name):
    model = create(name)
    keys = [key for key, _ in model.named_parameters()]
    assert not [pattern for pattern in model.no_weight_decay() if not fnmatch.filter(keys, pattern)]


@some_nets
def test_timms_optimizers_decay_the_rate_by_layer(name):
    model = create(name).train()
    optimizer = create_optimizer_v2(model, opt='sgd', lr=0.1, weight_decay=1e-4, layer_decay=0.5)
    scales = {p: group['lr_scale'] for group in optimizer.param_groups for p in group['params']}
    layers = group_parameters(model, model.group_matcher(), reverse=True)
    last = max(layers.values())
    assert {key: scales[p] for key, p in model.named_parameters()} == {k: 0.5 ** (last - i) for k, i in layers.items()}
    before = [p.clone() for p in model.parameters()]
    F.cross_entropy(model(images()), torch.tensor([1, 2])).backward()
    optimizer.step()
    assert not any(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))


def test_activated_features_are_checkpointed_too():
    """Every branch runs again in backward, with the same gradients."""
    runs, gradients = [], []
    for enable in (False, True):
        model = create('preact_resnet20', features_only=True, feature_norm=True).train()
        model.model.set_grad_checkpointing(enable)
        count = []
        for unit in model.modules():
            if isinstance(unit, ResidualUnit):
                unit.residual.register_forward_pre_hook(lambda module, args, count=count: count.append(module))
        sum(tap.square().mean() for tap in model(images())).backward()
        runs.append(len(count))
        gradients.append([p.grad for p in model.parameters()])
    assert runs[1] == 2 * runs[0]
    assert_same(*gradients, rtol=1e-4, atol=1e-6)
