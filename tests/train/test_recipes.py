"""train/recipes/*.yaml: configurations of timm's train.py, which takes a misspelt key without a word."""
import json
import os
import random
import re
import runpy
import statistics
from pathlib import Path

import pytest
import timm
import torch
import yaml
from PIL import Image
from timm.data import create_transform
from timm.scheduler import create_scheduler_v2

ROOT = Path(__file__).parents[2]
RECIPES = {path.stem: path for path in sorted((ROOT / 'train' / 'recipes').glob('*.yaml'))}
OPTIONS = set((ROOT / 'tests' / 'support' / 'train_options.txt').read_text().split('\n')[2:]) - {''}
HEADINGS = ('Hardware', 'Cost', 'Expected', 'Source', 'Deviations')


def settings(name):
    return yaml.safe_load(RECIPES[name].read_text())


def scripts():
    """The clone of timm that the environment names, for what needs the real scripts."""
    if not os.environ.get('TIMM_SCRIPTS'):
        pytest.skip("TIMM_SCRIPTS names no clone of timm, whose wheel holds no scripts")
    return Path(os.environ['TIMM_SCRIPTS'])


def test_the_recipes_of_the_paper_and_a_modern_one_are_there():
    depths = {'scale_aspect': ('152', '200'), 'scale': ('152', '152_orig', '200', '200_orig'),
              'modern': ('50', '152', '200')}
    expected = [f'imagenet_preact_resnet{depth}_{kind}' for kind in depths for depth in depths[kind]]
    assert set(RECIPES) == {*expected, 'finetune', 'cifar_timm'}


@pytest.mark.parametrize('name', RECIPES)
def test_every_key_is_an_option_of_train_py(name):
    assert set(settings(name)) <= OPTIONS


@pytest.mark.parametrize('name', RECIPES)
def test_a_recipe_needs_only_data_and_imports_us(name):
    recipe = settings(name)
    assert recipe['device_modules'] == ['timm_preact'] and timm.is_model(recipe['model'])
    assert not {'data', 'data_dir', 'output', 'resume'} & set(recipe)


@pytest.mark.parametrize('name', RECIPES)
def test_a_recipe_says_its_command_cost_and_source(name):
    header = RECIPES[name].read_text().split('\n\n')[0]
    assert f'train.py --config {name}.yaml' in header
    for heading in HEADINGS:
        assert f'# {heading}' in header
    cost = header.split('# Cost: ')[1].split('# Expected')[0]
    assert 'estimated' in cost or 'measured' in cost


@pytest.mark.parametrize('depth', ['152', '200'])
def test_the_costs_follow_from_the_measured_rates(depth):
    rate = json.loads((ROOT / 'benchmarks/results/benchmark_imagenet_cuda.json').read_text())['medians'][
        f'preact_resnet{depth}']
    for name in RECIPES:
        if name.startswith(f'imagenet_preact_resnet{depth}'):
            hours = settings(name)['epochs'] * 1_281_167 / rate / 3600
            assert f'# Cost: {hours:.0f} H100-hours' in RECIPES[name].read_text()


def test_recipes_of_a_kind_differ_in_the_model_alone():
    for kind, free in (('scale_aspect', ()), ('scale', ()), ('modern', ('drop_path',))):
        pattern = rf'imagenet_preact_resnet\d+(_orig)?_{kind}'
        recipes = [settings(name) for name in RECIPES if re.fullmatch(pattern, name)]
        assert len(recipes) >= 2
        for recipe in recipes:
            for key in ('model', *free):
                recipe.pop(key)
        assert all(recipe == recipes[0] for recipe in recipes)


@pytest.mark.parametrize('name, expected', [
    ('imagenet_preact_resnet200_scale_aspect', {0: 0.1, 30: 0.01, 60: 0.001}),
    ('imagenet_preact_resnet152_orig_scale', {0: 0.1, 30: 0.01, 60: 0.001}),
    ('cifar_timm', {0: 0.01, 1: 0.1, 82: 0.01, 123: 0.001}),
])
def test_the_rate_changes_at_the_sources_epochs(name, expected):
    """Epochs are counted from 0, as train.py does."""
    recipe = settings(name)
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    keys = ('sched', 'decay_epochs', 'decay_milestones', 'decay_rate', 'warmup_epochs', 'warmup_lr')
    scheduler, epochs = create_scheduler_v2(
        optimizer, num_epochs=recipe['epochs'], **{key: recipe[key] for key in keys if key in recipe})
    rates = {}
    for epoch in range(epochs):
        scheduler.step(epoch)
        rate = optimizer.param_groups[0]['lr']
        if not rates or rate != list(rates.values())[-1]:
            rates[epoch] = rate
    assert epochs == recipe['epochs'] and rates == pytest.approx(expected)


def crops(name, aspect, count=2000):
    """Sides of a recipe's crops as shares of an image's shorter side, read off the colours of a gradient."""
    recipe = settings(name)
    width, height = round(300 * aspect), 300
    x = torch.arange(width).expand(height, width) * 255 / (width - 1)
    y = torch.arange(height)[:, None].expand(height, width) * 255 / (height - 1)
    image = Image.fromarray(torch.stack([x, y, torch.zeros_like(x)], dim=-1).round().byte().numpy())
    transform = create_transform(
        32, is_training=True, use_prefetcher=True, hflip=0., color_jitter=0., scale=recipe['scale'],
        ratio=recipe['ratio'], interpolation='bilinear')
    torch.manual_seed(0)
    random.seed(0)
    for _ in range(count):
        red, green, _ = torch.as_tensor(transform(image)).float()
        share = 32 / 31 / 255  # of pixels' centres to edges
        yield ((red.max() - red.min()) * share * aspect).item(), ((green.max() - green.min()) * share).item()


def test_the_scale_recipes_crop_as_the_paper_does_at_4_to_3():
    """Squares of 224/480 to 224/256 of the shorter side; their mean is what the recipe's header says."""
    sides = list(crops('imagenet_preact_resnet200_scale', 4 / 3))
    assert all(abs(w - h) < 0.03 for w, h in sides)
    heights = [h for _, h in sides]
    assert 224 / 480 - 0.02 < min(heights) < 224 / 480 + 0.02 and 224 / 256 - 0.02 < max(heights) < 224 / 256 + 0.02
    assert statistics.mean(heights) == pytest.approx(0.69, abs=0.01)


@pytest.mark.parametrize('name', RECIPES)
def test_the_real_parser_has_every_key_and_takes_every_value(name):
    script = runpy.run_path(str(scripts() / 'train.py'), run_name='train')
    parser, recipe = script['parser'], settings(name)
    actions = {action.dest: action for action in parser._actions}
    assert set(recipe) <= set(actions)
    for key, value in recipe.items():
        for item in value if isinstance(value, list) else [value]:
            kind = actions[key].type
            assert kind is None or isinstance(item, (kind, int) if kind is float else kind), key
    parser.set_defaults(**recipe)
    assert vars(parser.parse_args([]))['model'] == recipe['model']


def test_the_pinned_options_are_the_real_parsers():
    actions = runpy.run_path(str(scripts() / 'train.py'), run_name='train')['parser']._actions
    assert {action.dest for action in actions} - {'help'} == OPTIONS
