"""Networks as files that run without this package: export."""
from pathlib import Path
from typing import Annotated, Optional

import typer

from ..errors import COUNT, UserError
from .options import PATH, ImgSize, NumClasses, Weights, check_used

__all__ = ['export']


def export(
        model: Annotated[str, typer.Argument(help='Registered name, with or without tag.')],
        to: Annotated[Path, typer.Option(
            **PATH, help='New file: .onnx, .pt2 (torch.export), .pt or .ts (TorchScript).')],
        format: Annotated[Optional[str], typer.Option(
            help='onnx, torch-export or torchscript, as the suffix says by itself, or aoti: .pt2, compiled.')] = None,
        weights: Weights = None,
        num_classes: NumClasses = None,
        img_size: ImgSize = None,
        batch_size: Annotated[Optional[int], COUNT, typer.Option(
            help='The only batch size to take; any if not given. TorchScript takes any.')] = None,
        plain: Annotated[bool, typer.Option(
            '--plain', help='The network as trained, its BatchNorms not folded.')] = False,
        int8: Annotated[bool, typer.Option('--int8', help='ONNX in 8-bit integers; needs --data.')] = False,
        data: Annotated[Optional[str], typer.Option(
            help='For --int8: images to find the ranges of values on, as evaluate reads them.')] = None,
        split: Annotated[Optional[str], typer.Option(
            help='For --int8: split of the data set, train if not given.')] = None,
        calibration_images: Annotated[Optional[int], COUNT, typer.Option(
            help='For --int8: how many, evenly spread over the split, 500 if not given.')] = None,
) -> None:
    """Write a network to a file that runs without this package, optimised for inference.

    Examples: `timm-preact export preact_resnet20 --to preact_resnet20.onnx`

    `timm-preact export preact_resnet20 --to int8.onnx --int8 --data uoft-cs/cifar10`
    """
    from .. import evaluation
    from ..export import choose_format
    from ..export import export as write
    from ..inference import optimize
    check_used('--int8', int8, split=split, calibration_images=calibration_images)
    if int8 != (data is not None):
        raise UserError('--data is what --int8 looks at: pass both or neither.')
    format = choose_format(to, format, batch_size, int8)
    net = evaluation.load_model(model, weights, num_classes=num_classes)
    protocol, images = evaluation.resolve_protocol(net, img_size), None
    if int8:
        opened = evaluation.open_images(data, split or 'train', protocol.transform())
        images, _ = opened.spread(calibration_images or 500)
    write(net if plain else optimize(net), to, format, protocol.input_size, batch_size, images)
    print(f'{to} holds {model} as {format}{" in int8" if int8 else ""}, {to.stat().st_size / 2 ** 20:.2f} MiB')
