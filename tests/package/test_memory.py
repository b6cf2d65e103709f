"""Training that makes BatchNorm's output again: the same numbers, half of what is kept for backward."""
import copy
import gc
import os
import statistics
import subprocess
import sys

import pytest
import timm
import torch
import torch.nn.functional as F
from pytorchcv.model_provider import get_model
from support.networks import NETS, Calls, assert_same_step, create, step
from timm.layers import BatchNormAct2d, StdConv2d
from torch import nn
from torch.autograd import forward_ad
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.weak import TensorWeakRef

from timm_preact.inference import optimize
from timm_preact.memory import bytes_kept, norm_act_convs

PEERS = {
    'preact_resnet164': 'preresnet164bn_cifar10',
    'preact_resnet1001': 'preresnet1001_cifar10',
    'preact_resnet152': 'preresnet152b',
    'preact_resnet200': 'preresnet200b',
}


def images(sample, count=16, dtype=torch.float64, start=0):
    """Real images at half their size, and their labels; others for another start."""
    every = slice(start, 500, 500 // count)
    x = torch.from_numpy(sample.images[every, ::2, ::2][:count]).permute(0, 3, 1, 2).to(dtype) / 128 - 1
    return x, torch.from_numpy(sample.labels[every][:count]).long()


def noise(name):
    """Two images of the size that the name is for."""
    size = timm.get_pretrained_cfg(name).input_size[-1]
    return torch.randn(2, 3, size, size), torch.tensor([1, 2])


def kept(model, x, y, autocast=False):
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        return bytes_kept(model, lambda: F.cross_entropy(model(x), y))[0]


# What is computed


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('name', NETS)
def test_gradients_and_running_statistics_are_those_of_the_plain_net(name, memory_format, sample):
    x, y = images(sample)
    nets = [create(name, recompute_norms=r).to(memory_format=memory_format) for r in (True, False)]
    expected = step(nets[1], x, y)
    assert_same_step(step(nets[0], x, y), expected)
    assert all(count == 1 for name, count in expected[2].items() if name.endswith('num_batches_tracked'))


@pytest.mark.parametrize('autocast, draws', [(False, 5), (True, 1)], ids=['float32', 'bfloat16'])
@pytest.mark.parametrize('name', ['preact_resnet20', 'preact_resnet110_orig'])
def test_float32_and_bfloat16_are_as_near_to_float64_as_without(name, autocast, draws, sample):
    """Rounding differs, so the yardstick is the plain net's own distance from float64.

    Where float32 rounds a value to the other side of zero, a ReLU's gradient jumps, in one net or the other: that
    happens in a few draws of images, and the one in the middle is without it. In bfloat16 it happens everywhere.
    """
    ratios = []
    for draw in range(draws):
        x, y = images(sample, 32, start=draw)
        exact = torch.cat([g.flatten() for g in step(create(name), x, y)[1].values()])
        distances = []
        for recompute in (True, False):
            net = create(name, torch.float32, recompute_norms=recompute).to(memory_format=torch.channels_last)
            gradients = step(net, x.float(), y, autocast)[1].values()
            distances.append((torch.cat([g.flatten() for g in gradients]).double() - exact).norm())
        ratios.append((distances[0] / distances[1]).item())
    assert statistics.median(ratios) < 1.5


def test_a_batch_in_several_parts_gives_the_sum_of_their_gradients(sample, monkeypatch):
    x, y = images(sample)
    expected = step(create('preact_resnet164'), x, y)
    monkeypatch.setattr('timm_preact.kernels.onednn.CACHE', 3 * 64 * 16 * 16 * 8)
    assert_same_step(step(create('preact_resnet164', recompute_norms=True), x, y), expected)


def test_a_norm_with_convolutions_is_what_the_modules_compute():
    """Stride, dilation, groups, biases, a sum and the activated tensor itself, all with gradients."""
    torch.manual_seed(0)
    norm = BatchNormAct2d(8).double()
    convs = [nn.Conv2d(8, 12, 3, stride=2, padding=2, dilation=2, bias=True), nn.Conv2d(8, 8, 1, groups=4, bias=False)]
    convs = [conv.double() for conv in convs]
    x = torch.randn(4, 8, 9, 9, dtype=torch.float64, requires_grad=True)
    plus = torch.randn(4, 12, 5, 5, dtype=torch.float64, requires_grad=True)
    leaves = [x, plus, *norm.parameters(), *convs[0].parameters(), *convs[1].parameters()]

    def gradients(a, y, z):
        return torch.autograd.grad((a.sin().sum() + y.cos().sum() + z.square().sum()), leaves)

    actual = gradients(*norm_act_convs(x, norm, convs, plus))
    a = copy.deepcopy(norm)(x)
    expected = torch.autograd.grad(
        a.sin().sum() + (convs[0](a) + plus).cos().sum() + convs[1](a).square().sum(), [x, plus], retain_graph=True)
    torch.testing.assert_close(actual[:2], expected)
    a = norm(x)
    expected = gradients(a, convs[0](a) + plus, convs[1](a))
    torch.testing.assert_close(actual, expected)


def test_frozen_parameters_get_no_gradient(sample):
    x, y = images(sample)
    nets = [create('preact_resnet164', recompute_norms=r) for r in (True, False)]
    for net in nets:
        for name, parameter in net.named_parameters():
            parameter.requires_grad_('conv2' in name or 'head' in name)
    results = [step(net, x, y) for net in nets]
    assert len(results[1][1]) < len(list(nets[1].parameters()))
    assert_same_step(*results)


@pytest.mark.parametrize('name', NETS)
def test_eval_mode_is_untouched(name, sample):
    x, _ = images(sample, 4)
    with torch.no_grad():
        assert torch.equal(create(name, recompute_norms=True).eval()(x), create(name).eval()(x))


def test_other_norms_and_activations_train_as_without(sample):
    x, y = images(sample)
    for kwargs in (dict(act_layer='silu'), dict(norm_layer='groupnorm1')):
        nets = [create('preact_resnet20', recompute_norms=r, **kwargs) for r in (True, False)]
        assert_same_step(step(nets[0], x, y), step(nets[1], x, y))


# States of the modules in which they run themselves: each changes what BatchNorm computes or updates, and so must be
# listed in `can_make_again`, or leaves its replacement right.


def track_nothing(norm):
    """What Lightning's BaseFinetuning.freeze(train_bn=False) does, beside freezing the parameters."""
    norm.track_running_stats = False


def average_cumulatively(norm):
    norm.momentum = None


def evaluate_alone(norm):
    norm.eval()


def drop_buffers(norm):
    norm.running_mean = norm.running_var = None


def drop_mean(norm):
    norm.running_mean = None


def drop_count(norm):
    norm.num_batches_tracked = None


def drop_weight(norm):
    norm.weight = None


def drop_bias(norm):
    norm.bias = None


def freeze(norm):
    norm.requires_grad_(False)


def freeze_bias(norm):
    norm.bias.requires_grad_(False)


def replace_weight(norm):
    norm.weight = nn.Parameter(norm.weight.detach() + 1)


def replace_buffers(norm):
    norm.running_mean, norm.running_var = norm.running_mean + 1, norm.running_var + 1


def share_parameters(norm):
    norm.bias = norm.weight


def update_little(norm):
    norm.momentum = 0.


@pytest.mark.parametrize('change', [
    track_nothing, average_cumulatively, evaluate_alone, drop_buffers, drop_mean, drop_count, drop_weight, drop_bias,
    freeze, freeze_bias, replace_weight, replace_buffers, share_parameters, update_little],
    ids=lambda change: change.__name__)
@pytest.mark.parametrize('name', ['preact_resnet20', 'preact_resnet164', 'preact_resnet110_orig'])
def test_a_norm_in_any_state_trains_as_without(name, change, sample):
    """Two steps, the second with what the first left in the buffers; or the error of the modules."""
    x, y = images(sample)
    outcomes = []
    for recompute in (True, False):
        model = create(name, recompute_norms=recompute)
        for module in model.modules():
            if isinstance(module, BatchNormAct2d):
                change(module)
        try:
            step(model, x, y)
            outcomes.append(step(model, x, y))
        except Exception as e:
            outcomes.append(repr(e))
    if isinstance(outcomes[1], str):
        assert outcomes[0] == outcomes[1]
    else:
        assert_same_step(*outcomes)


def test_frozen_statistics_stay_as_they_are_on_noise():
    """Twenty steps on noise of a network whose BatchNorms are frozen as Lightning freezes them."""
    model = timm.create_model('preact_resnet20', pretrained=True, recompute_norms=True).train()
    for module in model.modules():
        if isinstance(module, BatchNormAct2d):
            track_nothing(module)
            freeze(module)
    before = {name: buffer.clone() for name, buffer in model.named_buffers()}
    for _ in range(20):
        model(torch.randn(8, 3, 32, 32)).sum().backward()
    assert len(before) == 57 and all(torch.equal(buffer, before[name]) for name, buffer in model.named_buffers())


def test_an_empty_batch_trains_as_without():
    for name in ('preact_resnet20', 'preact_resnet164'):
        shapes = [create(name, recompute_norms=r)(torch.zeros(0, 3, 16, 16, dtype=torch.float64)).shape
                  for r in (True, False)]
        assert shapes[0] == shapes[1] == (0, 10)


def test_shared_norms_and_convolutions_train_as_without(sample):
    x, y = images(sample)
    results = []
    for recompute in (True, False):
        model = create('preact_resnet20', recompute_norms=recompute)
        first, second = model.stages[0].blocks
        second.residual.norm1, second.residual.conv2 = first.residual.norm1, first.residual.conv2
        first.pre = first.residual.norm1
        results.append(step(model, x, y))
    assert_same_step(*results)


@pytest.mark.parametrize('dtypes', [
    (torch.float32, torch.bfloat16, torch.float32), (torch.bfloat16, torch.float32, torch.float32),
    (torch.float32, torch.float32, torch.bfloat16), (torch.float64, torch.float32, torch.float64)])
def test_types_that_differ_compute_or_fail_as_without(dtypes, sample):
    """Images, BatchNorms and convolutions each in a type of their own, without autocast."""
    x, y = images(sample, dtype=dtypes[0])
    outcomes = []
    for recompute in (True, False):
        model = create('preact_resnet20', torch.float32, recompute_norms=recompute)
        for module in model.modules():
            if isinstance(module, BatchNormAct2d):
                module.to(dtypes[1])
            elif isinstance(module, (nn.Conv2d, nn.Linear)):
                module.to(dtypes[2])
        try:
            outcomes.append(step(model, x, y))
        except RuntimeError as e:
            outcomes.append(str(e))
    if isinstance(outcomes[1], str):
        assert outcomes[0] == outcomes[1]
    else:
        assert_same_step(*outcomes, rtol=1e-2 if torch.bfloat16 in dtypes else 1e-4)


def test_autocast_leaves_a_float64_network_as_it_is(sample):
    x, y = images(sample)
    expected = step(create('preact_resnet20'), x, y)
    assert_same_step(step(create('preact_resnet20', recompute_norms=True), x, y, autocast=True), expected)


def test_transforms_of_torch_func_and_forward_mode_see_the_modules(sample):
    """They refuse a custom backward. Buffers are arguments too, since they are updated in place."""
    x, y = images(sample, 4)
    gradients, tangents = [], []
    for recompute in (True, False):
        model = create('preact_resnet20', recompute_norms=recompute)
        parameters = {name: p.detach() for name, p in model.named_parameters()}
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}

        def loss(parameters, buffers, model=model):
            return F.cross_entropy(torch.func.functional_call(model, (parameters, buffers), x), y)

        gradients.append(torch.func.grad(loss)(parameters, buffers))
        with forward_ad.dual_level():
            logits = create('preact_resnet20', recompute_norms=recompute)(forward_ad.make_dual(x, torch.ones_like(x)))
            tangents.append(forward_ad.unpack_dual(logits).tangent)
    torch.testing.assert_close(*gradients)
    torch.testing.assert_close(*tangents)
    assert tangents[0].abs().max() > 0


class Lora(nn.Conv2d):
    """A convolution with an update of rank 2 beside its frozen weight, as fine-tuning libraries make it."""

    def __init__(self, conv):
        super().__init__(conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, bias=False)
        self.weight = nn.Parameter(conv.weight.detach(), requires_grad=False)
        self.down = nn.Parameter(torch.randn(2, *conv.weight.shape[1:]) / 10)
        self.up = nn.Parameter(torch.randn(conv.out_channels, 2) / 10)

    def forward(self, x):
        update = torch.einsum('or,rihw->oihw', self.up, self.down)
        return self._conv_forward(x, self.weight + update, None)


def standardised(conv):
    return StdConv2d(conv.in_channels, conv.out_channels, conv.kernel_size[0], conv.stride[0], conv.padding[0])


def circular(conv):
    conv.padding_mode, conv._reversed_padding_repeated_twice = 'circular', [p for p in conv.padding for _ in range(2)]
    return conv


def watched(conv):
    conv.register_forward_hook(lambda module, args, output: output.flip(2))
    return conv


def wrapped(conv):
    conv.forward = lambda x, forward=conv.forward: forward(x).flip(2)
    return conv


@pytest.mark.parametrize('change', [
    Lora, standardised, circular, weight_norm, watched, wrapped],
    ids=lambda change: change.__name__)
@pytest.mark.parametrize('name', ['preact_resnet20', 'preact_resnet164', 'preact_resnet110_orig'])
def test_a_convolution_that_was_replaced_trains_as_without(name, change, sample):
    """One is not exactly a Conv2d of zeros' padding: its forward runs, in training as in evaluation."""
    x, y = images(sample)
    results = []
    for recompute in (True, False):
        model = create(name, recompute_norms=recompute)
        torch.manual_seed(2)
        for unit in (unit for stage in model.stages for unit in stage.blocks):
            for key in ('conv1', 'conv2'):
                setattr(unit.residual, key, change(getattr(unit.residual, key)).double())
        results.append(step(model, x, y))
    assert_same_step(*results)
    plain = step(create(name), x, y)
    if change is not weight_norm:  # which changes what is trained, not the function
        assert abs(results[0][0] - plain[0]) > 1e-6


@pytest.mark.parametrize('part', ['pre', 'residual', 'residual.norm1', 'residual.conv2', 'residual.norm1.act', 'merge',
                                  'shortcut', 'drop_path'])
def test_hooks_inside_a_unit_see_what_they_see_without(part, sample):
    x, y = images(sample)
    seen = []
    for recompute in (True, False):
        model, calls = create('preact_resnet20', recompute_norms=recompute), []
        module = model.stages[0].blocks[1].get_submodule(part)
        module.register_forward_hook(lambda module, args, output, calls=calls: calls.append((*args, output)))
        if not getattr(module, 'inplace', False):  # torch refuses these there
            module.register_full_backward_hook(
                lambda module, of_in, of_out, calls=calls: calls.append((*of_in, *of_out)))
        step(model, x, y)
        seen.append(calls)
    assert len(seen[0]) == len(seen[1]) == (1 if part.endswith('act') else 2)
    torch.testing.assert_close(*seen)


def test_torchs_global_hooks_see_every_module(sample):
    x, y = images(sample)
    counts = []
    for recompute in (True, False):
        model, calls = create('preact_resnet20', recompute_norms=recompute), []
        handle = nn.modules.module.register_module_forward_hook(lambda module, *_, calls=calls: calls.append(module))
        step(model, x, y)
        handle.remove()
        counts.append(len(calls))
    assert counts[0] == counts[1]


def test_one_value_a_channel_is_refused_as_batchnorm_refuses_it():
    """A variance of one value is none; running_var would become NaN."""
    x = torch.randn(1, 3, 4, 4, dtype=torch.float64)
    sentences = []
    for recompute in (True, False):
        model = create('preact_resnet20', recompute_norms=recompute)
        with pytest.raises(ValueError) as e:
            model(x)
        sentences.append(str(e.value))
    assert sentences[0] == sentences[1] and 'more than 1 value per channel' in sentences[0]
    norm = BatchNormAct2d(8).double()
    with pytest.raises(ValueError, match='more than 1 value per channel'):
        norm_act_convs(torch.randn(1, 8, 1, 1, dtype=torch.float64), norm, [nn.Conv2d(8, 8, 1).double()])
    assert norm.num_batches_tracked == 0 and torch.equal(norm.running_var, torch.ones(8, dtype=torch.float64))


def test_tracers_follow_it_in_training_mode(sample):
    """torch.fx, timm's features by it, torchvision's, and torch.jit.trace see the modules."""
    from torchvision.models.feature_extraction import create_feature_extractor
    x, y = images(sample, 4)
    plain, model = create('preact_resnet164'), create('preact_resnet164', recompute_norms=True)
    expected = plain(x)
    torch.testing.assert_close(torch.fx.symbolic_trace(model)(x), expected)
    torch.testing.assert_close(torch.jit.trace(model, x, check_trace=False)(x), expected)
    taps = create_feature_extractor(model, ['stages.1.blocks.1'])(x)
    assert taps['stages.1.blocks.1'].shape[1] == 128
    features = create('preact_resnet164', recompute_norms=True, features_only=True, feature_cls='fx')
    assert len(features(x)) == 4


@pytest.mark.parametrize('dtype', [torch.bfloat16, torch.float16])
def test_no_operator_gets_what_cuda_refuses(dtype, sample, monkeypatch):
    """Without Triton a GPU runs what a CPU runs without oneDNN. CUDA refuses, or did in a torch that we promise:

    a BatchNorm with an eps of 0 (F.batch_norm of 2.11; cuDNN wants 1e-5); operators of mkldnn; a convolution whose
    input, weight and bias are not of one type; a BatchNorm whose statistics are not of the type of its weight.
    """
    monkeypatch.setattr('timm_preact.kernels.onednn.takes', lambda x: False)
    given = []
    batch_norm = F.batch_norm
    monkeypatch.setattr(F, 'batch_norm', lambda *args: given.append(args[7]) or batch_norm(*args))
    x, y = images(sample, 8, torch.float32)
    model = create('preact_resnet20', torch.float32, recompute_norms=True)
    with Calls() as calls:
        with torch.autocast('cpu', dtype):
            loss = F.cross_entropy(model(x), y)
        loss.backward()
        with torch.inference_mode():
            assert optimize(model.eval(), dtype=dtype)(x.to(dtype)).isfinite().all()
    assert len(given) > 20 and min(given) >= 1e-5
    kinds = set()
    for function, args, _ in calls.made:
        name = function.name().partition('.')[0]
        kinds.add(name)
        assert not name.startswith(('mkldnn', 'onednn'))
        tensors = [a for a in args if isinstance(a, torch.Tensor)]
        if name == 'aten::convolution':
            assert len({tensor.dtype for tensor in tensors}) == 1
        elif name == 'aten::convolution_backward':
            assert len({tensor.dtype for tensor in tensors[:3]}) == 1
        elif 'batch_norm' in name and 'update_stats' not in name:
            statistics = [a for a in args[1:] if isinstance(a, torch.Tensor) and a.ndim == 1 and len(a)]
            assert len({tensor.dtype for tensor in statistics}) == 1
    assert {'aten::convolution', 'aten::convolution_backward', 'aten::batch_norm_update_stats'} <= kinds


# What is kept


@pytest.mark.parametrize('name, peer', PEERS.items())
def test_at_most_54_percent_of_what_pytorchcv_keeps(name, peer):
    x, y = noise(name)
    ours = kept(timm.create_model(name, recompute_norms=True).train(), x, y)
    theirs = kept(get_model(peer).train(), x, y)
    assert ours <= 0.54 * theirs


@pytest.mark.parametrize('name, every', [('preact_resnet164', 6), ('preact_resnet152', 6)])
def test_segments_keep_at_most_12_percent_of_what_pytorchcv_keeps(name, every):
    x, y = noise(name)
    model = timm.create_model(name, checkpoint_every=every).train()
    model.set_grad_checkpointing()
    ours = kept(model, x, y)
    theirs = kept(get_model(PEERS[name]).train(), x, y)
    assert ours <= 0.12 * theirs


def test_autocast_keeps_half_too(sample):
    x, y = images(sample, 64, torch.float32)
    ours, theirs = (kept(create('preact_resnet164', torch.float32, recompute_norms=r), x, y, autocast=True)
                    for r in (True, False))
    assert ours <= 0.54 * theirs


# What it goes with


@pytest.mark.parametrize('recompute', [False, True])
@pytest.mark.parametrize('every', [1, 2, 5])
@pytest.mark.parametrize('name', ['preact_resnet20', 'preact_resnet164', 'preact_resnet110_orig'])
def test_checkpointing_updates_running_statistics_once(name, every, recompute, sample):
    x, y = images(sample)
    expected = step(create(name), x, y)
    model = create(name, checkpoint_every=every, recompute_norms=recompute)
    model.set_grad_checkpointing()
    assert_same_step(step(model, x, y), expected)
    norm = model.stages[0].blocks[0].residual.norm1
    assert norm.momentum == 0.1 and norm.num_batches_tracked == 1


@pytest.mark.parametrize('feature_cls, counts', [('list', {1, 2}), ('getter', {1})])
def test_checkpointed_features_update_running_statistics_as_documented(feature_cls, counts, sample):
    """timm's own wrapper checkpoints as for every network, which updates twice; the network in a getter once."""
    x, _ = images(sample)
    backbone = create('preact_resnet20', features_only=True, feature_cls=feature_cls)
    (backbone.model if feature_cls == 'getter' else backbone).set_grad_checkpointing()
    sum(tap.square().sum() for tap in backbone(x)).backward()
    found = {count.item() for name, count in backbone.named_buffers() if name.endswith('num_batches_tracked')}
    assert found == counts


def test_checkpointed_activated_features_update_running_statistics_once(sample):
    x, _ = images(sample)
    results = []
    for checkpointing in (True, False):
        model = create('preact_resnet164')
        model.set_grad_checkpointing(checkpointing)
        sum(tap.square().sum() for tap in model.forward_intermediates(x, norm=True)[1]).backward()
        model.head = nn.Identity()  # nothing has read it
        results.append([dict(model.named_buffers()), {name: p.grad for name, p in model.named_parameters()}])
    for actual, expected in zip(*results, strict=True):
        for name, tensor in expected.items():
            torch.testing.assert_close(actual[name], tensor, msg=name)


def test_a_compiled_net_computes_the_same(sample):
    x, y = images(sample)
    expected = step(create('preact_resnet164'), x, y)
    model = create('preact_resnet164', recompute_norms=True)
    loss, _, _ = step(torch.compile(model, backend='aot_eager'), x, y)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert_same_step((loss, gradients, dict(model.named_buffers())), expected)


DDP = '''
import sys, timm, torch, torch.distributed as dist, torch.nn.functional as F
import timm_preact
dist.init_process_group('gloo')
results = []
for recompute in (True, False):
    torch.manual_seed(0)
    net = timm.create_model('preact_resnet164', layers=(2, 1, 1), recompute_norms=recompute).double()
    model = torch.nn.parallel.DistributedDataParallel(net)
    generator = torch.Generator().manual_seed(dist.get_rank())
    for _ in range(2):
        x = torch.randn(8, 3, 16, 16, dtype=torch.float64, generator=generator)
        F.cross_entropy(model(x), torch.arange(8)).backward()
    results.append([p.grad for p in net.parameters()] + list(net.buffers()))
torch.testing.assert_close(*results)
for tensor in results[0][:len(list(net.parameters()))]:
    other = tensor.clone()
    dist.broadcast(other, 0)
    assert torch.equal(other, tensor)
del model  # it holds the process group, whose threads would now and then abort the interpreter's exit
dist.destroy_process_group()
'''


def test_two_processes_average_the_same_gradients(tmp_path):
    script = tmp_path / 'ddp.py'
    script.write_text(DDP)
    subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc-per-node', '2', str(script)],
        check=True, env=dict(os.environ, OMP_NUM_THREADS='1'), timeout=300)


def test_a_segment_of_no_units_is_refused():
    with pytest.raises(ValueError, match='checkpoint_every must be at least 1, got 0'):
        timm.create_model('preact_resnet20', checkpoint_every=0)


def test_counting_what_is_kept_lets_go_of_it():
    """A graph that held its own outputs would stay, a hundred megabytes a call."""
    model, kept = timm.create_model('preact_resnet20').train(), []
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(lambda module, args, output: kept.append(TensorWeakRef(output)))
    count, result = bytes_kept(model, lambda: model(torch.randn(2, 3, 32, 32)))
    assert count > 0 and len(kept) == 19
    del result
    gc.collect()
    assert all(tensor() is None for tensor in kept)
