"""torch.compile by unit (compile_units=True) against the whole network, and not at all: first and later steps.

    python -m benchmarks.compilation
"""
import re
import sys
import tempfile
from functools import partial
from typing import Annotated, Dict, Tuple

import typer

from benchmarks.side_by_side import compare
from timm_preact.errors import COUNT, one_sentence_errors
from train.command import run_command

BATCH = 16
CASES = (('preact_resnet164', 'training', ('units', 'whole', 'none')),
         ('preact_resnet1001', 'inference', ('units', 'none')))
CALLS = ('first call', 'second call', 'later calls')

# One measurement, in a process of its own: seconds of the first call, the second, and the median of later ones
MEASURE = f'''
import statistics, sys, time, timm, torch, timm_preact
name, how, training = sys.argv[1], sys.argv[2], sys.argv[3] == 'training'
net = timm.create_model(name, compile_units=how == 'units').to(memory_format=torch.channels_last).train(training)
net = torch.compile(net) if how == 'whole' else net
x, y = torch.randn({BATCH}, 3, 32, 32).to(memory_format=torch.channels_last), torch.arange({BATCH}) % 10
seconds = []
for _ in range(12):
    start = time.perf_counter()
    with torch.set_grad_enabled(training):
        logits = net(x)
    if training:
        torch.nn.functional.cross_entropy(logits, y).backward()
    seconds.append(time.perf_counter() - start)
print('seconds', seconds[0], seconds[1], statistics.median(seconds[2:]))
'''


@one_sentence_errors
def main(rounds: Annotated[int, COUNT] = typer.Option(3, help='Measurements of each.')) -> None:
    """Measure training steps of preact_resnet164 and forward passes of preact_resnet1001, compiled and not.

    Batch 16, PyTorch's cache of compiled code empty before each.
    """
    measured: Dict[Tuple, float] = {}

    def measure(place: int, *arguments: str) -> float:
        if (arguments, place) not in measured:  # one process gives the first step and the later ones
            with tempfile.TemporaryDirectory() as folder:
                output = run_command([sys.executable, '-c', MEASURE, *arguments], TORCHINDUCTOR_CACHE_DIR=folder)
            values = re.search('^seconds (.*)$', output, re.MULTILINE)[1].split()
            measured.update({(arguments, i): float(value) for i, value in enumerate(values)})
        return measured.pop((arguments, place))

    contestants = {f'{name}, {task}, {how}: {call}': partial(measure, place, name, how, task)
                   for name, task, hows in CASES for how in hows for place, call in enumerate(CALLS)}
    compare('python -m benchmarks.compilation', 'compilation', 's', contestants, rounds, batch_size=BATCH)


if __name__ == '__main__':
    typer.run(main)
