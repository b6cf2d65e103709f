"""Training that makes BatchNorm's output again: the same numbers, half of what is kept for backward."""
import copy
import os
import subprocess
import sys

import pytest
import timm
import torch
import torch.nn.functional as F
from pytorchcv.model_provider import get_model
from timm.layers import BatchNormAct2d
from torch import nn

from timm_preact.memory import bytes_kept, norm_act_convs
from timm_preact.preact_resnet import MODEL_ARGS

SMALL = dict(layers=(2, 2, 1))
SMALL_IMAGENET = dict(layers=(2, 1, 1, 1), channels=(32, 64, 64, 96))
# A name of every placement, merge, shortcut, stem and number of convolutions.
NETS = [
    'preact_resnet20', 'preact_resnet164', 'preact_resnet110_1layer', 'preact_resnet110_orig',
    'preact_resnet110_bn_after_add', 'preact_resnet110_relu_before_add', 'preact_resnet110_relu_only',
    'preact_resnet110_orig_const_scale', 'preact_resnet110_orig_excl_gate', 'preact_resnet110_orig_conv_shortcut',
    'preact_resnet20_pcv', 'preact_resnet18', 'preact_resnet50', 'preact_resnet101_orig', 'preact_resnet200_fb',
    'preact_resnet50_keras',
]
PEERS = {
    'preact_resnet164': 'preresnet164bn_cifar10',
    'preact_resnet1001': 'preresnet1001_cifar10',
    'preact_resnet152': 'preresnet152b',
    'preact_resnet200': 'preresnet200b',
}


def create(name, dtype=torch.float64, **kwargs):
    """A small net in training mode, the same at each call, whose norms all shift and scale what they read."""
    torch.manual_seed(0)
    small = SMALL if len(MODEL_ARGS[name]['layers']) == 3 else SMALL_IMAGENET
    model = timm.create_model(name, **{**small, **kwargs}).to(dtype).train()
    for module in model.modules():
        if isinstance(module, BatchNormAct2d):
            nn.init.uniform_(module.weight, -0.5, 1.5)
            nn.init.normal_(module.bias, std=0.5)
    return model


def images(sample, count=16, dtype=torch.float64):
    """Real images at half their size, and their labels."""
    every = slice(0, 500, 500 // count)
    x = torch.from_numpy(sample.images[every, ::2, ::2][:count]).permute(0, 3, 1, 2).to(dtype) / 128 - 1
    return x, torch.from_numpy(sample.labels[every][:count]).long()


def noise(name):
    """Two images of the size that the name is for."""
    size = timm.get_pretrained_cfg(name).input_size[-1]
    return torch.randn(2, 3, size, size), torch.tensor([1, 2])


def step(model, x, y, autocast=False):
    """Loss, gradients and buffers after one forward and backward."""
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        loss = F.cross_entropy(model(x), y)
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters()}
    return loss.detach(), gradients, dict(model.named_buffers())


def kept(model, x, y, autocast=False):
    with torch.autocast('cpu', torch.bfloat16, enabled=autocast):
        return bytes_kept(model, lambda: F.cross_entropy(model(x), y))[0]


def assert_same_step(actual, expected, rtol=1e-6):
    torch.testing.assert_close(actual[0], expected[0], rtol=rtol, atol=0)
    for kind in (1, 2):
        assert actual[kind].keys() == expected[kind].keys()
        for name, tensor in expected[kind].items():
            scale = tensor.abs().max().double().item() if tensor.numel() else 0.
            torch.testing.assert_close(actual[kind][name], tensor, rtol=rtol, atol=rtol * scale + 1e-14, msg=name)


# What is computed


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('name', NETS)
def test_gradients_and_running_statistics_are_those_of_the_plain_net(name, memory_format, sample):
    x, y = images(sample)
    nets = [create(name, recompute_norms=r).to(memory_format=memory_format) for r in (True, False)]
    expected = step(nets[1], x, y)
    assert_same_step(step(nets[0], x, y), expected)
    assert all(count == 1 for name, count in expected[2].items() if name.endswith('num_batches_tracked'))


@pytest.mark.parametrize('name', ['preact_resnet20', 'preact_resnet110_orig'])
def test_float32_and_bfloat16_are_as_near_to_float64_as_without(name, sample):
    """Rounding differs, so the yardstick is the plain net's own distance from float64."""
    x, y = images(sample, 32)
    exact = torch.cat([g.flatten() for g in step(create(name), x, y)[1].values()])

    def distance(recompute, autocast):
        net = create(name, torch.float32, recompute_norms=recompute).to(memory_format=torch.channels_last)
        gradients = step(net, x.float(), y, autocast)[1].values()
        return (torch.cat([g.flatten() for g in gradients]).double() - exact).norm() / exact.norm()

    for autocast in (False, True):
        assert distance(True, autocast) < 1.5 * distance(False, autocast) + 1e-6


def test_a_batch_in_several_parts_gives_the_sum_of_their_gradients(sample, monkeypatch):
    x, y = images(sample)
    expected = step(create('preact_resnet164'), x, y)
    monkeypatch.setattr('timm_preact.memory.CACHE', 3 * 64 * 16 * 16 * 8)
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
    for name, gradient in results[1][1].items():
        if gradient is None:
            assert results[0][1][name] is None
        else:
            torch.testing.assert_close(results[0][1][name], gradient)


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
    with pytest.raises(ValueError, match='checkpoint_every=0 units are none: give a number from 1 on'):
        timm.create_model('preact_resnet20', checkpoint_every=0)
