"""Training steps at ImageNet's size, beside timm's and pytorchcv's networks of the same depth.

    python -m benchmarks.imagenet           # needs pip install 'timm-preact[benchmark]'
"""
from functools import partial
from typing import Annotated, Dict, List

import timm
import timm.optim
import torch
import torch.nn.functional as F
import typer

from benchmarks.side_by_side import compare
from timm_preact.benchmark import Peer, images_per_second
from timm_preact.errors import COUNT, check_name, one_sentence_errors
from train.run import local_device, peak_memory

WARM_UP = 8  # steps before the clock runs: cuDNN chooses its algorithms


def create(name: str) -> torch.nn.Module:
    """Create an untrained network of timm, ours, or of pytorchcv where the name says so."""
    package, colon, theirs = name.partition(':')
    return Peer(package, theirs).create() if colon else timm.create_model(check_name(name))


@one_sentence_errors
def main(
        models: List[str] = typer.Option(
            ['preact_resnet152', 'preact_resnet200', 'resnetv2_152', 'pytorchcv:preresnet152b',
             'pytorchcv:preresnet200b'],
            '--model', help="timm's or our name, or pytorchcv:NAME; ours first."),
        batch_size: Annotated[int, COUNT] = typer.Option(128, help='Images a step.'),
        image_size: Annotated[int, COUNT] = typer.Option(224, help='Pixels a side.'),
        device: str = typer.Option('cuda' if torch.cuda.is_available() else 'cpu', help='Where to train.'),
        steps: Annotated[int, COUNT] = typer.Option(20, help='Steps of a measurement.'),
        rounds: Annotated[int, COUNT] = typer.Option(3, help='Measurements of each.'),
) -> None:
    """Measure steps as train.py takes them: SGD, --amp --amp-dtype bfloat16 --channels-last.

    On one batch of noise that lies on the device: of the network and the optimizer alone, no image is read.
    """
    where = local_device(device)
    if where.type == 'cuda':
        torch.backends.cudnn.benchmark = True
    memory: Dict[str, int] = {}

    def measure(name: str) -> float:
        torch.manual_seed(0)
        model = create(name).to(where, memory_format=torch.channels_last).train()
        optimizer = timm.optim.create_optimizer_v2(model, 'sgd', lr=0.01, weight_decay=1e-4)
        x = torch.randn(batch_size, 3, image_size, image_size, device=where).to(memory_format=torch.channels_last)
        y = torch.randint(1000, (batch_size,), device=where)

        def step() -> None:
            with torch.autocast(where.type, torch.bfloat16):
                loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        if where.type == 'cuda':
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(where)
        rate = images_per_second(step, batch_size, where, steps, WARM_UP)
        memory[name] = peak_memory(where)
        return rate

    compare(
        'python -m benchmarks.imagenet', f'imagenet_{where.type}', 'images/s',
        {name: partial(measure, name) for name in models}, rounds, where, seed=0, batch_size=batch_size,
        image_size=image_size, steps=steps, peak_memory_bytes=memory)
    for name, used in memory.items():
        print(f'{name}: {used / 2 ** 30:.1f} GiB at most')


if __name__ == '__main__':
    typer.run(main)
