"""Weights as folders for the Hub: convert, verify, publish."""
from pathlib import Path
from typing import Annotated, Optional

import typer

from ..errors import check_device, parse_model_kwargs
from .options import PATH, BatchSize, ClassMap, Data, Device, Folder, Match, ModelKwargs, Split, check_used

__all__ = ['convert', 'publish', 'verify']


def convert(
        source: Annotated[str, typer.Argument(
            help='A name with tag, whose published weights are fetched, or a weight file: .t7, .h5, .params, .pth.zip, '
                 '.pth, .th, .safetensors.')],
        to: Annotated[Path, typer.Option(**PATH, help='New folder.')],
        name: Annotated[Optional[str], typer.Option(
            help='For a file: the network, with a tag of your choice; without it, the one that fits.')] = None,
        license: Annotated[Optional[str], typer.Option(help='For a file: its licence, e.g. apache-2.0.')] = None,
        class_map: ClassMap = None,
        model_kwargs: ModelKwargs = None,
) -> None:
    """Turn published weights, or a file, into verified safetensors with config, card and golden logits.

    Examples: `timm-preact convert preact_resnet200_fb.in1k --to fb`

    `timm-preact convert resnet20-12fca82f.th --to resnet20`

    `timm-preact convert resnetv2_50.safetensors --name preact_resnet50.a1h_in1k --license apache-2.0 --to a1h`
    """
    from .. import hub
    from ..weights import read_config
    sha256 = hub.convert(source, to, name, license, parse_model_kwargs(model_kwargs or []), class_map)
    cfg = read_config(to / 'config.json')
    print(f'{to} holds {cfg["architecture"]}.{cfg["pretrained_cfg"]["tag"]}: '
          f'{", ".join(sorted(path.name for path in to.iterdir()))}; sha256 {sha256}')


def verify(
        folder: Folder,
        data: Data = None,
        split: Split = None,
        batch_size: BatchSize = 50,
        match: Match = 'name',
        device: Device = 'cpu',
        record: Annotated[bool, typer.Option(help='Write what is measured into config.json and the card.')] = False,
) -> None:
    """Check a folder: hashes, loading by timm, stored logits, and the accuracy on labelled images if given.

    Example: `timm-preact verify fb --data /imagenet/val` tests 224x224 (crop 0.875) and the paper's 320x320 (crop 1.0).
    """
    from .. import hub
    from ..evaluation import format_protocol
    where = check_device(device)
    check_used('--data', data, split=split, record=record or None)
    model = hub.verify_folder(folder)
    error = hub.golden_error(folder, model)
    replayed = 'no stored logits' if error is None else f'stored logits replayed within {error:.1e}'
    print(f'{folder} is whole: {model.pretrained_cfg["architecture"]}, {replayed}')
    if data is None:
        return
    results = hub.measure(model, data, split or 'test', batch_size, where, match)
    for result in results:
        print(f'{format_protocol(result)}: ' + 'top-1 {top1:.2f} %, top-5 {top5:.2f} % of {images} images'
              .format_map(result))
    if record:
        hub.record(folder, results)


def publish(
        folder: Folder,
        repo_id: Annotated[str, typer.Option(help='ORG/NAME on the Hub.')],
        revision: Annotated[Optional[str], typer.Option(help='Branch, made if it does not exist.')] = None,
        private: Annotated[bool, typer.Option('--private', help='Make a new repository private.')] = False,
        dry_run: Annotated[bool, typer.Option('--dry-run', help='Check everything, send nothing.')] = False,
        repo_type: Annotated[str, typer.Option(
            help='model; or space, for a folder like hub_cards/space, to which this package is added.')] = 'model',
) -> None:
    """Push a folder to the Hugging Face Hub in one commit, and read it back.

    Examples: `timm-preact publish fb --repo-id my-lab/preact_resnet200_fb.in1k --dry-run`

    `timm-preact publish hub_cards/space --repo-id my-lab/preact --repo-type space --dry-run`
    """
    from .. import hub
    published = hub.publish(folder, repo_id, revision, private, dry_run, repo_type)
    done = 'would get' if dry_run else f'has at {published.commit[:12]}' if published.changed else 'has already'
    print(f'{published.url} {done} {", ".join(published.files)}')
