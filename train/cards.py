"""Card and config of every tag that we can publish, in hub_cards/, from the tables and result files alone.

`python -m train.pages` writes them. A network trained here has its weights and golden logits there too;
`timm-preact convert NAME.TAG --to DIR` makes the whole folder of any other, which then says the sha256 of its weights.
"""
import json
from pathlib import Path
from typing import Any, Dict, Iterator, Optional, Tuple

import timm

from timm_preact.card import card
from timm_preact.catalog import MEASURED
from timm_preact.evaluation import Protocol
from timm_preact.weights import CHECKSUMS, digest_of, for_readers
from timm_preact.weights.sources import SOURCES
from train.places import CARDS, PUBLISHED, RESULTS
from train.recipe import complete_recipe

__all__ = ['configure_run', 'configure_source', 'find_result', 'format_training', 'make_card', 'make_cards']

TRAINING = """\
## Training

`{command}`

![Training loss and test error by epoch](curves.png)

Recipe `{recipe_name}`, seed {seed}: {length} of batch {batch_size}, SGD with Nesterov momentum {momentum}, peak
learning rate {lr} with a linear rise over {warmup:.0%} of the run and a linear fall to 0, weight decay {weight_decay}
{decayed}, {augmentation}, per-channel mean and standard deviation{averaged}. It is not the paper's
recipe. The error is the last epoch's, of one seed: the spread between seeds was not measured.

Trained in {precision} on: {hardware}, {minutes:.0f} minutes; Python {python}, torch {torch}, timm {timm}.

Re-measured in float32 by `timm-preact evaluate --model {name}` on the whole test set."""


def find_result(name: str) -> Dict[str, Any]:
    """Find the run behind the weights of a network that ship, whichever seed that was."""
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob(f'{name}.seed*.json'))]
    return next(result for result in results if CHECKSUMS[name] == f"sha256:{result['weights_sha256']}")


def configure_run(name: str, config: Dict[str, Any], result: Dict[str, Any]) -> Dict[str, Any]:
    """Make config.json of a network that we trained, from what the trainer wrote."""
    scores = result['evaluation']
    protocol = Protocol(*(config['pretrained_cfg'].get(key) for key in Protocol._fields))
    evaluation = dict(
        data=name.rpartition('.')[2], split='test', images=scores['images'], **protocol.as_evaluation(),
        top1=scores['top1'], top5=scores['top5'])
    return dict(
        for_readers(config), golden_sha256=digest_of(CARDS / name / 'golden.npz'), evaluations=[evaluation])


def configure_source(name: str) -> Dict[str, Any]:
    """Make config.json of published weights before anybody converted them, with what train.published measured."""
    measured = PUBLISHED / f'{name}.json'
    evaluations = dict(evaluations=json.loads(measured.read_text())['evaluations']) if measured.exists() else {}
    architecture, _, _ = name.partition('.')
    cfg = timm.get_pretrained_cfg(name)
    model = timm.create_model(architecture, device='meta')
    return for_readers(dict(
        architecture=architecture, num_classes=cfg.num_classes, num_features=model.num_features, global_pool='avg',
        pretrained_cfg=cfg.to_dict(remove_source=True), **evaluations))


def make_card(name: str, config: Dict[str, Any], result: Optional[Dict[str, Any]] = None) -> Iterator[Tuple[Path, str]]:
    """Make config.json and README.md of hub_cards/NAME.TAG: where each lies, and what stands there."""
    yield CARDS / name / 'config.json', json.dumps(config, indent=2)
    yield CARDS / name / 'README.md', card(config, format_training(name, result) if result else '')


def format_training(name: str, result: Dict[str, Any]) -> str:
    """Format how a network was trained, from its result file."""
    recipe = complete_recipe(result['recipe'])
    return TRAINING.format(
        name=name, minutes=result['train_seconds'] / 60, augmentation=format_augmentation(recipe),
        averaged=f'; the weights are averaged over {recipe["average"]:.0%} of the run' if recipe['average'] else '',
        length=f'{result["iterations"]:,} steps' if recipe['epochs'] is None else f'{recipe["epochs"]:g} epochs',
        decayed='on every parameter' if recipe['decay_all'] else 'on convolutions and the classifier',
        **{key: result[key] for key in ('command', 'recipe_name', 'seed', 'precision', 'hardware')},
        **{key: recipe[key] for key in ('batch_size', 'momentum', 'lr', 'warmup', 'weight_decay')},
        **{key: result['versions'][key] for key in ('python', 'torch', 'timm')})


def format_augmentation(recipe: Dict[str, Any]) -> str:
    """Format what happens to images and labels."""
    flips = 'a flip in every other epoch' if recipe['alternate_flips'] else 'random flips'
    return ', '.join(filter(None, [
        f'random crops of the image zero-padded by {recipe["translate"]}', flips,
        recipe['cutout'] and f'a square of {recipe["cutout"]} pixels cut out',
        recipe['label_smoothing'] and f'label smoothing {recipe["label_smoothing"]}']))


def make_cards() -> Iterator[Tuple[Path, str]]:
    """Make every card and config: where each lies, and what stands there."""
    for name in MEASURED:
        config, result = json.loads((CARDS / name / 'config.json').read_text()), find_result(name)
        yield from make_card(name, configure_run(name, config, result), result)
    for name in SOURCES:
        yield from make_card(name, configure_source(name))
