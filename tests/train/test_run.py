"""The step against a plain loop, runs together against runs alone, and runs cut against runs that were not."""
import gc
import time
import weakref
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from support.runs import CPU, TINY, assert_same_bits, ends, outcome

from benchmarks.steps import train_plainly
from timm_preact.errors import UserError
from train.batches import EpochPlan, error_on
from train.recipe import RECIPES, choose_recipe, parameter_groups
from train.run import FolderTaken, Run, train_together


def plain_batches(images, mean, std, plan, batch_size):
    """The plan's batches, image by image."""
    for start in range(0, len(images.labels) - batch_size + 1, batch_size):
        batch, labels = [], []
        for place in range(start, start + batch_size):
            index = plan.order[place].item()
            pixels = (images.images[index].astype(np.float32) / 255 - mean) / std
            padded = np.pad(pixels, ((4, 4), (4, 4), (0, 0)))
            top, left = plan.top[place].item() + 4, plan.left[place].item() + 4
            crop = padded[top:top + 16, left:left + 16]
            batch.append(crop[:, ::-1] if plan.flip[place] else crop)
            labels.append(images.labels[index])
        yield torch.from_numpy(np.stack(batch)).permute(0, 3, 1, 2), torch.tensor(np.array(labels))


@pytest.mark.parametrize('recipe', RECIPES)
def test_fifty_steps_are_those_of_a_plain_loop(make, sets, recipe):
    """In float32, at a small rate: at 0.1 the last bit, in which they differ, grows a thousandfold within 20 steps.

    The decay is large, so that it matters as much as the gradient.
    """
    chosen = choose_recipe(recipe, batch_size=32, epochs=5, lr=0.001, weight_decay=0.05)
    chosen = replace(chosen, warmup=0.2, warmup_lr=chosen.warmup_lr and 0.0001)
    run = make(recipe=chosen, seed=3)
    mean = sets[0].images.mean(0) / 255 if chosen.mean == 'pixel' else np.array(run.model.pretrained_cfg['mean'])
    std = np.array(run.model.pretrained_cfg['std'])
    torch.manual_seed(3)
    model = timm.create_model('preact_resnet20', num_classes=10, **TINY).train()
    model.to(memory_format=torch.channels_last)  # another memory format sums in another order
    batches = (batch for epoch in range(5) for batch in plain_batches(
        sets[0], mean.astype(np.float32), std.astype(np.float32), EpochPlan.make(
            chosen, 3, epoch, sets[0].images.shape, CPU), 32))
    expected = [loss.item() for loss in train_plainly(model, batches, chosen, 50, amp=False)]
    mine = []
    for _ in expected:
        run.loss_sum.zero_()
        run.train_step()
        mine.append(run.loss_sum.item())
    assert mine == pytest.approx(expected, abs=1e-5)
    for name, tensor in run.model.state_dict().items():
        torch.testing.assert_close(tensor, model.state_dict()[name], rtol=0, atol=1e-4, msg=name)


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


def test_a_recipe_that_averages_tests_and_keeps_the_average(make):
    """Over 4 of 12 steps, so three quarters of it are left by each; what trains is not touched."""
    recipe = choose_recipe('modern', batch_size=32, iterations=12)
    run, last = make(recipe=replace(recipe, average=1 / 3)), make(recipe=recipe)
    expected = {name: tensor.double() for name, tensor in run.model.state_dict().items()}
    for _ in range(12):
        run.advance()
        last.advance()
        for name, tensor in run.model.state_dict().items():
            expected[name].lerp_(tensor.double(), 1 / 4)
    assert_same_bits((0, run.model.state_dict()), (0, last.model.state_dict()))
    kept = run.kept.state_dict()
    for name, tensor in kept.items():
        if not name.endswith('num_batches_tracked'):
            torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-5, atol=1e-6, msg=name)
    assert run.history[-1]['test_error'] == error_on(run.kept, run.test_batches)
    assert last.kept is last.model
    run.finish(recipe_name='modern', command='python -m train.cifar')
    written = load_file(run.output / 'model.safetensors')
    assert all(torch.equal(tensor, kept[name]) for name, tensor in written.items())


@pytest.mark.parametrize('model, average, cuts', [
    ('preact_resnet20', 0.2, range(1, 14)), ('preact_resnet110_orig_dropout_shortcut', 0., (1, 9, 10, 13))])
def test_a_run_cut_at_any_step_and_taken_up_is_the_run_uncut_to_the_bit(make, model, average, cuts):
    recipe = choose_recipe('paper', batch_size=32, iterations=14, average=average)
    whole = outcome(ends(make(model=model, recipe=recipe, folder='whole'))[0])
    for steps in cuts:
        first = make(model=model, recipe=recipe, folder=f'cut{steps}')
        for _ in range(steps):
            first.advance()
        first.save()
        first.close()
        second = make(model=model, recipe=recipe, folder=f'cut{steps}')
        assert second.step == steps
        assert_same_bits(outcome(ends(second)[0]), whole)


def test_a_deadline_cuts_every_run_and_saves_it(make):
    recipe = choose_recipe('modern', batch_size=32, epochs=1000)
    runs = [make(seed=seed, recipe=recipe, folder=f'seed{seed}') for seed in (0, 1)]
    for run in runs:
        run.advance()
    assert [run.state for run in ends(*runs, deadline=time.monotonic() + 0.2)] == ['cut', 'cut']
    steps = [run.step for run in runs]
    assert 1 <= min(steps) and max(steps) < runs[0].total
    for run in runs:
        run.close()
    assert [make(seed=seed, recipe=recipe, folder=f'seed{seed}').step for seed in (0, 1)] == steps


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
    assert wild.result('its command')['test_error'] is None
    assert_same_bits(outcome(tame), outcome(ends(make(seed=1))[0]))


def test_a_run_that_has_ended_is_let_go_of(sets, tmp_path):
    """A campaign of a hundred runs holds the images, weights and graphs of those that train, no more."""
    gone = []
    recipe = choose_recipe('modern', batch_size=32, iterations=2)

    def runs():
        for seed in range(4):
            gc.collect()
            assert sum(run() is not None for run in gone) <= 1  # the one that the caller still has
            settings = dict(model='preact_resnet20', model_kwargs=TINY, seed=seed, amp=False, data=['', ''])
            run = Run(settings, recipe, *sets, tmp_path / str(seed), CPU)
            gone.append(weakref.ref(run))
            yield run
            del run

    for run in train_together(runs()):
        run.close()
    assert len(gone) == 4


def test_a_run_says_how_many_trained_beside_it(make):
    longer = choose_recipe('modern', batch_size=32, iterations=4)
    runs = [make(), make(recipe=longer), make(recipe=longer)]
    assert [run.together for run in train_together(iter(runs), 2)] == [2, 2, 2]
    alone, = ends(make())
    assert alone.result('its command')['together'] == 1


def test_splits_that_do_not_fit_each_other_are_refused(sets, tmp_path):
    settings = dict(model='preact_resnet20', model_kwargs=TINY, seed=0, amp=False, data=['', ''])
    for test in (sets[1]._replace(classes=sets[1].classes[:9]), sets[1]._replace(images=sets[1].images[:, :8, :8])):
        with pytest.raises(UserError, match='differ in their classes or in their size'):
            Run(settings, choose_recipe('modern', batch_size=32), sets[0], test, tmp_path, CPU)


def test_test_images_that_are_training_images_are_refused(sets, tmp_path):
    """The same file for both, the same content, or a part of it: the error would say nothing."""
    settings = dict(model='preact_resnet20', model_kwargs=TINY, seed=0, amp=False, data=['', ''])
    part = sets[0]._replace(images=sets[0].images[50:150].copy(), labels=sets[0].labels[50:150])
    for test in (sets[0], part):
        with pytest.raises(UserError, match='every test image is a training image'):
            Run(settings, choose_recipe('modern', batch_size=32), sets[0], test, tmp_path, CPU)


def test_batchnorm_and_biases_are_spared_from_decay_unless_the_recipe_decays_all():
    model = timm.create_model('preact_resnet20', **TINY)
    decayed, spared = parameter_groups(model, RECIPES['paper'])
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    assert all(names[id(p)].endswith(('conv1.weight', 'conv2.weight', 'conv.weight', 'fc.weight'))
               for p in decayed['params'])
    assert len(decayed['params']) + len(spared['params']) == len(names)
    assert (decayed['weight_decay'], spared['weight_decay']) == (1e-4, 0.)
    assert len(parameter_groups(model, RECIPES['modern'])[0]['params']) == len(names)


@pytest.mark.parametrize('together, advice', [
    (1, 'run0 does not fit into memory: choose a smaller batch'), (2, 'beside 1 others: train fewer together')])
def test_a_run_that_does_not_fit_into_memory_says_what_helps(make, monkeypatch, together, advice):
    runs = [make() for _ in range(together)]

    def advance(self, checkpoint_every=0):
        raise torch.OutOfMemoryError('CUDA out of memory')

    monkeypatch.setattr(Run, 'advance', advance)
    ended = ends(*runs)
    assert [run.state for run in ended] == ['cut'] * together and advice in ended[0].error


def test_a_folder_has_one_run_at_a_time(make):
    first = make(folder='one')
    with pytest.raises(FolderTaken, match='another process trains in .*one'):
        make(folder='one')
    first.close()
    make(folder='one')
