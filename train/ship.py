"""Turn a finished run of train.cifar into weights that ship: the file in the package, the result, and the card.

    python -m train.ship runs/preact_resnet20 --tag cifar10 --data uoft-cs/cifar10

Writes timm_preact/weights/shipped/NAME.TAG.safetensors, train/results/NAME.TAG.seedN.json (the run and its evaluation),
and hub_cards/NAME.TAG/ with config.json, README.md, curves.png and a link to the weights, which are kept once. Then it
prints the rows that belong into timm_preact.weights.CHECKSUMS and timm_preact.catalog.MEASURED.
"""
import json
import os
from pathlib import Path
from typing import Any, Dict

import typer

from timm_preact.catalog import PAPER, SIZES, depth_of
from timm_preact.errors import UserError, one_sentence_errors
from timm_preact.evaluation import eval_transform, evaluate, load_model, open_images
from timm_preact.files import write_atomically
from timm_preact.weights import SHIPPED

ROOT = Path(__file__).parents[1]
CARDS, RESULTS = ROOT / 'hub_cards', ROOT / 'train' / 'results'
DATA_SETS = {'cifar10': ('CIFAR-10', 'uoft-cs/cifar10'), 'cifar100': ('CIFAR-100', 'uoft-cs/cifar100')}

CARD = """\
---
library_name: timm
license: apache-2.0
pipeline_tag: image-classification
tags:
- image-classification
- timm
- timm_preact
datasets:
- {hub_data}
model-index:
- name: {name}.{tag}
  results:
  - task:
      type: image-classification
    dataset:
      name: {data_set}
      type: {hub_data}
      split: test
    metrics:
    - type: accuracy
      name: top-1
      value: {top1:.2f}
    - type: accuracy
      name: top-5
      value: {top5:.2f}
---
# {name}.{tag}

A {depth}-layer pre-activation residual network trained on {data_set}, from
[Identity Mappings in Deep Residual Networks](https://arxiv.org/abs/1603.05027) (He et al., ECCV 2016), for
[timm](https://github.com/huggingface/pytorch-image-models) through the package `timm_preact`.

| | |
|---|---|
| top-1 test error | **{error:.2f} %** on all {images:,} test images ({paper}) |
| top-5 test error | {top5_error:.2f} % |
| parameters, multiply-adds | {params:.2f} M, {macs:.1f} M at 32x32 |
| sha256 | `{sha256}` |

## Use

```python
import timm, timm_preact  # the import registers the name

model = timm.create_model('{name}.{tag}', pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
```

## Training

`{command}`

![Training loss and test error by epoch](curves.png)

Recipe `{recipe_name}`, seed {seed}: {epochs} epochs of batch {batch}, SGD with Nesterov momentum {momentum}, peak
learning rate {lr} with a linear rise over {warmup:.0%} of the run and a linear fall to 0, weight decay {weight_decay}
on every parameter, zero-padded random crops and flips, per-channel mean and standard deviation. It is not the paper's
recipe. The error is the last epoch's.

Trained in {precision} on: {hardware}, {minutes:.0f} minutes; Python {python}, torch {torch}, timm {timm}.

Re-measured in float32 by `timm-preact evaluate --model {name}.{tag} --data {hub_data}`.

## Limits

Trained on 32x32 photographs of {classes} classes alone; on anything else it answers with one of these classes all the
same. Images of other sizes are resized to 32x32. One seed was trained: the spread between seeds was not measured.
"""


def card(name: str, tag: str, result: Dict[str, Any]) -> str:
    """The model card, from a result file alone."""
    data_set, hub_data = DATA_SETS[tag]
    recipe, scores = result['recipe'], result['evaluation']
    paper = PAPER.get(name, {}).get(tag)
    return CARD.format(
        name=name, tag=tag, data_set=data_set, hub_data=hub_data, depth=depth_of(name),
        top1=scores['top1'], top5=scores['top5'], error=scores['error'], top5_error=100 - scores['top5'],
        images=scores['images'], paper=f'the paper has {paper} %' if paper else 'the paper has no number for it',
        params=SIZES[name].params / 1e6, macs=SIZES[name].macs / 1e6, sha256=result['weights_sha256'],
        command=result['command'], recipe_name=result['recipe_name'], seed=result['seed'],
        epochs=recipe['epochs'], batch=recipe['batch_size'], momentum=recipe['momentum'], lr=recipe['lr'],
        warmup=recipe['warmup'], weight_decay=recipe['weight_decay'], precision=result['precision'],
        hardware=result['hardware'], minutes=result['train_seconds'] / 60, classes=len(scores['per_class']),
        python=result['versions']['python'], torch=result['versions']['torch'], timm=result['versions']['timm'])


def ship(run: Path, tag: str, data: str) -> None:
    """Write everything that ships for the run, see the module's docstring."""
    result = json.loads((run / 'run.json').read_text())
    if result['recipe']['mean'] != 'channel':
        raise UserError(f"{run} subtracts the mean image, which timm's configs cannot say: train with --mean channel.")
    model = load_model(f"{result['model']}.{tag}", str(run))
    name = result['model']
    scores = evaluate(model, open_images(data, 'test', eval_transform(model)))
    if round(scores.error, 6) != round(result['test_error'], 6):
        raise UserError(f'{data} gives {scores.error:.2f} % and the run says {result["test_error"]:.2f} %: evaluate on '
                        f'the data it was tested on.')
    result['evaluation'] = dict(
        images=scores.images, top1=round(scores.top1, 4), top5=round(scores.top5, 4), error=round(scores.error, 4),
        per_class={label: round(value, 4) for label, value in scores.per_class.items()})
    key = f'{name}.{tag}'
    folder = CARDS / key
    for made in (SHIPPED, RESULTS, folder):
        made.mkdir(parents=True, exist_ok=True)
    weights = SHIPPED / f'{key}.safetensors'
    write_atomically(weights, (run / 'model.safetensors').read_bytes())
    link = folder / 'model.safetensors'
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(weights, folder))
    write_atomically(folder / 'config.json', (run / 'config.json').read_bytes())
    write_atomically(RESULTS / f"{key}.seed{result['seed']}.json", json.dumps(result, indent=1).encode())
    write_atomically(folder / 'curves.png', (run / 'curves.png').read_bytes())
    write_atomically(folder / 'README.md', card(name, tag, result).encode())
    print(f"CHECKSUMS: '{key}': '{result['weights_sha256']}',\nMEASURED: '{key}': {round(scores.error, 4)},")


@one_sentence_errors
def main(
        run: Path = typer.Argument(help='Output folder of a finished run of train.cifar.'),
        tag: str = typer.Option(help=f'One of {", ".join(DATA_SETS)}.'),
        data: str = typer.Option(help='The data it was tested on, as train.cifar reads it.'),
) -> None:
    """Turn a finished run into weights that ship."""
    if tag not in DATA_SETS:
        raise UserError(f'--tag {tag} is not known: choose one of {", ".join(DATA_SETS)}.')
    ship(run, tag, data)


if __name__ == '__main__':
    typer.run(main)
