"""Turn a finished run of train.cifar into weights that ship: the file in the package, the result, and the card.

    python -m train.ship runs/preact_resnet20 --tag cifar10 --data uoft-cs/cifar10

Writes timm_preact/weights/shipped/NAME.TAG.safetensors, train/results/NAME.TAG.seedN.json (the run and its evaluation),
and hub_cards/NAME.TAG/ with config.json, README.md, curves.png, golden logits and a link to the weights, which are kept
once. Then it prints the rows that belong into timm_preact.weights.CHECKSUMS and timm_preact.catalog.MEASURED.
"""
import json
import os
from pathlib import Path

import typer

from timm_preact.errors import UserError, one_sentence_errors
from timm_preact.evaluation import eval_transform, evaluate, load_model, open_images
from timm_preact.files import write_atomically, write_json
from timm_preact.hub import write_golden
from timm_preact.weights import SHIPPED
from train.cards import configure_run, make_card
from train.places import CARDS, RESULTS

TAGS = ('cifar10', 'cifar100')


def ship(run: Path, tag: str, data: str) -> None:
    """Write everything that ships for the run, see the module's docstring."""
    result = json.loads((run / 'run.json').read_text())
    if result['recipe']['mean'] != 'channel':
        raise UserError(f"{run} subtracts the mean image, which timm's configs cannot say: train with --mean channel.")
    model = load_model(f"{result['model']}.{tag}", str(run))
    name = f"{result['model']}.{tag}"
    scores = evaluate(model, open_images(data, 'test', eval_transform(model)))
    if round(scores.error, 6) != round(result['test_error'], 6):
        raise UserError(f'{data} gives {scores.error:.2f} % and the run says {result["test_error"]:.2f} %: evaluate on '
                        f'the data it was tested on.')
    result['evaluation'] = dict(
        images=scores.images, top1=round(scores.top1, 4), top5=round(scores.top5, 4), error=round(scores.error, 4),
        per_class={label: round(value, 4) for label, value in scores.per_class.items()})
    folder = CARDS / name
    for made in (SHIPPED, RESULTS, folder):
        made.mkdir(parents=True, exist_ok=True)
    weights = SHIPPED / f'{name}.safetensors'
    write_atomically(weights, (run / 'model.safetensors').read_bytes())
    link = folder / 'model.safetensors'
    link.unlink(missing_ok=True)
    link.symlink_to(os.path.relpath(weights, folder))
    write_json(RESULTS / f"{name}.seed{result['seed']}.json", result)
    write_atomically(folder / 'curves.png', (run / 'curves.png').read_bytes())
    write_golden(folder, model)
    config = configure_run(name, json.loads((run / 'config.json').read_text()), result)
    for path, text in make_card(name, config, result):
        write_atomically(path, text.encode())
    print(f"CHECKSUMS: '{name}': 'sha256:{result['weights_sha256']}',\nMEASURED: '{name}': {round(scores.error, 4)},")


@one_sentence_errors
def main(
        run: Path = typer.Argument(help='Output folder of a finished run of train.cifar.'),
        tag: str = typer.Option(help=f'One of {", ".join(TAGS)}.'),
        data: str = typer.Option(help='The data it was tested on, as train.cifar reads it.'),
) -> None:
    """Turn a finished run into weights that ship."""
    if tag not in TAGS:
        raise UserError(f'--tag {tag} is not known: choose one of {", ".join(TAGS)}.')
    ship(run, tag, data)


if __name__ == '__main__':
    typer.run(main)
