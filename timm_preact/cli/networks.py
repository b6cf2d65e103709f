"""What networks there are and what they make of images: list, predict, evaluate, demo."""
import json
import time
from pathlib import Path
from typing import Annotated, List, Optional

import typer

from ..catalog import DEMO_MODEL
from ..errors import UserError, check_device
from .options import BatchSize, Data, Device, ImgSize, Json, Match, Model, NumClasses, Split, Weights
from .screen import print_networks, print_predictions, print_scores, show_progress

__all__ = ['demo', 'evaluate', 'list_models', 'predict']


def list_models(
        pattern: Annotated[str, typer.Argument(help='Names to list, e.g. "preact_resnet110*".')] = 'preact_*',
        as_json: Json = False,
) -> None:
    """List the networks: size, cost, the errors of the paper, of published weights and ours, and which have weights.

    Example: `timm-preact list 'preact_resnet110*'`
    """
    from ..catalog import list_networks
    rows = list_networks(pattern)
    print(json.dumps(rows, indent=1)) if as_json else print_networks(rows)


def predict(
        images: Annotated[List[Path], typer.Argument(help='Image files of any size, or folders of them.')],
        model: Model = None,
        weights: Weights = None,
        top_k: Annotated[int, typer.Option(help='Classes an image.')] = 5,
        device: Device = 'cpu',
        as_json: Json = False,
) -> None:
    """Name what is in images, by the network that ships unless told otherwise.

    An image that cannot be read costs its own row, and the exit code is 1.

    Example: `timm-preact predict cat.png --top-k 3 --json`
    """
    from .. import evaluation
    from ..images import image_files
    from ..loading import find_name
    where, files = check_device(device), image_files(images)
    found = model or (find_name(weights, '--model') if weights else DEMO_MODEL)
    net = evaluation.load_model(found, weights, where, as_in_file=model is None)
    results = evaluation.predict(net, files, top_k, where)
    print(json.dumps(results, indent=1)) if as_json else print_predictions(results)
    if any('error' in result for result in results):
        raise SystemExit(1)


def evaluate(
        data: Data,
        model: Model = None,
        split: Split = 'test',
        weights: Weights = None,
        num_classes: NumClasses = None,
        img_size: ImgSize = None,
        crop_pct: Annotated[Optional[float], typer.Option(help='Crop as a share of the shorter side.')] = None,
        batch_size: BatchSize = 250,
        match: Match = 'name',
        device: Device = 'cpu',
        as_json: Json = False,
) -> None:
    """Measure top-1 and top-5 accuracy, overall and by class, at the test size of the name unless told otherwise.

    Examples: `timm-preact evaluate --model preact_resnet20 --data uoft-cs/cifar10`

    `timm-preact evaluate --model preact_resnet200_fb --data /imagenet/val --img-size 320 --crop-pct 1.0`
    """
    from .. import evaluation
    from ..loading import find_name
    where = check_device(device)
    if model is None and weights is None:
        raise UserError('evaluate measures a network: name one by --model, or a file of weights by --weights.')
    as_in_file = model is None and num_classes is None
    model = model or find_name(weights, '--model')
    net = evaluation.load_model(model, weights, where, num_classes, as_in_file=as_in_file)
    transform = evaluation.eval_transform(net, img_size, crop_pct, use_test_size=True)
    images = evaluation.open_images(data, split, transform)
    with show_progress(len(images), f'{model} on {data}') as advance:
        scores = evaluation.evaluate(net, images, batch_size, where, advance, match)
    if as_json:
        print(json.dumps(dict(
            model=model, data=data, split=split, images=scores.images, top1=round(scores.top1, 4),
            top5=round(scores.top5, 4), error=round(scores.error, 4), per_class=scores.per_class), indent=1))
        return
    print_scores(f'{model} on {scores.images} images of {data}', scores)
    print(f'top-1 error {scores.error:.2f} %')


def demo(
        output: Annotated[Path, typer.Option(help='Where to write the picture of predictions.')] = Path(
            'timm_preact_demo.png'),
) -> None:
    """Run the network that ships with the package on real test images that ship with it; needs no network."""
    from ..demo import run_demo
    start = time.perf_counter()
    scores = run_demo(output)
    print_scores(f"timm.create_model('{DEMO_MODEL}', pretrained=True) on {scores.images} CIFAR-10 test images", scores)
    print(f'top-1 error {scores.error:.2f} % in {time.perf_counter() - start:.1f} s; predictions drawn in {output}')
