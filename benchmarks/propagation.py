"""timm_preact.propagation.measure of preact_resnet1001 at batch 32, beside the gradients of one training step.

    python -m benchmarks.propagation
"""
import re
import sys
from functools import partial
from typing import Annotated, Dict

import typer

from benchmarks.side_by_side import compare
from timm_preact.errors import COUNT, one_sentence_errors
from train.command import run_command

MODEL, BATCH = 'preact_resnet1001', 32

# One measurement, in a process of its own: seconds, and the most memory that the process ever had
MEASURE = f'''
import resource, sys, time, timm, torch, timm_preact
from timm_preact.data import load_sample
from timm_preact.evaluation import Images, eval_transform
from timm_preact.propagation import measure
model = timm.create_model('{MODEL}').train()
x, y = Images(load_sample(), eval_transform(model)).spread({BATCH})
start = time.perf_counter()
if sys.argv[1] == 'propagation.measure':
    measure(model, x, y)
else:
    torch.nn.functional.cross_entropy(model(x), y).backward()
print('measured', time.perf_counter() - start, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)
'''


@one_sentence_errors
def main(rounds: Annotated[int, COUNT] = typer.Option(3, help='Measurements of each.')) -> None:
    """Measure seconds and the peak memory of both."""
    peaks: Dict[str, int] = {}

    def measure(contestant: str) -> float:
        output = run_command([sys.executable, '-c', MEASURE, contestant])
        elapsed, memory = re.search('^measured (.*) (.*)$', output, re.MULTILINE).groups()
        peaks[contestant] = max(peaks.get(contestant, 0), int(memory))
        return float(elapsed)

    contestants = {name: partial(measure, name) for name in ('propagation.measure', 'forward and backward')}
    compare('python -m benchmarks.propagation', 'propagation', 's', contestants, rounds, model=MODEL, batch_size=BATCH,
            peak_memory_bytes=peaks)


if __name__ == '__main__':
    typer.run(main)
