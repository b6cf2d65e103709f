"""Write hub_cards/: card and config of every tag that we can publish, from the tables and result files alone.

    python -m train.cards

A network trained here has its weights and golden logits there too; `timm-preact convert NAME.TAG --to DIR` makes the
whole folder of any other, which then says the sha256 of its weights.
"""
import json
from pathlib import Path
from typing import Any, Dict, Optional

import timm

from timm_preact.card import card
from timm_preact.catalog import MEASURED
from timm_preact.files import write_atomically
from timm_preact.weights import CHECKSUMS, digest_of, for_readers
from timm_preact.weights.sources import SOURCES

ROOT = Path(__file__).parents[1]
CARDS, RESULTS = ROOT / 'hub_cards', ROOT / 'train' / 'results'

TRAINING = """\
## Training

`{command}`

![Training loss and test error by epoch](curves.png)

Recipe `{recipe_name}`, seed {seed}: {epochs} epochs of batch {batch_size}, SGD with Nesterov momentum {momentum}, peak
learning rate {lr} with a linear rise over {warmup:.0%} of the run and a linear fall to 0, weight decay {weight_decay}
on every parameter, zero-padded random crops and flips, per-channel mean and standard deviation. It is not the paper's
recipe. The error is the last epoch's, of one seed: the spread between seeds was not measured.

Trained in {precision} on: {hardware}, {minutes:.0f} minutes; Python {python}, torch {torch}, timm {timm}.

Re-measured in float32 by `timm-preact evaluate --model {name}` on the whole test set."""


def result_of(name: str) -> Dict[str, Any]:
    """The run behind the weights of a network that ship, whichever seed that was."""
    results = [json.loads(path.read_text()) for path in sorted(RESULTS.glob(f'{name}.seed*.json'))]
    return next(result for result in results if CHECKSUMS[name] == f"sha256:{result['weights_sha256']}")


def config_of_run(name: str, config: Dict[str, Any], result: Dict[str, Any]) -> Dict[str, Any]:
    """config.json of a network that we trained, from what the trainer wrote."""
    scores = result['evaluation']
    size = config['pretrained_cfg']['input_size'][-1]
    evaluation = dict(
        data=name.rpartition('.')[2], split='test', images=scores['images'], input_size=size,
        crop_pct=config['pretrained_cfg']['crop_pct'], top1=scores['top1'], top5=scores['top5'])
    return dict(
        for_readers(config), golden_sha256=digest_of(CARDS / name / 'golden.npz'), evaluations=[evaluation])


def config_of_source(name: str) -> Dict[str, Any]:
    """config.json of published weights before anybody converted them."""
    architecture, _, _ = name.partition('.')
    cfg = timm.get_pretrained_cfg(name)
    model = timm.create_model(architecture, device='meta')
    return for_readers(dict(
        architecture=architecture, num_classes=cfg.num_classes, num_features=model.num_features, global_pool='avg',
        pretrained_cfg=cfg.to_dict(remove_source=True)))


def write_card(name: str, config: Dict[str, Any], result: Optional[Dict[str, Any]] = None) -> None:
    """Write config.json and README.md of hub_cards/NAME.TAG."""
    folder = CARDS / name
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / 'config.json', json.dumps(config, indent=2).encode())
    write_atomically(folder / 'README.md', card(config, training(name, result) if result else '').encode())


def training(name: str, result: Dict[str, Any]) -> str:
    """How a network was trained, from its result file."""
    return TRAINING.format(
        name=name, minutes=result['train_seconds'] / 60,
        **{key: result[key] for key in ('command', 'recipe_name', 'seed', 'precision', 'hardware')},
        **{key: result['recipe'][key] for key in ('epochs', 'batch_size', 'momentum', 'lr', 'warmup', 'weight_decay')},
        **{key: result['versions'][key] for key in ('python', 'torch', 'timm')})


def main() -> None:
    """Write every folder."""
    for name in MEASURED:
        config = json.loads((CARDS / name / 'config.json').read_text())
        write_card(name, config_of_run(name, config, result_of(name)), result_of(name))
    for name in SOURCES:
        write_card(name, config_of_source(name))


if __name__ == '__main__':
    main()
