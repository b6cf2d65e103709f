"""The step against a plain loop, runs together against runs alone, and runs cut against runs that were not."""
import gc
import json
import time
import weakref
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file
from support.runs import CPU, TINY, assert_same_bits, cut, ends, outcome

from benchmarks.steps import train_plainly
from timm_preact.data import load_image_set
from timm_preact.errors import ArgumentError, UserError
from timm_preact.evaluation import eval_transform, evaluate, load_model, open_images
from train.batches import EpochPlan, error_on
from train.recipe import RECIPES, choose_recipe, parameter_groups
from train.run import FolderTaken, Run, read_checkpoint, train_together


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
    run.finish(recipe_name='modern')
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
    assert wild.result()['test_error'] is None
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
    assert alone.result()['together'] == 1


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


# Resuming


def test_a_run_is_continued_under_its_own_conditions_or_with_leave(make):
    """What changes the result is named with both values; run.json then has an entry for each part."""
    cut(make(folder='cut', command='the command'), 3)
    for options, difference in ((dict(amp=True), 'amp False before and True now'),
                                (dict(compile_model=True), 'compile False before and True now')):
        with pytest.raises(UserError, match=f'.{difference}.: continue it by `the command`, or pass --allow-changes'):
            make(folder='cut', **options)
    run, = ends(make(folder='cut', amp=True, command='another command', allow_changes=True))
    run.finish()
    result = json.loads((run.output / 'run.json').read_text())
    assert [(session['first_step'], session['command'], session['precision'], session['amp'])
            for session in result['sessions']] == [
        (0, 'the command', 'float32', False), (3, 'another command', 'bfloat16 autocast', True)]
    assert (result['command'], result['precision']) == ('another command', 'bfloat16 autocast')
    assert result['peak_memory_bytes'] == max(session['peak_memory_bytes'] for session in result['sessions']) > 0
    assert all(session['bn_group'] == 32 and session['processes'] == 1 and session['device'] == 'cpu'
               and session['hardware'] and session['versions'] and session['trained_by'] == ['pytorch']
               for session in result['sessions'])


def test_a_process_that_trains_nothing_leaves_no_session(make):
    cut(make(folder='cut', command='first'), 3)
    idle = make(folder='cut', command='second')
    idle.save()
    assert idle.result()['command'] == 'first' and len(idle.sessions) == 1
    idle.close()
    assert [session['command'] for session in read_checkpoint(idle.output)['sessions']] == ['first']


def test_another_backend_is_another_session(make):
    run = make()
    run.advance()
    run.train_step()
    run.record_step('triton')
    assert [(session['first_step'], session['trained_by']) for session in run.sessions] == [
        (0, ['pytorch']), (1, ['triton'])]
    assert run.result()['trained_by'] == ['pytorch', 'triton']


@pytest.mark.parametrize('options, difference', [
    (dict(seed=1), 'seed 0 before and 1 now'),
    (dict(model='preact_resnet110_orig'), 'model preact_resnet20 before and preact_resnet110_orig now'),
    (dict(model_kwargs=dict(TINY, stem_chs=2)), "'stem_chs': 4} before and "),
    (dict(recipe=choose_recipe('modern', batch_size=32, epochs=2, lr=0.1)), 'lr 0.2 before and 0.1 now'),
])
def test_another_run_is_never_continued(make, options, difference):
    cut(make(folder='cut'), 1)
    with pytest.raises(ArgumentError) as error:
        make(folder='cut', allow_changes=True, **options)
    assert difference in str(error.value) and error.value.argument == 'output'
    assert str(error.value).endswith('choose another folder.')


def test_a_checkpoint_without_sessions_is_continued_and_only_what_is_known_of_it_is_recorded(make, capsys):
    whole = outcome(ends(make())[0])
    path = cut(make(folder='cut'), 3) / 'checkpoint.pt'
    state = torch.load(path, weights_only=True)
    del state['sessions'], state['settings']['pretrained'], state['settings']['classes']
    torch.save(dict(state, ways=['pytorch']), path)
    with pytest.raises(UserError, match='amp False before and True now.: continue it by the command that began it'):
        make(folder='cut', amp=True)
    capsys.readouterr()
    run, = ends(make(folder='cut'))
    assert 'does not record how many processes' in capsys.readouterr().err
    assert_same_bits(outcome(run), whole)
    assert run.sessions[0] == dict(first_step=0, amp=False, precision='float32', trained_by=['pytorch'])
    assert run.sessions[1]['first_step'] == 3 and run.result()['hardware'] == run.sessions[1]['hardware']


def test_a_finished_run_without_its_checkpoint_is_not_trained_again(make):
    run, = ends(make(folder='done'))
    run.finish()
    run.close()
    (run.output / 'checkpoint.pt').unlink()
    with pytest.raises(ArgumentError, match='holds a finished run .run.json. without its checkpoint.pt'):
        make(folder='done')


# Networks and images


@pytest.mark.parametrize('size, message', [
    (50, 'bn_group must divide the batch of a process .32 images., got 50.'),
    (12, 'bn_group must divide the batch of a process .32 images., got 12.')])
def test_a_group_that_does_not_divide_the_batch_is_refused(make, size, message):
    with pytest.raises(ArgumentError, match=message):
        make(recipe=choose_recipe('modern', batch_size=32, bn_group=size))


@pytest.mark.parametrize('model, kwargs, side, message', [
    ('preact_resnet20', TINY, 2, 'groups of 1 image of 2x2 pixels .Expected more than 1 value per channel'),
    ('preact_resnet50_keras', {}, 1, 'groups of 1 image of 1x1 pixels .*use larger images, a larger batch'),
    ('preact_resnet20', dict(TINY, global_pool=''), 16, 'global_pool must not be empty'),
    ('preact_resnet20', dict(TINY, pretrained=True), 16, 'pretrained is not an argument of the network'),
])
def test_a_network_that_cannot_train_on_the_images_is_refused_before_training(
        sets, tmp_path, model, kwargs, side, message):
    few = [images._replace(images=images.images[:, :side, :side].copy()) for images in sets]
    settings = dict(model=model, model_kwargs=kwargs, seed=0, amp=False, data=['', ''])
    with pytest.raises(UserError, match=message):
        Run(settings, choose_recipe('modern', batch_size=8, bn_group=1), *few, tmp_path / 'run', CPU)
    assert not (tmp_path / 'run').exists()


def measured(folder, name, data):
    """The errors of a folder by load_model and by timm, as `evaluate` measures them."""
    for model in (load_model(name, str(folder)), timm.create_model(f'local-dir:{folder}', pretrained=True).eval()):
        yield evaluate(model, open_images(str(data), 'test', eval_transform(model, use_test_size=True))).error


@pytest.mark.parametrize('kwargs', [
    {}, dict(drop_rate=0.2), dict(drop_path_rate=0.2), dict(output_stride=8), dict(checkpoint_every=2),
    dict(recompute_norms=True), dict(zero_init_last=True), dict(global_pool='max'), dict(global_pool='catavgmax'),
    dict(norm_eps=1e-3), dict(act_layer='silu'), dict(norm_layer='layernorm2d'),
    dict(biases=['stem', 'inner', 'last', 'shortcut']), dict(kernels=[3]),
    dict(kernels=[1, 3, 1], bottle_ratio=0.5, stride_on='3x3'), dict(merge='excl_gate', merge_kwargs=dict(bias=-1.)),
    dict(placement='orig', projection_norm=True),
    # PyTorch 2.14 writes outside of memory in the backward of a strided 1x1 convolution of 4 channels
    dict(shortcut='C', activated_shortcuts=['first'], channels=[8, 16, 32], stem_chs=8),
    dict(stem_type='imagenet', stem_norm=False, stem_pad='zeros', stride_unit='last')], ids=str)
def test_every_argument_of_a_network_trains_and_its_folder_loads(make, small_folder, kwargs):
    recipe = choose_recipe('modern', batch_size=32, iterations=2)
    run, = ends(make(recipe=recipe, model_kwargs={**TINY, **kwargs}))
    result = run.finish()
    assert list(measured(run.output, 'preact_resnet20', small_folder)) == [result['test_error']] * 2


@pytest.mark.parametrize('model', ['preact_resnet18', 'preact_resnet152', 'preact_resnet50_keras'])
def test_a_network_is_tested_on_the_size_that_it_was_trained_on(sets, tmp_path, model):
    """Not on its name's own test size and crop; the images are not square."""
    for split, images in zip(('train', 'test'), sets, strict=True):
        np.savez(tmp_path / f'{split}.npz', images=np.concatenate([images.images] * 2, axis=1)[:, :24],
                 labels=images.labels, classes=np.array(images.classes))
    both = [load_image_set(tmp_path, split) for split in ('train', 'test')]
    settings = dict(model=model, model_kwargs=dict(layers=[1, 1, 1, 1], channels=[8, 8, 16, 16], stem_chs=8), seed=0,
                    amp=False, data=[images.sha256 for images in both])
    run, = ends(Run(settings, choose_recipe('modern', batch_size=32, iterations=2), *both, tmp_path / 'run', CPU))
    error = run.finish()['test_error']
    run.close()
    cfg = json.loads((tmp_path / 'run' / 'config.json').read_text())['pretrained_cfg']
    assert (cfg['input_size'], cfg['crop_pct']) == ([3, 24, 16], 1.)
    assert not {'test_input_size', 'test_crop_pct'} & set(cfg)
    assert list(measured(tmp_path / 'run', model, tmp_path)) == [error] * 2
