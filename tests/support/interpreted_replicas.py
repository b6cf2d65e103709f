"""Replicas in Triton's interpreter on a CPU, against PyTorch's modules and the trainer that runs those.

`test_replicas.py` runs this file with TRITON_INTERPRET=1."""
import numpy as np
import pytest
import support.interpreter  # noqa: F401
import torch
import triton.language as tl
from support.replicas import NETS, Beside, cropped, distance, net
from support.runs import assert_same_bits, cut_after, ends, outcome
from triton.runtime import interpreter

from train import replicas
from train.batches import error_on
from train.recipe import choose_recipe
from train.run import Run, train_together

interpreter.interpreter_builder.options = interpreter.InterpreterOptions(sanitize_overflow=False)
create_dot = interpreter.InterpreterBuilder.create_dot


def in_float32(handle):
    if handle.dtype.scalar != tl.bfloat16:
        return handle
    return interpreter.TensorHandle((handle.data.astype(np.uint32) << 16).view(np.float32), tl.float32)


@pytest.fixture(autouse=True)
def few_programs(monkeypatch):
    """A program costs the interpreter milliseconds, however little it does; and bfloat16 operands of a product are
    integers to it."""
    monkeypatch.setattr(replicas, 'FLAT', 2 ** 20)
    monkeypatch.setattr(replicas, 'WEIGHTS', 2 ** 14)
    monkeypatch.setattr(interpreter.InterpreterBuilder, 'create_dot', lambda self, a, b, *rest: create_dot(
        self, in_float32(a), in_float32(b), *rest))


@pytest.fixture
def small(sample):
    """16 real images to train on and 8 others to test on, a corner of 8x8 of each."""
    return cropped(sample, slice(0, 496, 31), 8), cropped(sample, slice(5, 500, 62), 8)


@pytest.mark.parametrize('kind', NETS)
def test_a_step_is_that_of_the_modules(kind, small):
    """In groups, if it is the paper's unit: they are the same to all others."""
    beside = Beside([net(kind)], small, **({} if kind == 'full' else dict(batch_size=4)))
    beside.step()
    found = beside.differences(0, beside.step_of_modules(0))
    assert all(difference < 1e-5 for difference in found.values()), found


def test_replicas_are_each_its_own_network_and_the_next_step_is_right_too(small):
    beside = Beside([net('full', seed) for seed in (0, 1)], small, recipe='torch', label_smoothing=0.1, batch_size=4,
                    translate=2, cutout=5, alternate_flips=True)
    for step in range(2):
        beside.step(step)
        for r in range(2):
            found = beside.differences(r, beside.step_of_modules(r, step))
            assert all(difference < 1e-5 for difference in found.values()), found
    errors = beside.replicas.errors().tolist()
    assert errors == pytest.approx([error_on(model, beside.tests) for model in beside.models])


@pytest.mark.parametrize('at_once', [8192, 32])
@pytest.mark.parametrize('kind', ['full', 'excl_gate'])
def test_maps_of_many_tiles_the_last_one_smaller_have_the_same_sums(kind, at_once, small, monkeypatch):
    """Added up by one load, or by several."""
    for table in (replicas.FORWARD, replicas.BACKWARD, replicas.WEIGHT):
        for channels, tiling in table.items():
            monkeypatch.setitem(table, channels, tiling._replace(blocks=64))
    monkeypatch.setattr(replicas, 'POINTWISE', replicas.POINTWISE._replace(blocks=64))
    monkeypatch.setattr(replicas, 'ELEMENTWISE', 1024)
    monkeypatch.setattr(replicas, 'SUMS_AT_ONCE', at_once)
    monkeypatch.setattr(replicas, 'WEIGHT_PROGRAMS', {16: 2, 32: 2, 64: 2})
    beside = Beside([net(kind)], small, batch_size=5, bn_group=5)
    grids = {launch.grid[0] for launch in beside.replicas.launches
             if launch.kernel.__name__ in ('convolution_kernel', 'merge_kernel', 'merge_backward_kernel')}
    assert max(grids) > 2
    beside.step()
    found = beside.differences(0, beside.step_of_modules(0))
    assert all(difference < 1e-5 for difference in found.values()), found


def test_rows_that_differ_in_constants_alone_are_replicas_of_each_other(small):
    """Table 1's three constant scalings in one launch."""
    scales = [dict(shortcut=0., residual=1.), dict(shortcut=0.5, residual=1.)]
    models = [net('const_scale', merge_kwargs=scale) for scale in scales]
    assert repr(models[0]) == repr(models[1])
    beside = Beside(models, small, batch_size=4)
    beside.step()
    for r in range(2):
        found = beside.differences(r, beside.step_of_modules(r))
        assert all(difference < 1e-5 for difference in found.values()), found


def test_bfloat16_is_as_near_to_float32_as_pytorchs(small):
    exact, autocast = (Beside([net('orig')], small) for _ in range(2))
    half = Beside([net('orig')], small, dtype=torch.bfloat16)
    half.step()
    expected = exact.step_of_modules(0)
    theirs = autocast.step_of_modules(0, autocast=True)

    def flat(gradients):
        return torch.cat([g.flatten() for _, g in sorted(gradients.items())])

    reference, other = (flat({name: p.grad for name, p in b.models[0].named_parameters()}) for b in (exact, autocast))
    mine = distance(flat(half.replicas.named(half.replicas.grads[0])), reference)
    assert mine < 1.5 * distance(other, reference) + 0.01
    assert half.replicas.losses.sum().item() == pytest.approx(expected, abs=2 * abs(theirs - expected) + 0.02)


def test_dropout_takes_half_of_the_shortcut_and_its_gradient(small):
    NETS['dropout'] = ('preact_resnet110_orig_dropout_shortcut', {})
    beside = Beside([net('dropout'), net('dropout')], small)
    beside.replicas.seeds.copy_(torch.tensor([1, 2]))
    beside.step()
    made = beside.replicas
    merge = next(layer for layer in made.net.layers if getattr(layer, 'drop', 0))
    y, h, f = (made.maps[m] for m in (merge.out, merge.shortcut.view.map, merge.branch.map))
    masks = []
    for r in range(2):
        row = made.of_norm(merge.branch.norm)['coef'][:made.R * made.G * 5 * 16].view(made.R, made.G, 5, 1, 1, 1, 16)[r]
        kept = y[r] - (f[r] * row[:, 3] + row[:, 4])
        source = made.of_norm(merge.shortcut.view.norm)['coef'][:made.R * made.G * 5 * 16].view(
            made.R, made.G, 5, 1, 1, 1, 16)[r]
        shortcut = (h[r] * source[:, 3] + source[:, 4]).relu()
        some = shortcut > 0.1
        ratio = (kept / shortcut)[some]
        assert ((ratio.abs() < 1e-3) | ((ratio - 2).abs() < 1e-3)).all()
        assert 0.4 < (ratio > 1).float().mean() < 0.6
        masks.append(torch.where(some, kept > 0.1, False))
    assert not torch.equal(*masks)


@pytest.fixture
def start(sample, tmp_path):
    """Makes runs of a small net on few images, two steps an epoch, whose steps the kernels take."""
    made = []
    few = cropped(sample, slice(0, 496, 62), 8), cropped(sample, slice(5, 500, 124), 8)

    def start(seed=0, folder=None, kind='full', joins=True, steps=3, sets=few, **changes):
        recipe = choose_recipe('paper', **{**dict(batch_size=4, bn_group=2, iterations=steps), **changes})
        settings = dict(model=NETS[kind][0], model_kwargs=dict(layers=[1, 1], channels=[16, 32]), seed=seed, amp=False,
                        data=[s.sha256 for s in sets])
        run = Run(settings, recipe, *sets, tmp_path / (folder or f'run{len(made)}'), torch.device('cpu'))
        run.joins = joins
        made.append(run)
        return run

    yield start
    for run in made:
        run.close()


def test_a_replica_is_the_run_alone_to_the_bit_cut_or_not(start):
    """Two seeds together; one of them alone; and one cut after two steps, taken up with another beside it."""
    together = [start(seed, average=0.5) for seed in (0, 1)]
    assert [run.state for run in ends(*together)] == ['finished', 'finished']
    assert [run.ways for run in together] == [{'triton'}] * 2
    alone, = ends(start(1, average=0.5))
    assert_same_bits(outcome(together[1]), outcome(alone))
    assert outcome(together[0])[0] != outcome(together[1])[0]
    cut_after(2, start(0, 'cut', average=0.5))
    resumed = start(0, 'cut', average=0.5)
    assert resumed.step == 2
    assert next(train_together(iter([resumed, start(2, average=0.5)]), 2)) is resumed
    assert_same_bits(outcome(resumed), outcome(together[0]))


def test_averages_are_those_of_the_modules(start):
    runs = [start(3, steps=4, lr=0.01, warmup=0, average=0.5, joins=joins) for joins in (True, False)]
    for run in runs:
        ends(run)
    assert [run.ways for run in runs] == [{'triton'}, {'pytorch'}]
    mine, theirs = (run.kept.state_dict() for run in runs)
    for name, tensor in mine.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=1e-4, msg=name)
    assert not torch.equal(mine['head.fc.weight'], runs[0].model.state_dict()['head.fc.weight'])


def test_averages_are_what_is_tested_and_what_trains_is_back_after_it(small):
    model, kept = net('full'), net('full', 1)
    beside = Beside([model], small, average=0.5)
    made = beside.replicas
    made.put(0, model, kept, {name: torch.zeros_like(p) for name, p in model.named_parameters()})
    before = [tensor.clone() for tensor in (made.values, made.running, made.expanded)]
    assert made.errors().item() == pytest.approx(error_on(kept, beside.tests))
    images, _ = next(beside.tests.test())
    with torch.no_grad():
        torch.testing.assert_close(made.logits[0, :, :10], kept.eval()(images), rtol=1e-4, atol=1e-4)
        assert distance(made.logits[0, :, :10], model.eval()(images)) > 0.01
    assert all(torch.equal(*pair) for pair in zip(before, (made.values, made.running, made.expanded), strict=True))


def test_one_that_diverges_leaves_the_others_training(start):
    runs = [start(seed, steps=52) for seed in (0, 1)]
    with torch.no_grad():
        runs[0].model.stem.conv.weight[0, 0, 0, 0] = float('nan')
    first = next(train_together(iter(runs), 2))
    assert first is runs[0] and first.state == 'diverged' and 'the loss is nan' in first.error
    assert runs[1].state == 'running' and runs[1].loss_sum.isfinite()


def test_what_the_kernels_do_not_take_trains_by_the_modules_and_says_so(start, sample, capsys):
    run = start(steps=1, sets=(cropped(sample, slice(0, 496, 62), 9), cropped(sample, slice(5, 500, 124), 9)))
    ends(run)
    assert run.state == 'finished' and run.ways == {'pytorch'}
    assert "trains by PyTorch's modules: stages.1.blocks.0.residual.conv1 halves a map" in capsys.readouterr().err


def test_where_memory_is_short_those_that_fit_train_and_the_others_say_how_many_do(start, monkeypatch):
    def for_one(models, *args):
        if len(models) > 1:
            raise torch.OutOfMemoryError('CUDA out of memory')
        return replicas.Replicas(models, *args)

    monkeypatch.setattr('train.group.Replicas', for_one)
    ended = ends(start(0, 'first', steps=1), start(1, 'second', steps=1))
    assert [run.state for run in ended] == ['finished', 'cut']
    assert ended[1].error == 'second does not fit into memory beside 1 others: train 1 together.'


@pytest.mark.slow
def test_fifty_steps_are_those_of_the_modules(start, small):
    """At a small rate, as `test_run.py` says why."""
    runs = [start(3, steps=50, lr=0.001, weight_decay=0.05, joins=joins, warmup=0, sets=small, batch_size=8, bn_group=4)
            for joins in (True, False)]
    for run in runs:
        ends(run)
    assert [run.ways for run in runs] == [{'triton'}, {'pytorch'}]
    for name, tensor in runs[0].model.state_dict().items():
        torch.testing.assert_close(tensor, runs[1].model.state_dict()[name], rtol=0, atol=1e-4, msg=name)
