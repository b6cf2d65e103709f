"""Our networks beside other people's: benchmark."""
import sys
from pathlib import Path
from typing import Annotated, List, Optional

import typer

from ..errors import UserError, check_above_0, check_device
from .options import Device, ImgSize
from .screen import show_progress

__all__ = ['run_benchmark']


def run_benchmark(
        models: Annotated[List[str], typer.Argument(help='Registered names.')],
        task: Annotated[str, typer.Option(help='inference or training.')] = 'inference',
        against: Annotated[str, typer.Option(
            help='Packages to measure beside us.')] = 'timm,pytorchcv,torchvision',
        batch_size: List[int] = typer.Option([64], help='Images a call; may be repeated.'),
        img_size: ImgSize = None,
        dtype: List[str] = typer.Option(['float32'], help='float32, bfloat16 or float16; may be repeated.'),
        device: Device = 'cpu',
        threads: Annotated[Optional[int], typer.Option(help='Threads of the CPU; all if not given.')] = None,
        rounds: Annotated[int, typer.Option(min=1, help='Measurements of each.')] = 5,
        compile_units: Annotated[bool, typer.Option(
            '--compile', help='Measure ours with compiled units too.')] = False,
        cuda_graph: Annotated[bool, typer.Option(
            '--cuda-graph', help='Measure ours as a CUDA graph too.')] = False,
        to: Annotated[Optional[Path], typer.Option(help='Write PATH.json and PATH.png.')] = None,
) -> None:
    """Measure our networks beside other people's on this machine: images a second and memory.

    Example: `timm-preact benchmark preact_resnet110_pcv preact_resnet152 --batch-size 4 --dtype bfloat16`
    """
    import torch

    from .. import benchmark
    from ..preact_resnet import MODEL_ARGS
    where = check_device(device)
    check_above_0('--threads', threads)
    check_above_0('--img-size', img_size)
    for size in batch_size:
        check_above_0('--batch-size', size)
    if threads:
        torch.set_num_threads(threads)
    if task not in benchmark.TASKS:
        raise UserError(f'--task {task} is not known: choose one of {", ".join(benchmark.TASKS)}.')
    for name in models:
        if name not in MODEL_ARGS:
            raise UserError(f'{name} is no network of ours: timm-preact list names them.')
    dtypes = [getattr(torch, name, None) for name in dtype]
    if not set(dtypes) <= {torch.float32, torch.bfloat16, torch.float16}:
        raise UserError(f'--dtype {" ".join(dtype)} is not known: choose float32, bfloat16 or float16.')
    if cuda_graph and where.type != 'cuda':
        raise UserError('a CUDA graph needs a GPU: add --device cuda, or leave --cuda-graph out.')
    packages = benchmark.installed(against.split(','))
    result = dict(benchmark.facts(where, packages), operations_per_second={}, runs=[])
    settings = [benchmark.Setting(name, task, kind, batch, img_size)
                for name in models for kind in dtypes for batch in batch_size]
    with show_progress(len(settings), 'benchmark') as advance:
        for kind in dtypes:
            rate = benchmark.operations_per_second(where, kind)
            result['operations_per_second'][str(kind).removeprefix('torch.')] = rate
        for setting in settings:
            result['runs'].append(benchmark.benchmark(setting, where, packages, rounds, compile_units, cuda_graph))
            advance(1)
    from rich.console import Console
    from rich.markdown import Markdown
    console = Console() if sys.stdout.isatty() else None
    text = benchmark.markdown(result)
    console.print(Markdown(text)) if console else print(text)
    print(f"{result['hardware']}; {', '.join(f'{k} {v}' for k, v in result['versions'].items())}")
    if to:
        print(f'wrote {", ".join(map(str, benchmark.write(result, to)))}')
