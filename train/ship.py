"""Turn a finished run of train.cifar into weights that ship: the file in the package, the result, and the card.

    python -m train.ship runs/preact_resnet20 --tag cifar10 --data uoft-cs/cifar10

Writes timm_preact/weights/shipped/NAME.TAG.safetensors, train/results/NAME.TAG.seedN.json (the run and its evaluation),
and hub_cards/NAME.TAG/ with config.json, README.md, curves.png, golden logits and a link to the weights, which are kept
once. Convolutions and the classifier are stored in float16 if no test image is answered less rightly for it. Then it
prints the rows that belong into timm_preact.weights.CHECKSUMS and timm_preact.catalog.MEASURED.
"""
import hashlib
import json
import os
from pathlib import Path
from typing import Dict

import torch
import typer
from safetensors.torch import save

from timm_preact.cli.options import PATH
from timm_preact.errors import UserError, one_sentence_errors
from timm_preact.evaluation import eval_transform, evaluate, load_model, open_images
from timm_preact.files import write_atomically, write_json
from timm_preact.hub import write_golden
from timm_preact.weights import SHIPPED
from train.cards import configure_run, make_card
from train.places import CARDS, RESULTS

TAGS = ('cifar10', 'cifar100')
MOST_BYTES = 8_000_000  # of a file in the package


def ship(run: Path, tag: str, data: str) -> None:
    """Write everything that ships for the run, see the module's docstring."""
    result = json.loads((run / 'run.json').read_text())
    if result['recipe']['mean'] != 'channel':
        raise UserError(f"{run} subtracts the mean image, which timm's configs cannot say: train with --mean channel.")
    name = f"{result['model']}.{tag}"
    model = load_model(name, str(run))
    images = open_images(data, 'test', eval_transform(model))
    scores = evaluate(model, images)
    if round(scores.error, 6) != round(result['test_error'], 6):
        raise UserError(f'{data} gives {scores.error:.2f} % and the run says {result["test_error"]:.2f} %: evaluate on '
                        f'the data it was tested on.')
    content, storage = (run / 'model.safetensors').read_bytes(), 'float32'
    halved = halve(model.state_dict())
    model.load_state_dict(halved)
    halved_scores = evaluate(model, images)
    if halved_scores.error == scores.error:
        content, storage, scores = save(halved, metadata={'format': 'pt'}), 'float16', halved_scores
    else:
        model = load_model(name, str(run))
    if len(content) > MOST_BYTES:
        raise UserError(f'{run} holds {len(content):,} bytes of weights, of which at most {MOST_BYTES:,} ship.')
    result.update(weights_sha256=hashlib.sha256(content).hexdigest(), storage=storage, evaluation=dict(
        images=scores.images, top1=round(scores.top1, 4), top5=round(scores.top5, 4), error=round(scores.error, 4),
        per_class={label: round(value, 4) for label, value in scores.per_class.items()}))
    folder = CARDS / name
    for made in (SHIPPED, RESULTS, folder):
        made.mkdir(parents=True, exist_ok=True)
    weights = SHIPPED / f'{name}.safetensors'
    write_atomically(weights, content)
    link = folder / 'model.safetensors'
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(weights, folder))
    write_json(RESULTS / f"{name}.seed{result['seed']}.json", result)
    write_atomically(folder / 'curves.png', (run / 'curves.png').read_bytes())
    write_golden(folder, model)
    config = dict(json.loads((run / 'config.json').read_text()), sha256=result['weights_sha256'])
    config['pretrained_cfg'] = dict(config['pretrained_cfg'], tag=tag)
    for path, text in make_card(name, configure_run(name, config, result), result):
        write_atomically(path, text.encode())
    print(f"CHECKSUMS: '{name}': 'sha256:{result['weights_sha256']}',\nMEASURED: '{name}': {round(scores.error, 4)},")


def halve(state: Dict[str, torch.Tensor]) -> Dict[str, torch.Tensor]:
    """Weights of convolutions and of the classifier in float16; what BatchNorm has, and biases, in float32."""
    return {name: (tensor.half() if tensor.ndim > 1 else tensor).contiguous() for name, tensor in state.items()}


@one_sentence_errors
def main(
        run: Path = typer.Argument(**PATH, help='Output folder of a finished run of train.cifar.'),
        tag: str = typer.Option(help=f'One of {", ".join(TAGS)}.'),
        data: str = typer.Option(help='The data it was tested on, as train.cifar reads it.'),
) -> None:
    """Turn a finished run into weights that ship."""
    if tag not in TAGS:
        raise UserError(f'--tag {tag} is not known: choose one of {", ".join(TAGS)}.')
    ship(run, tag, data)


if __name__ == '__main__':
    typer.run(main)
