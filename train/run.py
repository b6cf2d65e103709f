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
import functools
import hashlib
import io
import json
import math
import os
import resource
import sys
import time
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, Dict, Iterable, Iterator, List, Optional, Sequence, Set, Tuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save
from timm.utils import ModelEmaV3

from timm_preact.data import ImageSet
from timm_preact.errors import ArgumentError, Range, UserError, check_device, check_model_args, create_model
from timm_preact.files import write_atomically, write_json
from timm_preact.provenance import record
from timm_preact.weights import export_model
from train.batches import Batches, EpochPlan, channel_statistics, error_on
from train.figures import plot_run
from train.group import Group, crews_of
from train.places import ROOT
from train.recipe import Recipe, average_decay, complete_recipe, count_steps, lr_at, parameter_groups

__all__ = ['ALLOW_CHANGES', 'FolderTaken', 'Run', 'check_pretrained', 'local_device', 'peak_memory', 'read_checkpoint',
           'train_together']

EAGER_STEPS = 3  # before a capture: cuDNN chooses its algorithms, the allocator finds its sizes
# Fields of a session that change the result. A run is continued with equal ones, unless changes are allowed.
CONDITIONS = ('processes', 'bn_group', 'amp', 'device', 'compile', 'capture')
ALLOW_CHANGES = ('Continue although processes, BatchNorm groups, number type, device, --compile or --capture differ '
                 'from the checkpoint; run.json records each part.')


class FolderTaken(UserError):
    """Another process trains in the folder."""


class Run:
    """One training run with all its state: what a checkpoint holds, and how a step changes it.

    Args:
        settings: `model`, `model_kwargs`, `seed`, `amp`, `data`, the two sha256 of the images, and `pretrained`, the
            name with tag of the weights to fine-tune from, False by default.
        recipe: How it is trained.
        train: Training images.
        test: Test images.
        output: Folder of the checkpoint, the log and the result, made if missing; one process at a time has it.
        device: Where it trains.
        compile_model: torch.compile the network.
        capture: Capture the step as a CUDA graph; on a GPU, in a run of one process.
        command: The command that trains it, for the record.
        allow_changes: Continue a checkpoint although processes, BatchNorm groups, number type, device, compilation or
            capture differ from those that trained it.

    Attributes:
        state: 'running', 'finished', 'diverged' or 'cut'; `error` is the sentence that says why, where it needs one.
        step: Steps done, of `total`.
        history: A row an epoch: epoch, step, lr, train_loss, test_error, seconds, images_per_second.
        together: The most runs that trained beside it, itself included.
        joins: Whether it may train as a replica, in one launch with others.
        group: What takes its steps then; `model` is brought up to date when it is looked at.
        process: What a session records of this process: `command`, `hardware`, `environment`, `versions`, `commit`,
            `trainer_sha256`, and the `CONDITIONS`. `bn_group` is the number of images that share BatchNorm statistics.
        sessions: A dict for each process that trained steps, and for each backend of it: `first_step`, counted from 0,
            `process`, `trained_by` (its backend: 'pytorch', the modules, or 'triton', the kernels for replicas),
            `precision`, `together` and `peak_memory_bytes`.
        session: The entry of this process; None before its first step.

    Raises:
        FolderTaken: Another process trains in `output`.
        UserError: The images, the batch and the network do not fit each other, or the checkpoint belongs to another
            run or to other conditions.
    """

    def __init__(self, settings: Dict[str, Any], recipe: Recipe, train: ImageSet, test: ImageSet, output: Path,
                 device: torch.device, compile_model: bool = False, capture: bool = True, command: str = '',
                 allow_changes: bool = False):
        self.settings = {'pretrained': False, **settings, 'classes': list(train.classes)}
        self.recipe, self.output, self.device = recipe, output, device
        check_model_args(self.settings['model_kwargs'])
        check_pretrained(self.settings, recipe)
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
        side = max(*train.images.shape[1:3], Recipe.translate)
        for name in ('translate', 'cutout'):
            Range(most=side).check(name, getattr(recipe, name))
        self.total = count_steps(recipe, len(train.labels))
        if self.total < 1:
            raise UserError(f'{recipe.epochs} epochs are less than one step. Increase --epochs.')
        self.share = recipe.batch_size // self.world
        self.bn_group = recipe.bn_group or self.share
        if self.share % self.bn_group:
            raise ArgumentError(
                'bn_group', f'must divide the batch of a process ({self.share} images), got {self.bn_group}.')
        check_network(self.settings['model'], json.dumps(self.settings['model_kwargs']), len(train.classes),
                      self.bn_group, train.images.shape[1:3])
        self.state, self.error, self.together = 'running', None, 1
        self.joins = capture and not compile_model
        self.group: Optional[Group] = None
        self.sessions: List[Dict[str, Any]] = []
        self.session: Optional[Dict[str, Any]] = None
        self.step = 0
        self.history: List[Dict[str, float]] = []
        self.seconds = 0.  # of this epoch, up to `since`, when the clock was last read
        self.lock = lock_folder(output) if self.rank == 0 else None
        try:
            prepare(device)
            self.make_model(train)
            self.place_data(train, test)
            self.make_step(compile_model, capture)
            self.process = dict(
                record(command, device, clone=ROOT), trainer_sha256=trainer_sha256(), processes=self.world,
                bn_group=self.bn_group, amp=self.settings['amp'], device=device.type, compile=compile_model,
                capture=None if self.stream is None else self.capture)
            self.resume(allow_changes)
        except BaseException:
            self.release()
            raise
        self.since = time.perf_counter()

    def make_model(self, train: ImageSet) -> None:
        """Create the network, initialised from the seed, or with pretrained weights if no checkpoint replaces them."""
        pretrained = self.settings['pretrained']
        torch.manual_seed(self.settings['seed'])
        self.model = create_model(
            pretrained or self.settings['model'], num_classes=len(train.classes), **self.settings['model_kwargs'],
            pretrained=bool(pretrained) and not (self.output / 'checkpoint.pt').exists())
        self.model.to(self.device, memory_format=torch.channels_last).train()

    def place_data(self, train: ImageSet, test: ImageSet) -> None:
        """All images on the device, and how they are normalised in the model's config."""
        cfg = self.model.pretrained_cfg
        mean, std = (cfg['mean'], cfg['std']) if self.settings['pretrained'] else channel_statistics(train.images)
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
        """Set in the model's config what it is trained on; it is tested on whole images of the same size."""
        cfg = self.model.pretrained_cfg
        if cfg.get('label_names') != data.classes:
            cfg.pop('tag', None)
        for key in ('test_input_size', 'test_crop_pct'):
            cfg.pop(key, None)
        cfg.update(num_classes=len(data.classes), label_names=data.classes, mean=tuple(mean), std=tuple(std),
                   input_size=(3, *data.images.shape[1:3]), crop_pct=1.0)

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
        for part, target in zip(x.split(self.bn_group), y.split(self.bn_group), strict=True):
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
        self.record_step('pytorch')
        self.after_step(checkpoint_every)

    def record_step(self, backend: str) -> None:
        """Add an entry to `sessions` after the first step of this process, or of another backend."""
        if self.session is None or self.session['trained_by'] != [backend]:
            self.session = dict(first_step=self.step - 1, **self.process, trained_by=[backend],
                                precision=precision_of(self.settings['amp'], [backend]))
            self.sessions.append(self.session)

    def update_session(self) -> None:
        """Set what changes while this process trains."""
        if self.session is not None:
            self.session.update(together=self.together, peak_memory_bytes=peak_memory(self.device))

    @property
    def ways(self) -> Set[str]:
        """The backends that trained it."""
        return {backend for session in self.sessions for backend in session['trained_by']}

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
        self.update_session()
        if self.rank == 0:
            buffer = io.BytesIO()
            with self.on_stream():
                torch.save(dict(
                    settings=self.settings, recipe=asdict(self.recipe), step=self.step, history=self.history,
                    seconds=self.seconds, loss_sum=self.loss_sum, model=self.model.state_dict(),
                    momentum=self.momentum(), sessions=self.sessions,
                    average=None if self.average is None else self.average.module.state_dict(),
                ), buffer)
            write_atomically(self.output / 'checkpoint.pt', buffer.getvalue())
        self.since = time.perf_counter()

    def momentum(self) -> Dict[str, torch.Tensor]:
        state = self.optimizer.state
        return {name: state[parameter]['momentum_buffer'] for name, parameter in self.model.named_parameters()}

    def resume(self, allow_changes: bool = False) -> None:
        """Continue from the checkpoint in the output folder, if there is one. Every process of a run compares it.

        Raises:
            UserError: It belongs to another run, or to other conditions, which are not allowed to change.
        """
        state = read_checkpoint(self.output)
        if state is None:
            if (self.output / 'run.json').exists():
                raise ArgumentError('output', f'{self.output} holds a finished run (run.json) without its '
                                              f'checkpoint.pt: choose another folder.')
            return
        state['settings'].setdefault('classes', self.settings['classes'])  # an older checkpoint does not record them
        differences = list_differences(identify(state['settings'], state['recipe']),
                                       identify(self.settings, asdict(self.recipe)))
        if differences:
            raise ArgumentError('output', f'{self.output} holds another run ({differences}): choose another folder.')
        self.step, self.history, self.seconds = state['step'], state['history'], state['seconds']
        self.sessions = state['sessions']
        if self.step == self.total:
            self.state = 'finished'
        elif self.sessions and not allow_changes:
            self.check_conditions(self.sessions[-1])
        self.loss_sum.copy_(state['loss_sum'])
        self.model.load_state_dict(state['model'])
        if self.average is not None:
            self.average.module.load_state_dict(state['average'])
        for name, buffer in self.momentum().items():
            buffer.copy_(state['momentum'][name])

    def check_conditions(self, last: Dict[str, Any]) -> None:
        """Refuse to continue the last session of a checkpoint under conditions that change the result."""
        known = [key for key in CONDITIONS if last.get(key) is not None and self.process[key] is not None]
        if 'processes' not in last and self.rank == 0:
            print(f'warning: the checkpoint in {self.output} does not record how many processes and which BatchNorm '
                  f'groups trained it: it is continued with processes={self.world} and bn_group={self.bn_group}.',
                  file=sys.stderr)
        differences = list_differences(*({key: facts[key] for key in known} for facts in (last, self.process)))
        if differences:
            command = f'`{last["command"]}`' if last.get('command') else 'the command that began it'
            raise UserError(f'{self.output} was trained under other conditions ({differences}): continue it by '
                            f'{command}, or pass --allow-changes.')

    def result(self, **facts: Any) -> Dict[str, Any]:
        """Return the content of a result file: settings, outcome, curve, and the sessions that trained it.

        Facts of a process, such as `hardware`, are those of the last session; `trained_by` is of all sessions.

        Args:
            facts: Further entries, which come first.
        """
        self.update_session()
        sessions = self.sessions or [self.process]
        process = {'hardware': 'unknown', **sessions[-1]}  # an older checkpoint does not record it
        last = self.history[-1] if self.history else {}
        return dict(
            **facts,
            **{key: process.get(key) for key in (
                'command', 'hardware', 'environment', 'versions', 'commit', 'trainer_sha256')},
            **{key: self.settings[key] for key in ('seed', 'model', 'model_kwargs', 'pretrained')},
            state=self.state,
            error=self.error,
            recipe=asdict(self.recipe),
            iterations=self.total,
            step=self.step,
            test_error=last.get('test_error') if self.state == 'finished' else None,
            train_loss=last.get('train_loss'),
            images_per_second=last.get('images_per_second'),
            train_seconds=round(sum(row['seconds'] for row in self.history), 1),
            processes=process.get('processes'),
            together=max(session.get('together', 1) for session in sessions),
            precision=process.get('precision') or precision_of(self.settings['amp'], []),
            trained_by=sorted(self.ways),
            peak_memory_bytes=max(session.get('peak_memory_bytes', 0) for session in sessions) or None,
            sessions=self.sessions,
            data=dict(zip(('train_sha256', 'test_sha256'), self.settings['data'], strict=True),
                      classes=self.model.num_classes),
            curve=self.history,
        )

    @property
    def has_result(self) -> bool:
        """True if the run is finished and its result is written."""
        return self.state == 'finished' and (self.output / 'run.json').exists()

    def finish(self, **facts: Any) -> Dict[str, Any]:
        """Write the weights, the curves and the result, unless the result is there; returns the result."""
        if self.has_result:
            return json.loads((self.output / 'run.json').read_text())
        if self.mean_image is not None:
            write_atomically(self.output / 'mean_image.safetensors', save({'mean_image': self.mean_image}))
        sha256 = export_model(self.kept, self.output, self.settings['model_kwargs'])
        result = self.result(**facts, weights_sha256=sha256)
        plot_run(result, self.output / 'curves.png')
        write_json(self.output / 'run.json', result)  # last: it marks a finished run
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
    lock = open(folder / '.lock', 'a')
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as e:
        lock.close()
        raise FolderTaken(f'another process trains in {folder}: wait for it, or choose another folder.') from e
    return lock


def read_checkpoint(folder: Path) -> Optional[Dict[str, Any]]:
    """Read the checkpoint in the folder of a run; return None if it does not exist.

    An older checkpoint has no `sessions`. It gets an entry with what is known of the steps so far.

    Raises:
        UserError: The file is not a checkpoint of train.cifar.
    """
    path = folder / 'checkpoint.pt'
    if not path.exists():
        return None
    try:
        found = torch.load(path, map_location='cpu', weights_only=True, mmap=True)
        state = {key: found[key] for key in (
            'settings', 'recipe', 'step', 'history', 'seconds', 'loss_sum', 'model', 'momentum')}
        amp, backends = state['settings']['amp'], found.get('ways', ['pytorch'])
        known = dict(first_step=0, amp=amp, trained_by=backends, precision=precision_of(amp, backends))
        state.update(
            settings={'pretrained': False, **state['settings']}, recipe=complete_recipe(state['recipe']),
            average=found.get('average'), sessions=found.get('sessions', [known] if state['step'] else []))
    except Exception as e:  # torch and zipfile raise many classes for a file that is not a checkpoint
        raise UserError(f'{path} is not a checkpoint of train.cifar: remove it or choose another folder.') from e
    return state


def identify(settings: Dict[str, Any], recipe: Dict[str, Any]) -> Dict[str, Any]:
    """Return what makes a run the same run: settings and recipe without the number type."""
    train, test = (sha256[:12] for sha256 in settings['data'])
    classes = hashlib.sha256(json.dumps(settings['classes']).encode()).hexdigest()[:12]
    return {**{key: value for key, value in settings.items() if key not in ('amp', 'data', 'classes')}, **recipe,
            'training images': train, 'test images': test, 'class names': classes}


def list_differences(before: Dict[str, Any], now: Dict[str, Any]) -> str:
    """List the values that differ: 'seed 0 before and 1 now, ...'."""
    return ', '.join(f'{key} {before.get(key)} before and {now.get(key)} now' for key in {**before, **now}
                     if before.get(key) != now.get(key))


def precision_of(amp: bool, backends: Sequence[str]) -> str:
    """Return the number type of the activations."""
    return 'float32' if not amp else 'bfloat16 activations' if 'triton' in backends else 'bfloat16 autocast'


@functools.lru_cache
def trainer_sha256() -> str:
    """Return the SHA-256 of the sources that a run depends on besides the package's, one after the other."""
    sources = [(ROOT / 'train' / name).read_bytes() for name in (
        'batches.py', 'group.py', 'recipe.py', 'replicas.py', 'run.py')]
    return hashlib.sha256(b''.join(sources)).hexdigest()


@functools.lru_cache  # it takes seconds for a network of 1001 layers, which many runs of a campaign share
def check_network(name: str, model_kwargs: str, classes: int, images: int, size: Tuple[int, int]) -> None:
    """Check by a forward pass on the meta device that the network can be trained on groups of so many images.

    Args:
        name: Registered name.
        model_kwargs: Its arguments as JSON.
        classes: Number of classes.
        images: Number of images that share BatchNorm statistics.
        size: Height and width of the images.

    Raises:
        UserError: A map becomes too small, BatchNorm gets one value of a channel, or there is not a logit a class.
    """
    kwargs = {key: value for key, value in json.loads(model_kwargs).items() if key != 'compile_units'}
    model = create_model(name, device='meta', num_classes=classes, **kwargs).train()
    group = f'{images} image{"s" * (images > 1)} of {size[0]}x{size[1]} pixels'
    try:
        with torch.no_grad():
            shape = tuple(model(torch.empty(images, 3, *size, device='meta')).shape)
    except Exception as e:  # whatever a network makes of arguments and images that do not fit
        raise UserError(f'{name} cannot be trained on groups of {group} ({e}): use larger images, a larger batch or '
                        f'--bn-group, or correct --model-kwargs.') from e
    if shape != (images, classes):
        raise UserError(f'{name} returns logits of shape {shape} for {group} and {classes} classes: correct '
                        f'--model-kwargs.')


def check_pretrained(settings: Dict[str, Any], recipe: Recipe) -> None:
    """Check that a run which starts from pretrained weights has their network and their kind of normalisation.

    Raises:
        UserError: The recipe subtracts the mean image, or tensors differ in more than the classifier.
    """
    name, kwargs = settings['pretrained'], settings['model_kwargs']
    if not name:
        return
    if recipe.mean != 'channel':
        raise ArgumentError('mean', f"must be 'channel' with --pretrained, got {recipe.mean!r}.")
    networks = (create_model(name, device='meta', **args) for args in ({}, kwargs))
    published, ours = ({key: tensor.shape for key, tensor in net.state_dict().items()} for net in networks)
    if published != ours:
        raise UserError(f'the weights of {name} do not fit a network with {kwargs}: leave out --pretrained or these '
                        f'--model-kwargs.')


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
