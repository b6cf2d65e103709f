"""Training runs: the step, the checkpoint, and several runs at once on one device.

A step is launched from a few device tensors that the host fills in before it: where in the epoch's plan it stands, and
its learning rate. Everything else it needs lies on the device. So on a GPU the whole step (augmentation, forward,
backward, update) is captured once as a CUDA graph and replayed: the nets of the paper are a thousand small kernels a
step, and launching those one by one takes longer than computing them. Runs that train together take turns, a step each,
every one on its own stream: a GPU computes them side by side, a CPU one after the other, and each gets what it would
get alone.
"""
import csv
import fcntl
import io
import math
import os
import resource
import sys
import time
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Set

import torch
import torch.distributed as dist
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save
from timm.utils import ModelEmaV3

from timm_preact.data import ImageSet
from timm_preact.errors import UserError, check_device, create_model
from timm_preact.files import write_atomically, write_json
from timm_preact.provenance import find_commit, record
from timm_preact.weights import export_model
from train.batches import Batches, EpochPlan, channel_statistics, error_on
from train.figures import plot_run
from train.group import Group, crews_of
from train.places import ROOT
from train.recipe import Recipe, average_decay, complete_recipe, count_steps, lr_at, parameter_groups

__all__ = ['FolderTaken', 'Run', 'local_device', 'peak_memory', 'train_together']

EAGER_STEPS = 3  # before a capture: cuDNN chooses its algorithms, the allocator finds its sizes


class FolderTaken(UserError):
    """Another process trains in the folder."""


class Run:
    """One training run with all its state: what a checkpoint holds, and how a step changes it.

    Args:
        settings: `model`, `model_kwargs`, `seed`, `amp`, and `data`, the two sha256 of the images.
        recipe: How it is trained.
        train: Training images.
        test: Test images.
        output: Folder of the checkpoint, the log and the result, made if missing; one process at a time has it.
        device: Where it trains.
        compile_model: torch.compile the network.
        capture: Capture the step as a CUDA graph; on a GPU, in a run of one process.

    Attributes:
        state: 'running', 'finished', 'diverged' or 'cut'; `error` is the sentence that says why, where it needs one.
        step: Steps done, of `total`.
        history: A row an epoch: epoch, step, lr, train_loss, test_error, seconds, images_per_second.
        together: The most runs that trained beside it, itself included.
        joins: Whether it may train as a replica, in one launch with others.
        group: What takes its steps then; `model` is brought up to date when it is looked at.
        ways: By what it was trained: 'pytorch', its modules, or 'triton', the kernels for replicas.

    Raises:
        FolderTaken: Another process trains in `output`.
        UserError: The images, the batch and the network do not fit each other, or the checkpoint is another run's.
    """

    def __init__(self, settings: Dict[str, Any], recipe: Recipe, train: ImageSet, test: ImageSet, output: Path,
                 device: torch.device, compile_model: bool = False, capture: bool = True):
        self.settings, self.recipe, self.output, self.device = settings, recipe, output, device
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.steps_per_epoch = len(train.labels) // recipe.batch_size
        if self.steps_per_epoch == 0 or recipe.batch_size % self.world:
            raise UserError(f'batch size {recipe.batch_size} does not fit {len(train.labels)} images on {self.world} '
                            f'processes: choose a smaller one, or a multiple of the number of processes.')
        if train.classes != test.classes or train.images.shape[1:] != test.images.shape[1:]:
            raise UserError('training and test images differ in their classes or in their size: give two splits of one '
                            'data set.')
        if train.contains(test):
            raise UserError('every test image is a training image: give the test split, or the error says nothing.')
        self.total = count_steps(recipe, len(train.labels))
        if self.total < 1:
            raise UserError(f'{recipe.epochs} epochs are no step: train for longer.')
        self.share = recipe.batch_size // self.world
        self.state, self.error, self.together = 'running', None, 1
        self.joins = capture and not compile_model
        self.group: Optional[Group] = None
        self.ways: Set[str] = set()
        self.commit = find_commit(ROOT)  # what trains it, whatever the clone becomes meanwhile
        self.step = 0
        self.history: List[Dict[str, float]] = []
        self.seconds = 0.  # of this epoch, up to `since`, when the clock was last read
        self.lock = lock_folder(output) if self.rank == 0 else None
        try:
            prepare(device)
            self.make_model(train)
            self.place_data(train, test)
            self.make_step(compile_model, capture)
            self.resume()
        except BaseException:
            self.release()
            raise
        self.since = time.perf_counter()

    def make_model(self, train: ImageSet) -> None:
        """The network, its initial weights drawn from the seed."""
        name, kwargs = self.settings['model'], self.settings['model_kwargs']
        torch.manual_seed(self.settings['seed'])
        self.model = create_model(name, num_classes=len(train.classes), **kwargs)
        self.model.to(self.device, memory_format=torch.channels_last).train()

    def place_data(self, train: ImageSet, test: ImageSet) -> None:
        """All images on the device, and how they are normalised in the model's config."""
        mean, std = channel_statistics(train.images)
        pixel = self.recipe.mean == 'pixel'
        self.mean_image = torch.from_numpy(train.images.mean(0) / 255).float() if pixel else None
        std = [1., 1., 1.] if pixel else std
        self.describe(train, mean, std)
        mean = self.mean_image if pixel else torch.tensor(mean)
        self.train_batches, self.test_batches = (
            Batches(images, self.recipe, mean, torch.tensor(std), self.device) for images in (train, test))

    def make_step(self, compile_model: bool, capture: bool) -> None:
        """Everything that a step reads and changes on the device; it stays in its place, where a graph looks for it."""
        self.loss_sum = torch.zeros((), device=self.device)  # of the epoch's steps so far
        self.plan: Optional[EpochPlan] = None  # of the epoch
        self.place = torch.zeros((), dtype=torch.int64, device=self.device)  # in the plan, of the batch's first image
        self.places = torch.arange(self.share, device=self.device)  # of the others, from there
        self.lr = torch.zeros((), device=self.device)
        self.optimizer = torch.optim.SGD(
            parameter_groups(self.model, self.recipe), lr=self.lr, momentum=self.recipe.momentum,
            nesterov=self.recipe.nesterov, fused=True)
        for parameter in self.model.parameters():
            self.optimizer.state[parameter]['momentum_buffer'] = torch.zeros_like(parameter)
        self.forward = torch.compile(self.model) if compile_model else self.model
        if compile_model:
            torch._dynamo.config.cache_size_limit = 1000  # a program a network, however many this process trains
        if self.world > 1:
            self.forward = torch.nn.parallel.DistributedDataParallel(self.forward)
        on_gpu = self.device.type == 'cuda'
        self.stream = torch.cuda.Stream(self.device) if on_gpu and self.world == 1 else None
        self.capture = capture and self.stream is not None
        self.graph: Optional[torch.cuda.CUDAGraph] = None
        self.eager_steps = 0
        decay = average_decay(self.recipe, self.total)
        self.average = ModelEmaV3(self.model, decay) if decay else None
        self.draws = any(getattr(module, 'p', 0) or getattr(module, 'drop_prob', 0) for module in self.model.modules())
        if on_gpu:
            torch.cuda.synchronize(self.device)  # what the default stream made is there for the run's own

    def describe(self, data: ImageSet, mean: List[float], std: List[float]) -> None:
        """Let the model's config say what it is trained on."""
        cfg = self.model.pretrained_cfg
        if cfg.get('label_names') != data.classes:
            cfg.pop('tag', None)
        cfg.update(num_classes=len(data.classes), label_names=data.classes, mean=tuple(mean), std=tuple(std),
                   input_size=(3, *data.images.shape[1:3]))

    def on_stream(self) -> AbstractContextManager:
        if self.group is not None:
            return self.group.on_stream()
        return nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def make_plan(self) -> EpochPlan:
        """The plan of the epoch that the next step is in."""
        epoch = self.step // self.steps_per_epoch
        plan = EpochPlan.make(
            self.recipe, self.settings['seed'], epoch, self.train_batches.images.shape, self.device)
        self.plan = self.plan or plan
        for mine, drawn in zip(self.plan, plan, strict=True):
            mine.copy_(drawn)
        return self.plan

    def train_step(self) -> None:
        """Fill in what changes from step to step, then launch the step."""
        seed, position = self.settings['seed'], self.step % self.steps_per_epoch
        if self.plan is None or position == 0:
            self.make_plan()
        self.place.fill_(position * self.recipe.batch_size + self.rank * self.share)
        self.lr.fill_(lr_at(self.recipe, self.step, self.total))
        if not self.draws:
            self.launch()
        else:
            torch.manual_seed((seed * 1_000_003 + self.step) * 1_000 + self.rank)
            with alone_on(self.device) if self.capture else nullcontext():
                self.launch()
        self.step += 1

    def launch(self) -> None:
        """Compute the step: kernel by kernel, or after a few of those by replaying their graph."""
        if self.capture and self.graph is None and self.eager_steps == EAGER_STEPS:
            self.optimizer.zero_grad()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, stream=self.stream):
                self.compute()
            self.graph = graph
        if self.graph is None:
            self.compute()
            self.eager_steps += 1
        else:
            self.graph.replay()

    def compute(self) -> None:
        """Forward, backward and update on this process's share of the batch, from device tensors alone."""
        x, y = self.train_batches.train(self.plan, self.place + self.places)
        self.optimizer.zero_grad()
        size = self.recipe.bn_group or self.share
        for part, target in zip(x.split(size), y.split(size), strict=True):
            with torch.autocast(self.device.type, torch.bfloat16) if self.settings['amp'] else nullcontext():
                logits = self.forward(part)
            loss = F.cross_entropy(logits.float(), target, label_smoothing=self.recipe.label_smoothing)
            loss = loss * (len(part) / self.share)
            loss.backward()
            self.loss_sum += loss.detach()
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.model)

    def advance(self, checkpoint_every: int = 0) -> None:
        """One step, and what is due after it."""
        with self.on_stream():
            self.train_step()
        self.ways.add('pytorch')
        self.after_step(checkpoint_every)

    def after_step(self, checkpoint_every: int = 0) -> None:
        """A look at the loss, the epoch's end, a checkpoint."""
        with self.on_stream():
            done = (self.step - 1) % self.steps_per_epoch + 1
            ends = done == self.steps_per_epoch or self.step == self.total
            if ends or done % 50 == 0:
                loss = self.mean_loss(done)
                if not math.isfinite(loss):
                    self.state = 'diverged'
                    self.error = (f'the loss is {loss} at step {self.step}: the run diverged; lower the learning rate '
                                  f'or change the seed.')
                    return
            if ends:
                self.end_epoch(done, loss)
            if ends or (checkpoint_every and self.step % checkpoint_every == 0):
                self.save()
        if self.step == self.total:
            self.state = 'finished'

    def mean_loss(self, steps: int) -> float:
        """Of the last `steps` steps of the epoch over all processes; waits for the device."""
        loss = self.loss_sum / steps
        if self.world > 1:
            dist.all_reduce(loss)
            loss /= self.world
        return loss.item()

    def read_clock(self) -> None:
        now = time.perf_counter()
        self.seconds += now - self.since
        self.since = now

    def end_epoch(self, steps: int, loss: float) -> None:
        """Measure, log, and start the next epoch's sums."""
        self.read_clock()
        if self.group is None or self.step == self.total:
            self.bring_up_to_date()
            test_error = error_on(self.kept, self.test_batches)
        else:
            test_error = self.group.test_error(self)
        row = dict(epoch=len(self.history) + 1, step=self.step, lr=lr_at(self.recipe, self.step - 1, self.total),
                   train_loss=loss, test_error=test_error,
                   seconds=round(self.seconds, 2),
                   images_per_second=round(steps * self.recipe.batch_size / self.seconds, 1))
        self.history.append(row)
        self.loss_sum.zero_()
        self.seconds, self.since = 0., time.perf_counter()
        if self.rank == 0:
            text = io.StringIO()
            writer = csv.DictWriter(text, row, lineterminator='\n')
            writer.writeheader()
            writer.writerows(self.history)
            write_atomically(self.output / 'log.csv', text.getvalue().encode())

    @property
    def kept(self) -> torch.nn.Module:
        """The network that is tested and written: with the averaged weights, if the recipe averages them."""
        return self.model if self.average is None else self.average.module

    def bring_up_to_date(self) -> None:
        """`model`, its average and the momenta, if something else trains them."""
        if self.group is not None:
            self.group.bring_up_to_date(self)

    def save(self) -> None:
        """Write everything that the rest of the run depends on."""
        self.read_clock()
        self.bring_up_to_date()
        if self.rank == 0:
            buffer = io.BytesIO()
            with self.on_stream():
                torch.save(dict(
                    settings=self.settings, recipe=asdict(self.recipe), step=self.step, history=self.history,
                    seconds=self.seconds, loss_sum=self.loss_sum, model=self.model.state_dict(),
                    momentum=self.momentum(), ways=sorted(self.ways),
                    average=None if self.average is None else self.average.module.state_dict(),
                ), buffer)
            write_atomically(self.output / 'checkpoint.pt', buffer.getvalue())
        self.since = time.perf_counter()

    def momentum(self) -> Dict[str, torch.Tensor]:
        state = self.optimizer.state
        return {name: state[parameter]['momentum_buffer'] for name, parameter in self.model.named_parameters()}

    def resume(self) -> None:
        """Take up the checkpoint in the output folder, if there is one."""
        path = self.output / 'checkpoint.pt'
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location='cpu', weights_only=True)
            settings, recipe, step, history, seconds, loss_sum, model, momentum = (state[key] for key in (
                'settings', 'recipe', 'step', 'history', 'seconds', 'loss_sum', 'model', 'momentum'))
        except Exception as e:  # torch and zipfile raise a dozen classes for a file that is no checkpoint
            raise UserError(f'{path} is no checkpoint of train.cifar: remove it or choose another folder.') from e
        if settings != self.settings or complete_recipe(recipe) != asdict(self.recipe):
            raise UserError(f'{path} belongs to a run with other settings: choose another folder or remove it.')
        self.step, self.history, self.seconds = step, history, seconds
        self.ways = set(state.get('ways', ['pytorch'] if step else []))  # the modules, before there were kernels
        self.loss_sum.copy_(loss_sum)
        self.model.load_state_dict(model)
        if self.average is not None:
            self.average.module.load_state_dict(state['average'])
        for name, buffer in self.momentum().items():
            buffer.copy_(momentum[name])
        if self.step == self.total:
            self.state = 'finished'

    def result(self, command: str, **facts: Any) -> Dict[str, Any]:
        """What a result file holds: settings, outcome, curve, and what it ran on.

        Args:
            command: What trains it.
            facts: What else it should say, first.
        """
        last = self.history[-1] if self.history else {}
        return dict(
            **facts,
            **dict(record(command, self.device, seed=self.settings['seed'], clone=ROOT), commit=self.commit),
            **{key: self.settings[key] for key in ('model', 'model_kwargs')},
            state=self.state,
            error=self.error,
            recipe=asdict(self.recipe),
            iterations=self.total,
            step=self.step,
            test_error=last.get('test_error') if self.state == 'finished' else None,
            train_loss=last.get('train_loss'),
            images_per_second=last.get('images_per_second'),
            train_seconds=round(sum(row['seconds'] for row in self.history), 1),
            processes=self.world,
            together=self.together,
            precision='float32' if not self.settings['amp'] else (
                'bfloat16 activations' if 'triton' in self.ways else 'bfloat16 autocast'),
            trained_by=sorted(self.ways),
            peak_memory_bytes=peak_memory(self.device),
            data=dict(zip(('train_sha256', 'test_sha256'), self.settings['data'], strict=True),
                      classes=self.model.num_classes),
            curve=self.history,
        )

    def finish(self, **facts: Any) -> Dict[str, Any]:
        """Write the weights, the result and the curves; returns the result."""
        if self.mean_image is not None:
            write_atomically(self.output / 'mean_image.safetensors', save({'mean_image': self.mean_image}))
        sha256 = export_model(self.kept, self.output, self.settings['model_kwargs'])
        result = self.result(**facts, weights_sha256=sha256)
        write_json(self.output / 'run.json', result)
        plot_run(result, self.output / 'curves.png')
        return result

    def close(self) -> None:
        """Let go of the folder, and of the graph and the gradients."""
        self.graph = None
        self.optimizer.zero_grad()
        self.release()

    def release(self) -> None:
        if self.lock is not None:
            self.lock.close()


def lock_folder(folder: Path) -> io.IOBase:
    """Make the folder and take it; it is free again when the returned file is closed or the process ends, however.

    Raises:
        FolderTaken: Another process has it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = open(folder / '.lock', 'w')
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        lock.close()
        raise FolderTaken(f'another process trains in {folder}: wait for it, or choose another folder.') from e
    return lock


def train_together(runs: Iterable[Run], together: int = 1, checkpoint_every: int = 0,
                   deadline: float = math.inf) -> Iterator[Run]:
    """Train runs, several at a time, a step of each in turn.

    Args:
        runs: Taken up one by one as there is room, so that they may be made late.
        together: How many train at a time.
        checkpoint_every: Steps between the checkpoints of a run; 0 for the end of each epoch alone.
        deadline: In time.monotonic's seconds; what is not done by then is saved and given back in the state 'cut'.

    Yields:
        Each run as it ends: 'finished', 'diverged' or 'cut'. One that does not fit into the device's memory is 'cut'
        with an `error`, and goes on from its last checkpoint when it is taken up.
    """
    waiting, going, crews = iter(runs), [], None
    with RunProgress() as progress:
        while True:
            while (len(going) < together and time.monotonic() < deadline
                   and (run := next(waiting, None)) is not None):
                if not going and run.stream is not None:
                    torch.cuda.reset_peak_memory_stats(run.device)
                going.append(run)
                crews = None
                progress.add(run)
            if not going:
                return
            for run in going:
                run.together = max(run.together, len(going))
            if time.monotonic() >= deadline:
                for run in going:
                    if run.state == 'running':
                        run.save()
                        run.state = 'cut'
            if crews is None:
                crews = crews_of([run for run in going if run.state == 'running'])
            for crew in crews:
                members = [run for run in (crew.runs if isinstance(crew, Group) else [crew]) if run.state == 'running']
                try:
                    if members:
                        crew.advance(checkpoint_every)
                except torch.OutOfMemoryError:
                    for run in members:
                        run.state, run.error = 'cut', (
                            f'{run.output.name} does not fit into memory beside {len(going) - 1} others: train fewer '
                            f'together.' if len(going) > 1 else
                            f'{run.output.name} does not fit into memory: choose a smaller batch, --bn-group, or '
                            f"--model-kwargs recompute_norms=True.")
                for run in members:
                    progress.show(run)
            if any(run.state != 'running' for run in going):
                crews = None
                for group in {run.group for run in going if run.group is not None}:
                    group.part()
            ended, going = [run for run in going if run.state != 'running'], [
                run for run in going if run.state == 'running']
            while ended:
                run = ended.pop(0)
                progress.remove(run)
                yield run
                del run


class RunProgress:
    """How far runs are: a bar each on a terminal, a line an epoch elsewhere, nothing on processes but the first."""

    def __init__(self):
        self.lines = not sys.stderr.isatty()
        self.bars = Progress(
            TextColumn('{task.description}', markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=Console(stderr=True), disable=self.lines or (dist.is_initialized() and dist.get_rank() != 0))
        self.tasks: Dict[Run, int] = {}
        self.epochs: Dict[Run, int] = {}

    def __enter__(self) -> 'RunProgress':
        if not self.bars.disable:
            self.bars.start()
        return self

    def __exit__(self, *_) -> None:
        if not self.bars.disable:
            self.bars.stop()

    def add(self, run: Run) -> None:
        if run.rank == 0:
            self.tasks[run] = self.bars.add_task(run.output.name, total=run.total, completed=run.step)
            self.epochs[run] = len(run.history)

    def remove(self, run: Run) -> None:
        if run.rank == 0:
            self.bars.remove_task(self.tasks.pop(run))
            del self.epochs[run]

    def show(self, run: Run) -> None:
        if run.rank != 0:
            return
        self.bars.update(self.tasks[run], completed=run.step)
        if len(run.history) > self.epochs[run]:
            self.epochs[run] = len(run.history)
            last = run.history[-1]
            error = f"test error {last['test_error']:.2f} %"
            self.bars.update(self.tasks[run], description=f'{run.output.name}: {error}')
            if self.lines:
                print(f"{run.output.name}, epoch {last['epoch']}: loss {last['train_loss']:.4f}, {error}, "
                      f"{last['images_per_second']:.0f} images/s", flush=True)


def local_device(name: str) -> torch.device:
    """The device that --device names; of 'cuda', a rank of torchrun takes the GPU of its own.

    Raises:
        UserError: There is none.
    """
    rank = os.environ.get('LOCAL_RANK')
    device = check_device(f'cuda:{rank}' if name == 'cuda' and rank else name)
    if device.type == 'cuda':
        torch.cuda.set_device(device)
    return device


def prepare(device: torch.device) -> None:
    """Settings of the process: cuDNN tries its algorithms, and float32 is float32."""
    if device.type == 'cuda':
        torch.backends.cudnn.benchmark = True
        torch.backends.cudnn.allow_tf32 = False


@contextmanager
def alone_on(device: torch.device) -> Iterator[None]:
    """Nothing else runs on the device: replayed graphs read the generator's state there, one for all streams."""
    torch.cuda.synchronize(device)
    yield
    torch.cuda.synchronize(device)


def peak_memory(device: torch.device) -> int:
    """Bytes: of the tensors on a GPU, of the whole process on a CPU."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
