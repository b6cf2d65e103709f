"""Measure weights that others published on real images: what their cards say beside the publisher's numbers.

    python -m train.published preact_resnet20_orig.aka_cifar10 --data data/cifar10

Fetches and verifies the file as pretrained=True does, and writes train/results/published/NAME.TAG.json;
`python -m train.pages` then writes the card.
"""
from typing import List

import torch
import typer

from timm_preact.errors import UserError, one_sentence_errors
from timm_preact.evaluation import load_model
from timm_preact.files import write_json
from timm_preact.hub import measure
from timm_preact.weights import digest_of
from timm_preact.weights.fetch import fetch
from timm_preact.weights.sources import SOURCES
from train.command import record_command
from train.places import PUBLISHED

SPLITS = {'in1k': 'validation'}  # by data set; others are tested on 'test'


@one_sentence_errors
def main(
        names: List[str] = typer.Argument(help='Names with tags.'),
        data: str = typer.Option(help='Labelled images, as timm-preact evaluate reads them.'),
        device: str = typer.Option('cpu', help='cpu or cuda.'),
) -> None:
    """Measure published weights and write what was measured."""
    for name in names:
        if name not in SOURCES:
            raise UserError(f'{name} has no published weights: choose from docs/weights.md.')
        split = SPLITS.get(name.rpartition('_')[2], 'test')
        evaluations = measure(load_model(name, device=device), data, split, device=device)
        PUBLISHED.mkdir(parents=True, exist_ok=True)
        write_json(PUBLISHED / f'{name}.json', dict(
            record_command('python -m train.published', torch.device(device)), name=name,
            file_sha256=digest_of(fetch(name)), evaluations=evaluations))
        for evaluation in evaluations:
            print(f'{name}: ' + 'top-1 {top1:.2f} %, top-5 {top5:.2f} % of {images} images'.format_map(evaluation))


if __name__ == '__main__':
    typer.run(main)
