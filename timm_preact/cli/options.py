"""Options that several commands share, each with its help."""
from pathlib import Path
from typing import Annotated, Any, List, Optional

import typer

from ..errors import COUNT, SHARE, ArgumentError

__all__ = [
    'PATH', 'BatchSize', 'ClassMap', 'CropPct', 'Data', 'Device', 'Folder', 'ImgSize', 'Json', 'Match', 'Model',
    'ModelKwargs', 'NumClasses', 'Split', 'Weights', 'check_used',
]


def parse_path(text: str) -> Path:
    """Return the path; `Path('')` is the current folder, which an empty shell variable does not mean."""
    if not text:
        raise typer.BadParameter('the path must not be empty.')
    return Path(text)


def check_used(needed: str, is_given: Any, **arguments: Any) -> None:
    """Check that arguments without effect are not given.

    Args:
        needed: Option without which they have no effect.
        is_given: That option's value.
        **arguments: Their values.

    Raises:
        ArgumentError: One is given, and the option is not.
    """
    for name, value in arguments.items():
        if value is not None and not is_given:
            raise ArgumentError(name, f'requires {needed}.')


PATH = dict(parser=parse_path, metavar='PATH')  # of every option and argument that is a path

Model = Annotated[Optional[str], typer.Option(
    help='Registered name, with or without tag; if not given, the one that --weights fits.')]
Weights = Annotated[Optional[str], typer.Option(
    help='Weights of your own: a file of any kind that convert reads, or a folder of train.cifar.')]
NumClasses = Annotated[Optional[int], COUNT, typer.Option(help="Classes of weights of your own, where not the name's.")]
ClassMap = Annotated[Optional[Path], typer.Option(
    **PATH, help='Text file with the class names of weights of your own, one a line, in the order of the logits. If '
                 "not given: those of the config.json or of timm's args.yaml beside the weights.")]
ModelKwargs = Annotated[Optional[List[str]], typer.Option(
    help='An argument of the network, e.g. stride_on=1x1; may be repeated.')]
Data = Annotated[Optional[str], typer.Option(
    help='Labelled images: folder of parquet or npz files or of images (a subfolder a class), .npz file, or Hub data '
         'set such as uoft-cs/cifar10.')]
Split = Annotated[Optional[str], typer.Option(
    help='Split of --data, test if not given. An .npz file, or a folder that holds the folders of the classes, is one '
         'split.')]
ImgSize = Annotated[Optional[int], COUNT, typer.Option(help="Pixels a side of the images. Default: the model's own.")]
CropPct = Annotated[Optional[float], SHARE, typer.Option(help='Crop as a share of the shorter side.')]
BatchSize = Annotated[int, COUNT, typer.Option(help='Images a forward pass.')]
Match = Annotated[str, typer.Option(
    help="How the data's classes are found among the model's: by name, or by index, in the order that they have.")]
Device = Annotated[str, typer.Option(help='cpu or cuda.')]
Json = Annotated[bool, typer.Option('--json', help='Print JSON.')]
Folder = Annotated[Path, typer.Argument(**PATH, help='A folder that convert or train.ship made.')]
