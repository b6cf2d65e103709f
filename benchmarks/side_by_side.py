"""Contestants side by side in one run: what the scripts of this folder print and write."""
import statistics
from typing import Any, Callable, Dict, Sequence

import torch
from rich.console import Console
from rich.table import Table

from timm_preact.benchmark import alternate
from timm_preact.files import write_json
from train import places
from train.command import record_command

__all__ = ['compare']


def compare(
        program: str,
        name: str,
        unit: str,
        contestants: Dict[str, Callable[[], float]],
        rounds: int,
        device: torch.device = torch.device('cpu'),
        packages: Sequence[str] = (),
        **facts: Any,
) -> Dict[str, float]:
    """Run every contestant once a round, in turn; print medians and ratios, and write every round.

    Args:
        program: The script, 'python -m benchmarks.NAME'.
        name: Of the result file, benchmarks/results/benchmark_NAME.json.
        unit: Of what a contestant returns; 'images/s' or 's'.
        contestants: What is measured, ours first.
        rounds: Measurements of each.
        device: Where.
        packages: Whose versions matter beside torch and timm.
        facts: What else the result should say; looked at after the measurements.

    Returns:
        The medians.
    """
    measured = alternate(contestants, rounds)
    medians = {contestant: statistics.median(values) for contestant, values in measured.items()}
    ours = next(iter(medians.values()))
    table = Table('', f'median of {rounds}, {unit}', 'all rounds', 'ours / this')
    for contestant, values in measured.items():
        table.add_row(
            contestant, f'{medians[contestant]:.3g}', ' '.join(f'{v:.3g}' for v in values),
            f'{ours / medians[contestant]:.2f}')
    Console(width=120).print(table)
    places.BENCHMARKS.mkdir(exist_ok=True)
    write_json(places.BENCHMARKS / f'benchmark_{name}.json', dict(
        record_command(program, device, *packages), unit=unit, rounds=measured, medians=medians, **facts))
    return medians
