"""The step against a plain loop, runs together against runs alone, and runs cut against runs that were not."""
import time
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch

from timm_preact.data import load_image_set
from train.batches import PAD, EpochPlan
from train.benchmark import plain_loop
from train.recipe import RECIPES, choose_recipe
from train.run import FolderTaken, Run, train_together

CPU = torch.device('cpu')
TINY = dict(layers=[1, 1, 1])


@pytest.fixture(scope='module')
def sets(npz_folder):
    return load_image_set(npz_folder, 'train'), load_image_set(npz_folder, 'test')


@pytest.fixture
def make(sets, tmp_path):
    """Makes runs of a tiny net, each in a folder of its own unless one is named; they are closed at the end."""
    made = []

    def make(seed=0, model='preact_resnet20', recipe=None, folder=None, amp=False, device=CPU, **options):
        settings = dict(model=model, model_kwargs=TINY, seed=seed, amp=amp, data=[s.sha256 for s in sets])
        recipe = recipe or choose_recipe('modern', batch_size=32, epochs=2)
        run = Run(settings, recipe, *sets, tmp_path / (folder or f'run{len(made)}'), device, **options)
        made.append(run)
        return run

    yield make
    for run in made:
        run.close()


def ends(*runs, **options):
    """Train runs to their ends, in the order in which they end."""
    return list(train_together(iter(runs), len(runs), **options))


def outcome(run):
    """What must not depend on what else happened: the weights, and the curve without the clock."""
    curve = [(row['step'], row['lr'], row['train_loss'], row['test_error']) for row in run.history]
    return curve, {name: tensor.clone() for name, tensor in run.model.state_dict().items()}


def assert_same_bits(one, other):
    assert one[0] == other[0]
    assert one[1].keys() == other[1].keys()
    assert all(torch.equal(one[1][name], other[1][name]) for name in one[1])


def plain_batches(images, mean, std, plan, batch_size):
    """The plan's batches, image by image."""
    for start in range(0, len(images.labels) - batch_size + 1, batch_size):
        batch, labels = [], []
        for place in range(start, start + batch_size):
            index = plan.order[place].item()
            pixels = (images.images[index].astype(np.float32) / 255 - mean) / std
            padded = np.pad(pixels, ((PAD, PAD), (PAD, PAD), (0, 0)))
            top, left = plan.top[place].item(), plan.left[place].item()
            crop = padded[top:top + 32, left:left + 32]
            batch.append(crop[:, ::-1] if plan.flip[place] else crop)
            labels.append(images.labels[index])
        yield torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2), torch.tensor(np.array(labels))


@pytest.mark.parametrize('recipe', RECIPES)
def test_fifty_steps_are_those_of_a_plain_loop(make, sets, recipe):
    """In float32, at a small rate: at 0.1 the last bit, in which they differ, grows a thousandfold within 20 steps."""
    chosen = choose_recipe(recipe, batch_size=32, epochs=5, lr=0.001)
    chosen = replace(chosen, warmup=0.2, warmup_lr=chosen.warmup_lr and 0.0001)
    run = make(recipe=chosen, seed=3)
    mean = sets[0].images.mean(0) / 255 if chosen.mean == 'pixel' else np.array(run.model.pretrained_cfg['mean'])
    std = np.array(run.model.pretrained_cfg['std'])
    torch.manual_seed(3)
    model = timm.create_model('preact_resnet20', num_classes=10, **TINY).train()
    model.to(memory_format=torch.channels_last)  # another memory format sums in another order
    batches = (batch for epoch in range(5) for batch in plain_batches(
        sets[0], mean.astype(np.float32), std.astype(np.float32), EpochPlan.draw(3, epoch, 320, CPU), 32))
    losses = torch.stack(list(plain_loop(model, batches, chosen, 50, amp=False)))
    ends(run)
    assert [row['train_loss'] for row in run.history] == pytest.approx(losses.view(5, 10).mean(1).tolist(), abs=1e-5)
    for name, tensor in run.model.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=0, atol=1e-3, msg=name)


def test_runs_together_are_the_runs_alone_to_the_bit(make):
    """Two seeds, another network, and one that draws dropout masks."""
    which = [dict(seed=0), dict(seed=1), dict(seed=0, model='preact_resnet110_orig'),
             dict(seed=0, model='preact_resnet110_orig_dropout_shortcut')]
    together = [make(**kwargs, amp=True) for kwargs in which]
    assert len(ends(*together)) == 4
    for kwargs, run in zip(which, together, strict=True):
        alone, = ends(make(**kwargs, amp=True))
        assert_same_bits(outcome(run), outcome(alone))
    assert outcome(together[0])[0] != outcome(together[1])[0]


@pytest.mark.parametrize('model', ['preact_resnet20', 'preact_resnet110_orig_dropout_shortcut'])
def test_a_run_cut_at_any_step_and_taken_up_is_the_run_uncut_to_the_bit(make, model):
    recipe = choose_recipe('paper', batch_size=32, iterations=14)
    whole = outcome(ends(make(model=model, recipe=recipe, folder='whole'))[0])
    for steps in range(1, 14):
        first = make(model=model, recipe=recipe, folder=f'cut{steps}')
        for _ in range(steps):
            first.advance()
        first.save()
        first.close()
        second = make(model=model, recipe=recipe, folder=f'cut{steps}')
        assert second.step == steps
        assert_same_bits(outcome(ends(second)[0]), whole)


def test_a_deadline_cuts_every_run_and_saves_it(make):
    runs = [make(seed=seed, folder=f'seed{seed}') for seed in (0, 1)]
    for run in runs:
        run.advance()
    assert [run.state for run in ends(*runs, deadline=time.monotonic() + 0.2)] == ['cut', 'cut']
    steps = [run.step for run in runs]
    assert 1 <= min(steps) and max(steps) < runs[0].total
    for run in runs:
        run.close()
    assert [make(seed=seed, folder=f'seed{seed}').step for seed in (0, 1)] == steps


def test_after_the_deadline_no_run_is_begun(make):
    def runs():
        pytest.fail('a run was made')
        yield
    assert list(train_together(runs(), 2, deadline=time.monotonic())) == []


def test_a_run_that_ends_makes_room_for_the_next(make):
    recipe = choose_recipe('modern', batch_size=32, iterations=3)
    made = []

    def runs():
        for seed in range(4):
            assert sum(run.state == 'running' for run in made) < 2
            made.append(make(seed=seed, recipe=recipe))
            yield made[-1]

    assert [run.settings['seed'] for run in train_together(runs(), 2)] == [0, 1, 2, 3]


def test_a_run_that_diverges_leaves_the_others_alone(make):
    wild = make(seed=0, recipe=choose_recipe('modern', batch_size=32, epochs=2, lr=1e30))
    tame = make(seed=1)
    assert [run.state for run in ends(wild, tame)] == ['diverged', 'finished']
    assert 'the run diverged' in wild.error and wild.step == 10
    assert wild.result()['test_error'] is None
    assert_same_bits(outcome(tame), outcome(ends(make(seed=1))[0]))


def test_a_folder_has_one_run_at_a_time(make):
    first = make(folder='one')
    with pytest.raises(FolderTaken, match='another process trains in .*one'):
        make(folder='one')
    first.close()
    make(folder='one')


@pytest.mark.skipif(not torch.cuda.is_available(), reason='needs a GPU')
@pytest.mark.parametrize('model', ['preact_resnet20', 'preact_resnet110_orig_dropout_shortcut'])
def test_captured_steps_are_the_steps_kernel_by_kernel(make, model):
    gpu = torch.device('cuda')
    captured, eager = (make(model=model, device=gpu, capture=capture) for capture in (True, False))
    ends(captured)
    ends(eager)
    assert captured.graph is not None and eager.graph is None
    losses = [[row['train_loss'] for row in run.history] for run in (captured, eager)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
