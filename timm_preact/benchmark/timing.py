"""One clock for every measurement: how long a call takes, and contestants that take turns.

Machines are noisy. Contestants run once a round, in turn, each round beginning with another one, so that they share the
noise; what is reported is the median of the rounds.
"""
import time
from typing import Any, Callable, Dict, List, Optional

import torch

__all__ = ['alternate', 'images_per_second', 'seconds_per_call', 'synchronize']

SECONDS = 0.5  # that a measurement takes at least


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was given; a CPU always has."""
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def seconds_per_call(
        call: Callable[[], Any],
        device: torch.device = torch.device('cpu'),
        calls: Optional[int] = None,
        warm_up: int = 0,
) -> float:
    """Measure the seconds of one call, on average.

    Args:
        call: What is measured.
        device: Where it runs.
        calls: How many are measured; as many as take `SECONDS` if None.
        warm_up: Calls before those.
    """
    for _ in range(warm_up):
        call()
    synchronize(device)
    start, done = time.perf_counter(), 0
    while True:
        call()
        done += 1
        if done == calls or (calls is None and time.perf_counter() - start >= SECONDS):
            synchronize(device)
            return (time.perf_counter() - start) / done


def images_per_second(
        step: Callable[[], Any],
        images: int,
        device: torch.device,
        calls: Optional[int] = None,
        warm_up: int = 0,
) -> float:
    """Measure the rate of a step that takes `images` images; the other arguments are those of `seconds_per_call`."""
    return images / seconds_per_call(step, device, calls, warm_up)


def alternate(measures: Dict[str, Callable[[], float]], rounds: int) -> Dict[str, List[float]]:
    """Call each measure once a round, in turn; each round begins with the next one.

    Args:
        measures: By name, what measures once.
        rounds: Measurements of each.

    Returns:
        What each measured, by name, in the order of the rounds.
    """
    names, measured = list(measures), {name: [] for name in measures}
    for i in range(rounds):
        first = i % len(names)
        for name in names[first:] + names[:first]:
            measured[name].append(measures[name]())
    return measured
