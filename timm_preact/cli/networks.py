"""What networks there are and what they make of images: list, predict, evaluate, demo."""
import json
import time
from functools import partial
from pathlib import Path
from typing import Annotated, List, Optional

import typer

from ..catalog import DEMO_MODEL
from ..errors import COUNT, Range, UserError, check_device
from .options import (
    PATH,
    BatchSize,
    ClassMap,
    CropPct,
    Data,
    Device,
    ImgSize,
    Json,
    Match,
    Model,
    NumClasses,
    Split,
    Weights,
    check_used,
)
from .screen import print_comparison, print_networks, print_predictions, print_scores, show_progress

__all__ = ['demo', 'evaluate', 'list_models', 'predict']


def list_models(
        pattern: Annotated[str, typer.Argument(help='Names to list, e.g. "preact_resnet110*".')] = 'preact_*',
        data: Annotated[Optional[str], typer.Option(
            help='Only networks for cifar10, cifar100, svhn or imagenet.')] = None,
        sort: Annotated[str, typer.Option(help='name, or error: the lowest error of weights first.')] = 'name',
        as_json: Json = False,
) -> None:
    """List the networks: size, cost, the errors of the paper, of published weights and ours, and which have weights.

    The best weights of each data set and depth are marked with `*`.

    Examples: `timm-preact list 'preact_resnet110*'`

    `timm-preact list --data imagenet --sort error`
    """
    from ..catalog import list_networks
    rows = list_networks(pattern, data, sort)
    print(json.dumps(rows, indent=1)) if as_json else print_networks(rows)


def predict(
        images: Annotated[List[Path], typer.Argument(**PATH, help='Image files of any size, or folders of them.')],
        model: Model = None,
        weights: Weights = None,
        class_map: ClassMap = None,
        top_k: Annotated[int, COUNT, typer.Option(help='Classes an image.')] = 5,
        cam: Annotated[Optional[Path], typer.Option(
            **PATH, help='Write a PNG of where the network looks in the only image (Grad-CAM).')] = None,
        stage: Annotated[Optional[int], COUNT, typer.Option(
            help='For --cam: of which stage, from 1; else the last.')] = None,
        device: Device = 'cpu',
        as_json: Json = False,
) -> None:
    """Name what is in images, by the network that ships unless told otherwise.

    An image that cannot be read costs its own row, and the exit code is 1.

    Examples: `timm-preact predict cat.png --top-k 3 --json`

    `timm-preact predict cat.png --model hf-hub:my-lab/my_network --cam looks.png`
    """
    from .. import evaluation, gradcam
    from ..images import image_files, open_image
    from ..loading import find_name
    where, files = check_device(device), image_files(images)
    if cam and len(files) != 1:
        raise UserError(f'--cam draws one image, not {len(files)}: name one.')
    if stage is not None and not cam:
        raise UserError('--stage says what --cam draws: pass --cam too.')
    found = model or (find_name(weights, '--model') if weights else DEMO_MODEL)
    as_in_file = model is None or '.' not in model
    net = evaluation.load_model(found, weights, where, as_in_file=as_in_file, class_map=class_map)
    results = evaluation.predict(net, files, top_k, where)
    if cam:
        gradcam.write_look(net, open_image(files[0]), cam, stage)
    print(json.dumps(results, indent=1)) if as_json else print_predictions(results)
    if any('error' in result for result in results):
        raise SystemExit(1)


def evaluate(
        data: Data = None,
        model: Model = None,
        split: Split = None,
        weights: Weights = None,
        against: Annotated[Optional[str], typer.Option(
            help='Name of a second network; if not given, the one that --against-weights fits.')] = None,
        against_weights: Annotated[Optional[str], typer.Option(help='Weights of the second network.')] = None,
        num_classes: NumClasses = None,
        class_map: ClassMap = None,
        img_size: ImgSize = None,
        crop_pct: CropPct = None,
        batch_size: BatchSize = 250,
        match: Match = 'name',
        device: Device = 'cpu',
        as_json: Json = False,
) -> None:
    """Measure top-1 and top-5 accuracy, overall and by class, at the test size of the name unless told otherwise.

    On CIFAR-10 images of the package, or on those that --data names. With --against, two networks beside each other,
    and which images they name differently.

    Examples: `timm-preact evaluate --model preact_resnet20 --data uoft-cs/cifar10`

    `timm-preact evaluate --model preact_resnet200_fb --data /imagenet/val --img-size 320 --crop-pct 1.0`

    `timm-preact evaluate --model preact_resnet20 --against-weights my_run/model.safetensors`
    """
    from .. import evaluation
    from ..data import load_sample
    from ..loading import find_name
    where = check_device(device)
    check_used('--data', data, split=split)
    check_used('--weights or --against-weights', weights or against_weights, class_map=class_map)
    split = split or 'test'
    if model is None and weights is None:
        raise UserError('evaluate measures a network: name one by --model, or a file of weights by --weights.')
    as_in_file = model is None and num_classes is None
    model = model or find_name(weights, '--model')
    net = evaluation.load_model(
        model, weights, where, num_classes if weights or not against_weights else None, as_in_file=as_in_file,
        class_map=class_map if weights else None)
    open_with = (partial(evaluation.Images, load_sample()) if data is None else
                 partial(evaluation.open_images, data, split))
    data = data or 'the sample in the package'
    if against or against_weights:
        if img_size is not None or crop_pct is not None:
            raise UserError('--against tests each network at its own size: leave out --img-size and --crop-pct.')
        other = evaluation.load_model(
            against or find_name(against_weights, '--against'), against_weights, where,
            num_classes if against_weights else None, as_in_file=against is None and num_classes is None,
            class_map=class_map if against_weights else None)
        found = evaluation.compare((net, other), open_with, batch_size, where, match=match)
        if as_json:
            print(json.dumps(dict(
                data=data, images=len(found.answers[0]), top1=[round(one.top1, 4) for one in found.scores],
                per_class=[one.per_class for one in found.scores], differ=found.differ), indent=1))
        else:
            print_comparison(found, data)
        return
    protocol = evaluation.resolve_protocol(net, img_size, crop_pct, use_test_size=True)
    images = open_with(protocol.transform())
    with show_progress(len(images), f'{model} on {data}') as advance:
        scores = evaluation.evaluate(net, images, batch_size, where, advance, match)
    if as_json:
        print(json.dumps(dict(
            model=model, data=data, split=split, images=scores.images, top1=round(scores.top1, 4),
            top5=round(scores.top5, 4), error=round(scores.error, 4), **protocol.as_evaluation(),
            per_class=scores.per_class), indent=1))
        return
    print_scores(f'{model} on {scores.images} images of {data}', scores)
    print(f'top-1 error {scores.error:.2f} %')


def demo(
        output: Annotated[Path, typer.Option(**PATH, help='Where to write the picture of predictions.')] = Path(
            'timm_preact_demo.png'),
        web: Annotated[bool, typer.Option(
            '--web', help="Open a page in place of that; needs pip install 'timm-preact[web]'.")] = False,
        host: Annotated[Optional[str], typer.Option(
            help='For --web: the address to answer at, 127.0.0.1 if not given.')] = None,
        port: Annotated[Optional[int], Range(least=1, most=65535), typer.Option(
            help='For --web: the port to answer at, 7860 if not given.')] = None,
) -> None:
    """Run the network that ships with the package on real test images that ship with it; needs no network.

    Example: `timm-preact demo --web`
    """
    check_used('--web', web, host=host, port=port)
    if web:
        from ..web import serve
        return serve(host or '127.0.0.1', port or 7860)
    from ..demo import run_demo
    start = time.perf_counter()
    scores = run_demo(output)
    print_scores(f"timm.create_model('{DEMO_MODEL}', pretrained=True) on {scores.images} CIFAR-10 test images", scores)
    print(f'top-1 error {scores.error:.2f} % in {time.perf_counter() - start:.1f} s; predictions drawn in {output}')
