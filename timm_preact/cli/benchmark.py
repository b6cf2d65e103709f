"""Our networks beside other people's: benchmark."""
import sys
from pathlib import Path
from typing import Annotated, List, Optional

import typer

from ..errors import COUNT, check_device
from .options import PATH, Device, ImgSize
from .screen import show_progress

__all__ = ['run_benchmark']


def run_benchmark(
        models: Annotated[List[str], typer.Argument(help='Registered names.')],
        task: Annotated[str, typer.Option(help='inference or training.')] = 'inference',
        against: Annotated[str, typer.Option(
            help='Packages to measure beside us.')] = 'timm,pytorchcv,torchvision',
        batch_size: Annotated[List[int], COUNT] = typer.Option([64], help='Images a call; may be repeated.'),
        img_size: ImgSize = None,
        dtype: List[str] = typer.Option(['float32'], help='float32, bfloat16 or float16; may be repeated.'),
        device: Device = 'cpu',
        threads: Annotated[Optional[int], COUNT, typer.Option(help='Threads of the CPU; all if not given.')] = None,
        rounds: Annotated[int, COUNT, typer.Option(help='Measurements of each.')] = 5,
        compile_units: Annotated[bool, typer.Option(
            '--compile', help='Measure ours with compiled units too.')] = False,
        cuda_graph: Annotated[bool, typer.Option(
            '--cuda-graph', help='Measure ours as a CUDA graph too.')] = False,
        to: Annotated[Optional[Path], typer.Option(**PATH, help='Write PATH.json and PATH.png.')] = None,
) -> None:
    """Measure our networks beside other people's on this machine: images a second and memory.

    Example: `timm-preact benchmark preact_resnet110_pcv preact_resnet152 --batch-size 4 --dtype bfloat16`
    """
    import torch

    from .. import benchmark
    from ..provenance import quote_command, record
    where = check_device(device)
    if threads:
        torch.set_num_threads(threads)
    settings = benchmark.plan_settings(models, task, dtype, batch_size, img_size)
    packages = benchmark.select_installed(against.split(','))
    with show_progress(len(settings), 'benchmark') as advance:
        found = benchmark.benchmark_all(settings, where, packages, rounds, compile_units, cuda_graph, advance)
    origin = record(quote_command('timm-preact'), where, *(package for package in packages if package != 'timm'))
    result = dict(origin, **found)
    from rich.console import Console
    from rich.markdown import Markdown
    console = Console() if sys.stdout.isatty() else None
    text = benchmark.format_tables(result)
    console.print(Markdown(text)) if console else print(text)
    print(f"{result['hardware']}; {', '.join(f'{k} {v}' for k, v in result['versions'].items())}")
    if to:
        print(f'wrote {", ".join(map(str, benchmark.write(result, to)))}')
