"""Runs of equal shape that train as one: each keeps its seed, its plan, its learning rate, its checkpoint and its end.

A `Group` stands in for its runs' steps; everything else of a run stays its own. What it trains lies in `Replicas`; a
run's network is brought up to date whenever somebody wants to see it.
"""
import sys
import warnings
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Callable, List, Optional, Tuple, Union

import torch

from timm_preact.kernels import has_triton
from timm_preact.layers import Unfit
from train.batches import EpochPlan
from train.recipe import lr_at
from train.replicas import Replicas

if TYPE_CHECKING:
    from train.run import Run

__all__ = ['Group', 'crews_of']


class Group:
    """Runs that train as replicas, a step of all at once.

    Args:
        runs: With the same images, recipe and network, but for its values.

    Raises:
        Unfit: The kernels do not take the network, the images or the batch.
    """

    def __init__(self, runs: List['Run']):
        first = runs[0]
        self.runs, self.device = runs, first.device
        self.graph: Optional[torch.cuda.CUDAGraph] = None
        self.test_graph: Optional[torch.cuda.CUDAGraph] = None
        self.stream = torch.cuda.Stream(self.device, priority=-1) if self.device.type == 'cuda' else None
        dtype = torch.bfloat16 if first.settings['amp'] else torch.float32
        if self.stream is not None:
            torch.cuda.synchronize(self.device)  # what other streams made of the runs is there for this one
        with self.on_stream():
            self.net = Replicas([run.model for run in runs], first.recipe, first.train_batches, first.test_batches,
                                self.device, dtype)
            if self.stream is not None:
                self.capture()
            for r, run in enumerate(runs):
                self.net.put(r, run.model, run.kept, run.momentum())
                self.net.loss_sum[r] = run.loss_sum
                run.loss_sum = self.net.loss_sum[r]
                if run.plan is not None:
                    self.place_plan(r, run.plan)
            self.net.expand()()
        for run in runs:
            run.group = self
        self.found: Optional[Tuple[List[int], List[float]]] = None

    def on_stream(self) -> AbstractContextManager:
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def capture(self) -> None:
        """Compile the kernels, run each once on nothing, and capture a step and a test as CUDA graphs."""
        self.net.compile()
        self.graph, self.test_graph = (self.capture_graph(launch) for launch in (self.net.step, self.net.test_batch))
        self.net.reset()

    def capture_graph(self, launch: Callable[[], None]) -> torch.cuda.CUDAGraph:
        launch()
        torch.cuda.synchronize(self.device)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            launch()
        return graph

    def place_plan(self, r: int, plan: EpochPlan) -> None:
        for i, drawn in enumerate(plan):
            self.net.plan[i, r].copy_(drawn)

    def advance(self, checkpoint_every: int = 0) -> None:
        """One step of every run, and what is due after it."""
        with self.on_stream():
            self.found = None
            for r, run in enumerate(self.runs):
                position = run.step % run.steps_per_epoch
                if run.plan is None or position == 0:
                    self.place_plan(r, run.make_plan())
                self.net.places[r].fill_(position * run.recipe.batch_size)
                self.net.rates[r].fill_(lr_at(run.recipe, run.step, run.total))
                if run.draws:
                    self.net.seeds[r].fill_((run.settings['seed'] * 1_000_003 + run.step) % 2 ** 31)
            if self.graph is None:
                self.net.step()
            else:
                self.graph.replay()
            for run in self.runs:
                run.step += 1
        for run in self.runs:
            run.record_step('triton')
            run.after_step(checkpoint_every)

    def bring_up_to_date(self, run: 'Run') -> None:
        """The run's own network, with its momenta."""
        with self.on_stream():
            self.net.get(self.runs.index(run), run.model, run.kept, run.momentum())
            for model in {run.model, run.kept}:
                for name, buffer in model.named_buffers():
                    if name.endswith('num_batches_tracked'):
                        buffer.fill_(run.step * self.net.G)

    def test_error(self, run: 'Run') -> float:
        """Top-1 in percent, in the precision of the training; measured for all runs when one asks for it."""
        steps = [run.step for run in self.runs]
        if self.found is None or self.found[0] != steps:
            with self.on_stream():
                self.found = steps, self.net.errors(self.test_graph and self.test_graph.replay).tolist()
        return self.found[1][self.runs.index(run)]

    def part(self) -> None:
        """Let every run go on by itself, or in another group."""
        for run in self.runs:
            self.bring_up_to_date(run)
            with self.on_stream():
                run.loss_sum = run.loss_sum.clone()
            run.group = None
        if self.stream is not None:
            torch.cuda.synchronize(self.device)
        self.graph = self.test_graph = None


def kind_of(run: 'Run') -> Tuple[Any, ...]:
    """What runs must share to be replicas; a network's text says all but the factors of its merges."""
    return repr(run.model), run.recipe, tuple(run.settings['data']), run.settings['amp'], run.device


def may_join(run: 'Run') -> bool:
    """Whether the kernels are there for a run that nobody asked to train otherwise, in the type they are for."""
    return (run.joins and run.world == 1 and has_triton(run.device)
            and (run.settings['amp'] or run.device.type == 'cpu'))


def crews_of(runs: List['Run']) -> List[Union['Run', Group]]:
    """Who takes steps for these runs: a group for those of a kind, and by themselves those that the kernels don't take.

    Runs for whose replicas there is too little memory end: 'cut', with a sentence that says how many fit.
    """
    for group in {run.group for run in runs if run.group is not None}:
        group.part()
    alone = [run for run in runs if not may_join(run)]
    kinds = {}
    for run in runs:
        if run not in alone:
            kinds.setdefault(kind_of(run), []).append(run)
    crews: List[Union[Run, Group]] = list(alone)
    for members in kinds.values():
        crews += group_of(members)
    return crews


def group_of(runs: List['Run']) -> List[Union['Run', Group]]:
    for count in range(len(runs), 0, -1):
        if runs[0].device.type == 'cuda':
            torch.cuda.empty_cache()  # of a group that has parted, or did not fit
        try:
            group = Group(runs[:count])
        except torch.OutOfMemoryError:
            continue
        except Unfit as e:
            return by_modules(runs, str(e))
        except Exception as e:  # Triton's, its compiler's and the driver's errors share no class
            warnings.warn(f"Triton's kernels do not run here ({type(e).__name__}: {' '.join(str(e).split())[:200]}).",
                          RuntimeWarning, stacklevel=2)
            return by_modules(runs, 'its kernels do not run')
        for run in runs[count:]:
            run.state, run.error = 'cut', (
                f'{run.output.name} does not fit into memory beside {count} others: train {count} together.')
        return [group]
    return by_modules(runs, 'its replica does not fit into memory')


def by_modules(runs: List['Run'], reason: str) -> List['Run']:
    for run in runs:
        print(f"{run.output.name} trains by PyTorch's modules: {reason}.", file=sys.stderr)
        run.joins = False
    return list(runs)
