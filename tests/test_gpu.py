"""Every path of the package on a GPU, in under a minute: pytest -m gpu tests/test_gpu.py"""
import copy
import json
import pickle

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from support.networks import NETS, assert_close, assert_same_step, create, step
from support.replicas import NETS as KINDS
from support.replicas import Beside, distance
from support.replicas import net as replica_of
from support.runs import assert_same_bits, cut_after, ends, outcome
from typer.testing import CliRunner

from timm_preact import benchmark, kernels, propagation
from timm_preact.cli import app
from timm_preact.evaluation import Images, eval_transform, evaluate
from timm_preact.inference import optimize
from timm_preact.preact_resnet import MODEL_ARGS
from train.recipe import choose_recipe

pytestmark = [
    pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')]
GPU = torch.device('cuda', 0)
VARIANTS = {
    'recompute': dict(recompute_norms=True), 'checkpoint': dict(checkpoint_every=2),
    'both': dict(recompute_norms=True, checkpoint_every=2),
}


@pytest.fixture(autouse=True)
def float32_is_float32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', False)


def net(name, dtype, checkpoint_every=None, **kwargs):
    """On the GPU, in training mode; checkpointed if that many units are named."""
    model = create(name, dtype, **kwargs, **({} if checkpoint_every is None else dict(
        checkpoint_every=checkpoint_every))).to(GPU)
    model.set_grad_checkpointing(checkpoint_every is not None)
    return model


def images(sample, name, dtype=torch.float64, count=16):
    """Real images and their labels."""
    size = 32 if len(MODEL_ARGS[name]['layers']) == 3 else 64
    every = np.arange(count) * (500 // count)
    x = torch.from_numpy(sample.images[every]).permute(0, 3, 1, 2).to(GPU, dtype) / 128 - 1
    x = torch.nn.functional.interpolate(x, size) if size != 32 else x[:, :, ::2, ::2].contiguous()
    return x, torch.from_numpy(sample.labels[every]).to(GPU)


def flat(gradients):
    return torch.cat([g.flatten() for g in gradients.values()]).double().cpu()


@pytest.mark.parametrize('name', NETS)
def test_a_step_in_float64_is_that_of_the_cpu_however_it_saves_memory(name, sample):
    x, y = images(sample, name)
    expected = step(net(name, torch.float64), x, y)
    if 'dropout' not in name:  # whose masks the two draw differently
        on_cpu = step(create(name), x.cpu(), y.cpu())
        assert_same_step([on_cpu[0].to(GPU), *({k: v.to(GPU) for k, v in d.items()} for d in on_cpu[1:])], expected)
    for kwargs in VARIANTS.values():
        assert_same_step(step(net(name, torch.float64, **kwargs), x, y), expected, 1e-9)


@pytest.mark.parametrize('memory_format', [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize('autocast', [False, True], ids=['float32', 'bfloat16'])
@pytest.mark.parametrize('name', [name for name in NETS if 'dropout' not in name])  # masks depend on the type
def test_a_step_is_as_near_to_float64_however_it_saves_memory(name, autocast, memory_format, sample):
    """Rounding differs, so the yardstick is the plain net's own distance; each ReLU that flips moves it."""
    x, y = images(sample, name)
    exact = flat(step(net(name, torch.float64), x, y)[1])

    def distance(**kwargs):
        model = net(name, torch.float32, **kwargs).to(memory_format=memory_format)
        return (flat(step(model, x.float(), y, autocast)[1]) - exact).norm() / exact.norm()

    plain = distance()
    assert plain < (1. if autocast else 0.02)
    for variant, kwargs in VARIANTS.items():
        assert distance(**kwargs) < 1.5 * plain + 0.02, variant


@pytest.mark.parametrize('channels_last', [False, True])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize('name', NETS)
def test_an_optimised_net_computes_the_same(name, dtype, channels_last, sample):
    x, _ = images(sample, name)
    exact = net(name, torch.float64).eval()
    model = net(name, torch.float32 if dtype != torch.float64 else dtype).eval()
    with torch.inference_mode():
        expected = exact(x)
        fast = optimize(model, dtype=dtype, channels_last=channels_last)(x.to(dtype))
        assert fast.dtype == dtype
        if dtype in (torch.float64, torch.float32):
            assert_close(fast.double(), expected, 1e-10 if dtype == torch.float64 else 1e-4)
        else:
            plain = model.to(dtype)(x.to(dtype))
            assert (fast - expected).norm() < 1.5 * (plain - expected).norm()


def test_an_optimised_net_as_a_cuda_graph_computes_the_same(sample):
    x, _ = images(sample, 'preact_resnet164', torch.bfloat16)
    fast = optimize(net('preact_resnet164', torch.float32).eval(), dtype=torch.bfloat16)
    with torch.inference_mode():
        stream = torch.cuda.Stream()
        with torch.cuda.stream(stream):
            expected = fast(x)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            logits = fast(x)
        logits.zero_()
        graph.replay()
        assert torch.equal(logits, expected)


SHAPES = [(64, 64, 56, 56), (32, 256, 28, 28), (7, 24, 9, 5), (4, 2048, 7, 7), (64, 3, 32, 32)]


@pytest.mark.parametrize('shape', SHAPES, ids=str)
@pytest.mark.parametrize('dtype, tolerance', [(torch.float32, 2e-3), (torch.bfloat16, 1e-2), (torch.float16, 1e-2)],
                         ids=lambda value: str(value))
def test_a_norm_and_its_backward_are_autograds_twice_to_the_bit(dtype, tolerance, shape):
    """The first launch of a kernel goes through Triton, the second one does not."""
    torch.manual_seed(0)
    x, grad = ((torch.randn(shape, device=GPU) * 2 + 1).to(dtype, memory_format=torch.channels_last) for _ in range(2))
    weight, bias = (torch.randn(shape[1], device=GPU) for _ in range(2))
    found = []
    for _ in range(2):
        running = [torch.zeros_like(bias), torch.ones_like(bias), torch.tensor(3, device=GPU)]
        a, stats = kernels.norm_relu(x, weight, bias, running, 0.1, 1e-5)
        exact_stats = kernels.norm_relu(x.float(), weight, bias, [*running[:2], None], 0., 1e-5)[1]
        gradients = kernels.norm_relu_backward(x, weight, exact_stats, lambda a, part: grad)
        found.append((a, stats, *gradients, *running))
        number = len(kernels.gpu().compiled)
    assert kernels.gpu().works and (number > 0 or not kernels.gpu().LAUNCHES_COMPILED)
    assert all(torch.equal(first, second) for first, second in zip(*found, strict=True))
    a, stats, *gradients, running_mean, running_var, count = found[0]
    leaves = [t.double().requires_grad_() for t in (x, weight, bias)]
    exact = torch.nn.functional.batch_norm(leaves[0], None, None, leaves[1], leaves[2], True).relu()
    expected = torch.autograd.grad(exact, leaves, grad.double())
    for actual, wanted in zip((a, *gradients), (exact, *expected), strict=True):
        assert (actual.double() - wanted).norm() < tolerance * wanted.norm()
    torch.testing.assert_close(running_mean.double(), 0.1 * x.double().mean((0, 2, 3)), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(running_var.double(), 0.9 + 0.1 * x.double().var((0, 2, 3)), rtol=1e-5, atol=1e-6)
    assert count == 4


def test_a_kernel_runs_on_addresses_that_do_not_divide_by_16():
    x = torch.randn(1, 5, 3, 3, device=GPU).to(memory_format=torch.channels_last)
    scale, shift = torch.randn(2, 5, device=GPU)  # rows of 20 bytes
    for _ in range(2):
        actual = kernels.scale_shift_relu(x, scale, shift)
        torch.testing.assert_close(actual, (x * scale.view(-1, 1, 1) + shift.view(-1, 1, 1)).relu())
    assert kernels.gpu().works


def test_a_step_that_recomputes_can_be_captured(sample):
    x, y = images(sample, 'preact_resnet50', torch.float32)
    model = net('preact_resnet50', torch.float32, recompute_norms=True).to(memory_format=torch.channels_last)

    def run():
        model.zero_grad(set_to_none=True)
        with torch.autocast('cuda', torch.bfloat16, cache_enabled=False):
            loss = torch.nn.functional.cross_entropy(model(x), y)
        loss.backward()
        return loss.detach()

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            expected = run().clone()
        gradients = flat({name: p.grad for name, p in model.named_parameters()})
    torch.cuda.current_stream().wait_stream(stream)
    model.zero_grad(set_to_none=True)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss = run()
    for p in model.parameters():
        p.grad.zero_()
    loss.zero_()
    graph.replay()
    torch.testing.assert_close(loss, expected, rtol=1e-3, atol=0)
    captured = flat({name: p.grad for name, p in model.named_parameters()})
    assert (captured - gradients).norm() < 0.01 * gradients.norm()
    assert kernels.gpu().works and model.stages[0].blocks[0].pre.num_batches_tracked == 4


def fused(dtype):
    """An optimised net that captures itself, and a way to see whether it did."""
    model = optimize(net('preact_resnet50', torch.float32).eval(), dtype=dtype, cuda_graph=True)
    return model, model._compiled_call_impl.recordings


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_an_optimised_net_captures_itself(dtype, sample):
    x, _ = images(sample, 'preact_resnet50', dtype)
    model, recordings = fused(dtype)
    other = torch.randn_like(x)
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            expected, of_other = model._call_impl(x), model._call_impl(other)
            first, second = model(x), model(other)
            assert torch.equal(first, expected) and torch.equal(second, of_other)
            assert torch.equal(model(x[:3]), model._call_impl(x[:3]))
            assert len(recordings) == 2
            assert torch.equal(model.forward_features(x), copy.deepcopy(model).forward_features(x))
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.no_grad(), torch.cuda.stream(stream):
        assert torch.equal(model(x), expected)
    assert len(recordings) == 2


def test_a_captured_net_follows_its_weights(sample):
    x, _ = images(sample, 'preact_resnet50', torch.float32)
    model, recordings = fused(torch.float32)
    with torch.no_grad():
        before = model(x)
        assert len(recordings) == 1 and torch.equal(pickle.loads(pickle.dumps(model))(x), before)
        for p in model.parameters():
            p.mul_(0.9)
        assert torch.equal(model(x), model._call_impl(x)) and not torch.equal(model(x), before)
        model.load_state_dict({key: value * 0.5 for key, value in model.state_dict().items()}, assign=True)
        assert torch.equal(model(x), model._call_impl(x))
        assert torch.equal(model.bfloat16()(x.bfloat16()), model._call_impl(x.bfloat16()))
        seen = []
        handle = model.stages[0].blocks[0].register_forward_hook(lambda *args: seen.append(args))
        model(x.bfloat16())
        assert len(seen) == 1
        handle.remove()
        model.reset_classifier(7)
        assert model.to(GPU, torch.bfloat16)(x.bfloat16()).shape == (len(x), 7)
    gradient, = torch.autograd.grad(model(x.bfloat16().requires_grad_()).sum(), model.head.fc.weight)
    assert gradient.shape[0] == 7


def test_a_net_captures_eight_shapes_and_runs_the_others(sample):
    x, _ = images(sample, 'preact_resnet50', torch.bfloat16)
    model, recordings = fused(torch.bfloat16)
    with torch.inference_mode():
        for size in range(1, 9):
            model(x[:size])
        with pytest.warns(RuntimeWarning, match='8 shapes of images have a CUDA graph each'):
            assert torch.equal(model(x[:9]), model._call_impl(x[:9]))
        assert len(recordings) == 8 and torch.equal(model(x[:2]), model._call_impl(x[:2]))
        with torch.autocast('cuda', torch.float16):
            assert torch.equal(model(x[:2]), model._call_impl(x[:2]))


def test_features_are_captured_too(sample):
    x, _ = images(sample, 'preact_resnet50', torch.bfloat16)
    model = optimize(net('preact_resnet50', torch.float32, features_only=True).eval(), dtype=torch.bfloat16,
                     cuda_graph=True)
    with torch.no_grad():
        for actual, expected in zip(model(x), model._call_impl(x), strict=True):
            assert torch.equal(actual, expected)
    assert len(model._compiled_call_impl.recordings) == 1


@pytest.mark.parametrize('kernel, stride, plus', [(1, 1, False), (3, 1, False), (3, 2, False), (1, 1, True)])
@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_cudnn_takes_in_what_follows_a_convolution(dtype, kernel, stride, plus, monkeypatch):
    """For these shapes of half the precision it has a kernel, in memory that held NaN too."""
    monkeypatch.setattr(torch.backends.cudnn, 'allow_tf32', True)  # or it keeps off tensor cores in every type
    torch.manual_seed(0)
    conv = torch.nn.Conv2d(64, 128, kernel, stride, kernel // 2, device=GPU, dtype=dtype)
    conv = conv.to(memory_format=torch.channels_last).requires_grad_(False)
    x = torch.randn(16, 64, 56, 56, device=GPU, dtype=dtype).to(memory_format=torch.channels_last)
    geometry = kernels.Geometry.of(conv)
    other = torch.randn_like(conv(x)) if plus else None
    exact = torch.nn.functional.conv2d(x.double(), conv.weight.double(), conv.bias.double(), stride, kernel // 2)
    exact = (exact + other.double() if plus else exact).relu()
    assert kernels.cudnn.takes(x, conv.weight, conv.bias, geometry, True)
    for _ in range(2):
        actual = kernels.cudnn.convolve(x, conv.weight, conv.bias, geometry, other)
        if actual is None and dtype == torch.float32:
            actual = kernels.convolve(x, conv.weight, conv.bias, geometry, other, relu=True)
        assert actual.is_contiguous(memory_format=torch.channels_last)
        assert_close(actual.double(), exact, 1e-2 if dtype == torch.bfloat16 else 2e-3)
    assert torch.equal(kernels.convolve(x, conv.weight, conv.bias, geometry, other, relu=True), actual)


def test_what_is_not_a_number_stays_so_through_cudnn():
    conv = torch.nn.Conv2d(64, 64, 1, device=GPU, dtype=torch.bfloat16).requires_grad_(False)
    x = torch.randn(16, 64, 28, 28, device=GPU, dtype=torch.bfloat16).to(memory_format=torch.channels_last)
    for _ in range(2):
        y = kernels.convolve(x, conv.weight, conv.bias, kernels.Geometry.of(conv), relu=True)
        x[0, 0, 5, 6] = float('nan')
    assert y[0, :, 5, 6].isnan().all() and y.isnan().sum() == 64


@pytest.mark.parametrize('model', ['preact_resnet20', 'preact_resnet110_orig_dropout_shortcut'])
def test_captured_steps_are_the_steps_kernel_by_kernel(make, model):
    captured, eager = (ends(make(**on_gpu(), model=model, capture=capture))[0] for capture in (True, False))
    assert captured.graph is not None and eager.graph is None
    assert losses(captured) == pytest.approx(losses(eager), rel=1e-4)


def test_captured_runs_together_are_the_runs_alone(make):
    """Two that draw dropout masks, which graphs read from the one generator of the device, beside one that does not."""
    dropout = 'preact_resnet110_orig_dropout_shortcut'
    which = [dict(seed=0, model=dropout), dict(seed=1, model=dropout), dict(seed=0)]
    together = [make(**on_gpu(), **kwargs) for kwargs in which]
    ends(*together)
    for kwargs, run in zip(which, together, strict=True):
        alone, = ends(make(**on_gpu(), **kwargs))
        assert losses(run) == pytest.approx(losses(alone), rel=1e-4)


def test_a_captured_run_goes_on_where_it_was_cut(make):
    whole, = ends(make(**on_gpu()))
    first = make(**on_gpu(), folder='cut')
    for _ in range(13):
        first.advance()
    first.save()
    first.close()
    assert losses(ends(make(**on_gpu(), folder='cut'))[0]) == pytest.approx(losses(whole), rel=1e-4)


def test_a_captured_run_in_bfloat16_learns_what_one_on_a_cpu_learns(make):
    recipe = choose_recipe('modern', batch_size=32, epochs=3, lr=0.02)
    gpu, cpu = (ends(make(recipe=recipe, device=device, amp=True))[0] for device in (GPU, torch.device('cpu')))
    assert losses(gpu) == pytest.approx(losses(cpu), rel=0.02)


def on_gpu():
    """A rate at which the order of atomic additions does not matter."""
    return dict(device=GPU, recipe=choose_recipe('modern', batch_size=32, epochs=2, lr=0.001))


def losses(run):
    return [row['train_loss'] for row in run.history]


def test_evaluation_and_propagation_are_those_of_the_cpu(sample):
    model = timm.create_model('preact_resnet20', pretrained=True).eval()
    data = Images(sample, eval_transform(model))
    x, y = data.spread(8)
    on_cpu = evaluate(model, data), propagation.measure(model, x, y)
    on_gpu = evaluate(model.to(GPU), data, device='cuda'), propagation.measure(model.to(GPU), x.to(GPU), y.to(GPU))
    assert on_gpu[0].top1 == on_cpu[0].top1
    for column in on_cpu[1].columns():
        actual, expected = (np.asarray(getattr(found[1], column), float) for found in (on_gpu, on_cpu))
        np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-4, err_msg=column)


def test_the_commands_run_on_a_gpu(npz_folder, sample, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, 'SECONDS', 0.01)
    Image.fromarray(sample.images[0]).save(tmp_path / 'image.png')

    def run(*arguments):
        result = CliRunner().invoke(app, [*map(str, arguments), '--device', 'cuda'], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return result.stdout

    assert json.loads(run('predict', tmp_path / 'image.png', '--json'))[0]['predictions'][0]['class'] == 'airplane'
    assert json.loads(run('evaluate', '--model', 'preact_resnet20', '--data', npz_folder, '--json'))['top1'] == 89.
    assert 'preact_resnet20' in run('propagate', 'preact_resnet20', '--batch-size', 4)
    assert 'optimize(), CUDA graph' in run(
        'benchmark', 'preact_resnet20_pcv', '--against', 'timm', '--dtype', 'bfloat16', '--rounds', 1, '--cuda-graph')


def test_units_compile_for_training_and_inference(sample):
    torch._dynamo.reset()
    x, y = images(sample, 'preact_resnet20', torch.float32)
    small = dict(layers=(1,), channels=(16,))
    expected = step(net('preact_resnet20', torch.float32, **small), x, y)
    assert_same_step(step(net('preact_resnet20', torch.float32, **small, compile_units=True), x, y), expected, 1e-3)
    model = net('preact_resnet20', torch.float32, **small).eval()
    with torch.inference_mode():
        assert_close(optimize(model, compile=True)(x), model(x), 1e-4)


@pytest.fixture
def halves(sample):
    """256 real images to train on, 128 others to test on."""
    def some(which):
        return type(sample)(sample.images[which].copy(), sample.labels[which].copy(), sample.classes)
    return some(slice(0, 256)), some(slice(256, 384))


def beside(models, halves, dtype=torch.float32, **changes):
    made = Beside([model.to(GPU) for model in models], halves, GPU, dtype, **{
        **dict(batch_size=32, bn_group=16), **changes})
    made.replicas.compile()
    return made


@pytest.mark.parametrize('kind', KINDS)
def test_a_step_of_replicas_in_float32_is_that_of_the_modules(kind, halves):
    """Without TF32, whose products alone make gradients differ by a tenth."""
    made = beside([replica_of(kind, seed) for seed in (0, 1)], halves)
    made.step()
    torch.cuda.synchronize()
    for r in range(2):
        found = made.differences(r, made.step_of_modules(r))
        assert all(difference < 1e-3 for difference in found.values()), found


@pytest.mark.parametrize('kind', ['full', 'orig', 'bn_after_add', 'bottleneck'])
def test_replicas_in_bfloat16_are_as_near_to_float32_as_autocast(kind, halves):
    big = dict(batch_size=128, bn_group=64)
    exact, autocast = (beside([replica_of(kind)], halves, **big) for _ in range(2))
    half = beside([replica_of(kind)], halves, torch.bfloat16, **big)
    half.step()
    torch.cuda.synchronize()
    expected, theirs = exact.step_of_modules(0), autocast.step_of_modules(0, autocast=True)
    reference, other = (flat({name: p.grad for name, p in sorted(b.models[0].named_parameters())})
                        for b in (exact, autocast))
    mine = flat(dict(sorted(half.replicas.named(half.replicas.grads[0]).items())))
    assert distance(mine, reference) < 1.5 * distance(other, reference) + 0.01
    assert abs(half.replicas.losses.sum().item() - expected) < 2 * abs(theirs - expected) + 0.01


def test_replicas_are_the_same_to_the_bit_again_and_alone(halves):
    """No sum depends on which program was faster, nor on how many replicas there are."""
    def steps(models):
        made = beside(models, halves, torch.bfloat16, batch_size=128, bn_group=64)
        for i in (0, 1, 0, 1):
            made.step(i)
        torch.cuda.synchronize()
        return made.replicas.values

    three, again = (steps([replica_of('full', seed) for seed in (0, 1, 2)]) for _ in range(2))
    assert torch.equal(three, again)
    assert torch.equal(three[:1], steps([replica_of('full', 0)]))


@pytest.fixture
def groups(make):
    """Makes runs that the kernels train on the card."""
    def run(seed, folder=None, **kwargs):
        return make(seed=seed, amp=True, device=GPU, folder=folder, model_kwargs=dict(layers=[1, 1, 1]),
                    recipe=choose_recipe('modern', batch_size=32, bn_group=16, iterations=12), **kwargs)
    return run


def test_captured_replicas_are_each_the_run_alone_cut_or_not(groups):
    together = ends(groups(0), groups(1))
    assert [run.state for run in together] == ['finished'] * 2 and all(run.ways == {'triton'} for run in together)
    alone, = ends(groups(1))
    first, second = (next(run for run in together if run.settings['seed'] == seed) for seed in (0, 1))
    assert_same_bits(outcome(second), outcome(alone))
    cut_after(5, groups(0, 'cut'))
    resumed = groups(0, 'cut')
    assert resumed.step == 5
    ends(resumed, groups(2))
    assert_same_bits(outcome(resumed), outcome(first))


def test_a_replica_that_diverges_leaves_the_others_training(groups):
    runs = [groups(0), groups(1)]
    with torch.no_grad():
        runs[0].model.stem.conv.weight[0, 0, 0, 0] = float('nan')
    ended = ends(*runs)
    assert [run.state for run in ended] == ['diverged', 'finished'] and ended[1].settings['seed'] == 1
