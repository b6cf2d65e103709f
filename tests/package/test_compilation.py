"""Units compile themselves, equal ones once."""
import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from torch._dynamo.testing import CompileCounterWithBackend

from timm_preact import compilation
from timm_preact.inference import optimize


@pytest.fixture
def graphs(monkeypatch):
    """Counts what is compiled; runs it as it was traced."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend('aot_eager')
    compile_ = torch.compile
    monkeypatch.setattr(compilation.torch, 'compile', lambda f, **kwargs: compile_(f, backend=counter, **kwargs))
    yield counter
    torch._dynamo.reset()


def images(batch=2, size=16):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(1))


def net(depth, name='preact_resnet164', **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, layers=(depth,) * 3, **kwargs)


@pytest.mark.parametrize('depth', [2, 20])
def test_a_net_of_any_depth_compiles_each_kind_of_unit_once(depth, graphs):
    model = net(depth, compile_units=True).eval()
    with torch.no_grad():
        first = model(images())
        assert graphs.frame_count == 6  # the first unit of each stage and one of the others
        assert torch.equal(model(images()), first)
    assert graphs.frame_count == 6
    torch.testing.assert_close(first, net(depth).eval()(images()))


def test_training_and_evaluation_are_all_compiled(graphs):
    """More cases than PyTorch compiles of one code object by default."""
    model, plain = net(3, compile_units=True), net(3)
    for _ in range(2):
        for m in (model, plain):
            F.cross_entropy(m.train()(images()), torch.tensor([1, 2])).backward()
            with torch.no_grad():
                m.eval()(images())
    assert graphs.frame_count == 12
    for (name, p), q in zip(model.named_parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-5, msg=name)
    for (name, p), q in zip(model.named_buffers(), plain.buffers(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.parametrize('name', ['preact_resnet110_orig_const_scale', 'preact_resnet110_orig_excl_gate'])
def test_units_that_differ_in_a_number_do_not_share(name, graphs):
    model, plain = net(2, name, compile_units=True).eval(), net(2, name).eval()
    for m in (model, plain):
        for i, unit in enumerate(unit for stage in m.stages for unit in stage.blocks):
            if name.endswith('const_scale'):
                unit.merge.shortcut = 0.1 * i
    with torch.no_grad():
        torch.testing.assert_close(model(images()), plain(images()))


def test_an_optimised_net_compiles_by_unit_too(graphs):
    model = net(4).eval()
    with torch.no_grad():
        expected = model(images())
        fast = optimize(model, compile=True)
        torch.testing.assert_close(fast(images()), expected)
        count = graphs.frame_count
        assert 0 < count <= 9  # a stage's first unit may not overwrite its input, those after it may
        torch.testing.assert_close(optimize(net(8).eval(), compile=True)(images()), net(8).eval()(images()))


def test_keys_copies_and_hooks_are_as_without(graphs):
    model = net(2, compile_units=True).eval()
    assert model.state_dict().keys() == net(2).state_dict().keys()
    seen = []
    model.stages[0].blocks[1].register_forward_hook(lambda module, args, output: seen.append(output.shape))
    with torch.no_grad():
        expected = net(2).eval()(images())
        torch.testing.assert_close(copy.deepcopy(model)(images()), expected)
        torch.testing.assert_close(model(images()), expected)
    assert len(seen) == 2


@pytest.mark.slow
def test_inductor_compiles_1001_layers_and_computes_the_same():
    model = timm.create_model('preact_resnet1001', compile_units=True).eval()
    plain = timm.create_model('preact_resnet1001').eval()
    plain.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(model(images()), plain(images()), rtol=1e-3, atol=1e-4)
