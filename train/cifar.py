"""The paper's CIFAR runs: one process or many, on a CPU or a GPU, resumable to the bit.

    python -m train.cifar preact_resnet110 --data uoft-cs/cifar10 --recipe paper --output runs/110-0
    python -m train.cifar preact_resnet20 --data DIR --recipe modern --epochs 60 --output runs/20
    torchrun --nproc-per-node 2 -m train.cifar preact_resnet164 --data DIR --recipe paper --output runs/164-0

The command is also the way to resume: run again, it goes on from the last checkpoint in --output. All randomness of an
epoch (order, crops, flips) is drawn from (seed, epoch), the learning rate is a function of the step alone, and the
reported error is the last epoch's. --output receives log.csv, run.json, curves.png, checkpoint.pt, and at the end
model.safetensors with its config.json. timm's configs know no mean image: with --mean pixel it is written to
mean_image.safetensors, and config.json has its channel averages.
"""
import csv
import io
import json
import math
import os
import platform
import resource
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Dict, List, NamedTuple, Optional, Tuple

import numpy as np
import timm
import torch
import torch.distributed as dist
import torch.nn.functional as F
import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from safetensors.torch import save

import timm_preact
from timm_preact.data import ImageSet, load_image_set
from timm_preact.errors import UserError, check_name, one_sentence_errors, parse_model_kwargs
from timm_preact.files import write_atomically
from timm_preact.weights import export_model

PAD = 4

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass(frozen=True)
class Recipe:
    """How a network is trained; everything but the network and the data.

    Attributes:
        iterations: Steps of the optimizer; used if `epochs` is None.
        epochs: Passes over the training set, the last incomplete batch of each left out.
        batch_size: Images a step, over all processes.
        bn_group: Images that share BatchNorm statistics; all that a process has of a batch if None.
        lr: Peak learning rate.
        warmup_lr: Constant rate of the first `warmup` steps; None for a linear rise from 0 to `lr`.
        warmup: Steps before the peak; a share of the run if below 1.
        schedule: 'step' (a tenth at each milestone) or 'linear' (to 0).
        milestones: Shares of the run at which 'step' drops the rate.
        momentum: Of SGD, in PyTorch's form; it is the same as Caffe's while the rate is constant.
        nesterov: Nesterov's form of momentum.
        weight_decay: L2 penalty.
        decay_all: Decay every parameter; False spares BatchNorm's and biases.
        mean: What is subtracted from a pixel in [0, 1]: 'pixel' the mean image of the training set, nothing else;
            'channel' the mean of its channel, then division by the channel's standard deviation.
        label_smoothing: Of the cross-entropy.
    """
    iterations: int = 64_000
    epochs: Optional[float] = None
    batch_size: int = 128
    bn_group: Optional[int] = None
    lr: float = 0.1
    warmup_lr: Optional[float] = None
    warmup: float = 0
    schedule: str = 'step'
    milestones: Tuple[float, ...] = (0.5, 0.75)
    momentum: float = 0.9
    nesterov: bool = False
    weight_decay: float = 1e-4
    decay_all: bool = False
    mean: str = 'channel'
    label_smoothing: float = 0.


RECIPES: Dict[str, Recipe] = {
    # The paper's appendix and "Deep Residual Learning", section 4.2. Its two GPUs held 64 images each: --bn-group 64.
    'paper': Recipe(warmup_lr=0.01, warmup=400, mean='pixel'),
    # The run behind the abstract's 4.62 %: KaimingHe/resnet-1k-layers through fb.resnet.torch's train.lua, which drops
    # the rate after epochs 80 and 121 of 200.
    'torch': Recipe(epochs=200, batch_size=64, milestones=(80 / 200, 121 / 200), nesterov=True, decay_all=True),
    # Ours: the best error for a given budget. Linear rise and fall reach it sooner than steps.
    'modern': Recipe(
        epochs=60, lr=0.2, warmup=0.15, schedule='linear', nesterov=True, weight_decay=5e-4, decay_all=True),
}


def lr_at(recipe: Recipe, step: int, total: int) -> float:
    """The learning rate of a step, counted from 0, in a run of `total` steps."""
    warmup = recipe.warmup * total if recipe.warmup < 1 else recipe.warmup
    if step < warmup:
        return recipe.lr * (step + 1) / (warmup + 1) if recipe.warmup_lr is None else recipe.warmup_lr
    if recipe.schedule == 'linear':
        return recipe.lr * (total - step) / (total - warmup)
    return recipe.lr * 0.1 ** sum(step >= share * total for share in recipe.milestones)


class EpochPlan(NamedTuple):
    """What is random in an epoch, drawn at its start: the order, and for each place in it a crop and a flip."""
    order: torch.Tensor
    top: torch.Tensor
    left: torch.Tensor
    flip: torch.Tensor

    @classmethod
    def draw(cls, seed: int, epoch: int, size: int, device: torch.device) -> 'EpochPlan':
        rng = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
        offsets = torch.randint(0, 2 * PAD + 1, (2, size), generator=rng)
        flip = torch.rand(size, generator=rng) < 0.5
        return cls(*(t.to(device) for t in (torch.randperm(size, generator=rng), *offsets, flip)))


class Batches:
    """Images kept as bytes on the training device, normalised and augmented there a batch at a time."""

    def __init__(self, images: ImageSet, mean: torch.Tensor, std: torch.Tensor, device: torch.device):
        self.images = torch.from_numpy(images.images).to(device)
        self.labels = torch.from_numpy(images.labels).to(device)
        self.mean, self.std = mean.to(device), std.to(device)

    def normalise(self, index: torch.Tensor) -> torch.Tensor:
        """float32 (B, H, W, 3)."""
        return (self.images[index].float() / 255 - self.mean) / self.std

    def train(self, plan: EpochPlan, places: slice) -> Tuple[torch.Tensor, torch.Tensor]:
        """Zero-pad by 4, crop, flip: (B, 3, H, W) in channels-last memory, and the labels."""
        index = plan.order[places]
        images = F.pad(self.normalise(index), (0, 0, PAD, PAD, PAD, PAD))
        height, width = self.images.shape[1:3]
        rows = plan.top[places, None] + torch.arange(height, device=index.device)
        cols = torch.arange(width, device=index.device).expand(len(index), -1)
        cols = torch.where(plan.flip[places, None], width - 1 - cols, cols) + plan.left[places, None]
        batch = torch.arange(len(index), device=index.device)[:, None, None]
        return images[batch, rows[:, :, None], cols[:, None, :]].permute(0, 3, 1, 2), self.labels[index]

    def test(self, size: int = 500):
        """Batches (images, labels) in order, without augmentation."""
        for index in torch.arange(len(self.labels), device=self.labels.device).split(size):
            yield self.normalise(index).permute(0, 3, 1, 2), self.labels[index]


def statistics(images: np.ndarray) -> Tuple[List[float], List[float]]:
    """Mean and standard deviation of each channel of uint8 images, for pixels in [0, 1], to four digits."""
    values = np.arange(256) / 255
    shares = [np.bincount(images[..., c].ravel(), minlength=256) / images[..., c].size for c in range(3)]
    means = [values @ share for share in shares]
    stds = [math.sqrt((values - mean) ** 2 @ share) for mean, share in zip(means, shares, strict=True)]
    return [round(float(m), 4) for m in means], [round(float(s), 4) for s in stds]


def test_error(model: torch.nn.Module, batches: Batches) -> float:
    """Top-1 error in percent, in float32."""
    model.eval()
    with torch.inference_mode():
        correct = sum((model(x).argmax(1) == y).sum().item() for x, y in batches.test())
    model.train()
    return 100 * (len(batches.labels) - correct) / len(batches.labels)


def parameter_groups(model: torch.nn.Module, recipe: Recipe) -> List[Dict[str, Any]]:
    spared = [p for p in model.parameters() if p.ndim == 1 and not recipe.decay_all]
    decayed = [p for p in model.parameters() if p.ndim > 1 or recipe.decay_all]
    return [dict(params=decayed, weight_decay=recipe.weight_decay), dict(params=spared, weight_decay=0.)]


class Run:
    """One training run with all its state: what a checkpoint holds, and how a step changes it."""

    def __init__(self, settings: Dict[str, Any], recipe: Recipe, train: ImageSet, test: ImageSet, output: Path,
                 device: torch.device, amp: bool, compile_model: bool):
        self.settings, self.recipe, self.output, self.device, self.amp = settings, recipe, output, device, amp
        self.rank, self.world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        self.steps_per_epoch = len(train.labels) // recipe.batch_size
        if self.steps_per_epoch == 0 or recipe.batch_size % self.world:
            raise UserError(f'batch size {recipe.batch_size} does not fit {len(train.labels)} images on {self.world} '
                            f'processes: choose a smaller one, or a multiple of the number of processes.')
        self.total = recipe.iterations if recipe.epochs is None else round(recipe.epochs * self.steps_per_epoch)

        torch.manual_seed(settings['seed'])
        self.model = timm.create_model(
            settings['model'], num_classes=len(train.classes), **settings['model_kwargs'])
        self.model.to(device, memory_format=torch.channels_last).train()
        self.mean_image = torch.from_numpy(train.images.mean(0) / 255).float() if recipe.mean == 'pixel' else None
        mean, std = statistics(train.images)
        if self.mean_image is not None:
            std = [1., 1., 1.]
        self.describe(train, mean, std)
        mean = torch.tensor(mean) if self.mean_image is None else self.mean_image
        self.train_batches = Batches(train, mean, torch.tensor(std), device)
        self.test_batches = Batches(test, mean, torch.tensor(std), device)
        self.optimizer = torch.optim.SGD(
            parameter_groups(self.model, recipe), lr=recipe.lr, momentum=recipe.momentum, nesterov=recipe.nesterov)
        self.forward = torch.compile(self.model) if compile_model else self.model
        if self.world > 1:
            self.forward = torch.nn.parallel.DistributedDataParallel(self.forward)
        self.step = 0
        self.loss_sum = torch.zeros((), device=device)
        self.seconds = 0.  # of this epoch's steps
        self.history: List[Dict[str, float]] = []

    def describe(self, data: ImageSet, mean: List[float], std: List[float]) -> None:
        """Let the model's config say what it is trained on."""
        cfg = self.model.pretrained_cfg
        if cfg.get('label_names') != data.classes:
            cfg.pop('tag', None)
        cfg.update(num_classes=len(data.classes), label_names=data.classes, mean=tuple(mean), std=tuple(std),
                   input_size=(3, *data.images.shape[1:3]))

    def train_step(self, plan: EpochPlan) -> None:
        """Forward, backward and update on this process's share of the batch."""
        recipe = self.recipe
        for group in self.optimizer.param_groups:
            group['lr'] = lr_at(recipe, self.step, self.total)
        share = recipe.batch_size // self.world
        start = self.step % self.steps_per_epoch * recipe.batch_size + self.rank * share
        x, y = self.train_batches.train(plan, slice(start, start + share))
        self.optimizer.zero_grad()
        size = recipe.bn_group or share
        for part, target in zip(x.split(size), y.split(size), strict=True):
            with torch.autocast(self.device.type, torch.bfloat16) if self.amp else nullcontext():
                logits = self.forward(part)
            loss = F.cross_entropy(logits.float(), target, label_smoothing=recipe.label_smoothing)
            loss = loss * (len(part) / share)
            loss.backward()
            self.loss_sum += loss.detach()
        self.optimizer.step()
        self.step += 1

    def check_loss(self, steps: int) -> float:
        """Mean loss of the last `steps` steps of the epoch over all processes."""
        loss = self.loss_sum / steps
        if self.world > 1:
            dist.all_reduce(loss)
            loss /= self.world
        if not math.isfinite(loss):
            raise UserError(f'the loss is {loss.item()} at step {self.step}: the run diverged; lower the learning rate '
                            f'or change the seed.')
        return loss.item()

    def end_epoch(self, steps: int) -> None:
        """Measure, log, and start the next epoch's sums."""
        row = dict(epoch=len(self.history) + 1, step=self.step, lr=lr_at(self.recipe, self.step - 1, self.total),
                   train_loss=self.check_loss(steps), test_error=test_error(self.model, self.test_batches),
                   seconds=round(self.seconds, 2),
                   images_per_second=round(steps * self.recipe.batch_size / self.seconds, 1))
        self.history.append(row)
        self.loss_sum.zero_()
        self.seconds = 0.
        if self.rank == 0:
            text = io.StringIO()
            writer = csv.DictWriter(text, row, lineterminator='\n')
            writer.writeheader()
            writer.writerows(self.history)
            write_atomically(self.output / 'log.csv', text.getvalue().encode())

    def save(self) -> None:
        """Write everything that the rest of the run depends on."""
        if self.rank == 0:
            buffer = io.BytesIO()
            torch.save(dict(
                settings=self.settings, recipe=asdict(self.recipe), step=self.step, history=self.history,
                seconds=self.seconds, loss_sum=self.loss_sum, model=self.model.state_dict(),
                optimizer=self.optimizer.state_dict(), rng=torch.get_rng_state(),
                cuda_rng=torch.cuda.get_rng_state() if self.device.type == 'cuda' else None,
            ), buffer)
            write_atomically(self.output / 'checkpoint.pt', buffer.getvalue())

    def resume(self) -> None:
        """Take up the checkpoint in the output folder, if there is one."""
        path = self.output / 'checkpoint.pt'
        if not path.exists():
            return
        try:
            state = torch.load(path, map_location='cpu', weights_only=True)
        except Exception as e:  # torch and zipfile raise a dozen classes for a file that is no checkpoint
            raise UserError(f'{path} is no checkpoint of train.cifar: remove it or choose another --output.') from e
        if state['settings'] != self.settings or state['recipe'] != asdict(self.recipe):
            raise UserError(f'{path} belongs to a run with other settings: choose another --output or remove it.')
        self.step, self.history, self.seconds = state['step'], state['history'], state['seconds']
        self.loss_sum.copy_(state['loss_sum'])
        self.model.load_state_dict(state['model'])
        self.optimizer.load_state_dict(state['optimizer'])
        torch.set_rng_state(state['rng'])
        if state['cuda_rng'] is not None:
            torch.cuda.set_rng_state(state['cuda_rng'])

    def train(self, checkpoint_every: int) -> None:
        """Run to the last step."""
        self.resume()
        plan = None
        with RunProgress(self.total, self.rank) as progress:
            progress.advance(self.step, self.history)
            while self.step < self.total:
                epoch, place = divmod(self.step, self.steps_per_epoch)
                if plan is None or place == 0:
                    plan = EpochPlan.draw(self.settings['seed'], epoch, len(self.train_batches.labels), self.device)
                start = time.perf_counter()
                self.train_step(plan)
                done = place + 1
                if done % 50 == 0:
                    self.check_loss(done)
                ends = done == self.steps_per_epoch or self.step == self.total
                if ends and self.device.type == 'cuda':
                    torch.cuda.synchronize()
                self.seconds += time.perf_counter() - start
                if ends:
                    self.end_epoch(done)
                if ends or (checkpoint_every and self.step % checkpoint_every == 0):
                    self.save()
                progress.advance(self.step, self.history)


class RunProgress:
    """How far a run is: a bar on a terminal, a line an epoch elsewhere, nothing on processes but the first."""

    def __init__(self, total: int, rank: int):
        self.rank = rank
        self.lines = not sys.stderr.isatty()
        self.bar = Progress(
            TextColumn('{task.description}'), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn(),
            console=Console(stderr=True), disable=self.lines or rank != 0)
        self.task = self.bar.add_task('first epoch', total=total)
        self.epochs = None

    def __enter__(self) -> 'RunProgress':
        if not self.bar.disable:
            self.bar.start()
        return self

    def __exit__(self, *_) -> None:
        if not self.bar.disable:
            self.bar.stop()

    def advance(self, step: int, history: List[Dict[str, float]]) -> None:
        self.bar.update(self.task, completed=step)
        if self.epochs is not None and len(history) > self.epochs:
            last = history[-1]
            self.bar.update(self.task, description=f"test error {last['test_error']:.2f} %")
            if self.lines and self.rank == 0:
                print(f"epoch {last['epoch']}: loss {last['train_loss']:.4f}, test error {last['test_error']:.2f} %, "
                      f"{last['images_per_second']:.0f} images/s", flush=True)
        self.epochs = len(history)


def plot_curves(history: List[Dict[str, float]], title: str, path: Path) -> None:
    """Training loss left, test error right, as in the paper's figures."""
    from matplotlib.figure import Figure
    figure = Figure(figsize=(7, 4), layout='constrained')
    left = figure.subplots()
    right = left.twinx()
    epochs = [row['epoch'] for row in history]
    left.plot(epochs, [row['train_loss'] for row in history], color='#0072b2', linestyle='--', label='training loss')
    right.plot(epochs, [row['test_error'] for row in history], color='#d55e00', label='test error')
    left.set(xlabel='epoch', ylabel='training loss (dashed)', yscale='log')
    right.set(ylabel='test error, % (solid)', ylim=(0, min(100, 4 * history[-1]['test_error'] + 1)))
    left.set_title(title)
    buffer = io.BytesIO()
    figure.savefig(buffer, format='png', dpi=150)
    write_atomically(path, buffer.getvalue())


def hardware(device: torch.device) -> str:
    if device.type == 'cuda':
        return torch.cuda.get_device_name(device)
    return f'{platform.machine()} CPU, {torch.get_num_threads()} threads'


def peak_memory(device: torch.device) -> int:
    """Bytes: of the tensors on a GPU, of the whole process on a CPU."""
    if device.type == 'cuda':
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def finish(run: Run, train: ImageSet, test: ImageSet, recipe_name: str, command: str) -> None:
    """Write the weights, the result and the curves."""
    last = run.history[-1]
    if run.mean_image is not None:
        write_atomically(run.output / 'mean_image.safetensors', save({'mean_image': run.mean_image}))
    sha256 = export_model(run.model, run.output, run.settings['model_kwargs'])
    result = dict(
        command=command,
        **{key: run.settings[key] for key in ('model', 'model_kwargs', 'seed')},
        recipe_name=recipe_name,
        recipe=asdict(run.recipe),
        iterations=run.total,
        test_error=last['test_error'],
        train_loss=last['train_loss'],
        images_per_second=last['images_per_second'],
        train_seconds=round(sum(row['seconds'] for row in run.history), 1),
        processes=run.world,
        precision='bfloat16 autocast' if run.amp else 'float32',
        peak_memory_bytes=peak_memory(run.device),
        hardware=hardware(run.device),
        versions=dict(python=platform.python_version(), torch=torch.__version__, timm=timm.__version__,
                      timm_preact=timm_preact.__version__),
        data=dict(zip(('train_sha256', 'test_sha256'), run.settings['data'], strict=True), classes=len(train.classes)),
        weights_sha256=sha256,
        curve=run.history,
    )
    write_atomically(run.output / 'run.json', json.dumps(result, indent=1).encode())
    try:
        plot_curves(run.history, f"{run.settings['model']}, seed {run.settings['seed']}", run.output / 'curves.png')
    except ImportError:
        print("no curves.png: pip install 'timm-preact[train]' for matplotlib.")
    print(f"{run.settings['model']}: test error {last['test_error']:.2f} % after {run.total} steps, in {run.output}")


@app.command()
@one_sentence_errors
def main(
        model: str = typer.Argument(help='Registered name, e.g. preact_resnet110.'),
        data: str = typer.Option(help='Folder of parquet or npz files, or a Hub data set such as uoft-cs/cifar10.'),
        output: Path = typer.Option(help='Folder for the log, the checkpoint and the weights; run again to resume.'),
        recipe: str = typer.Option('paper', help=f'One of {", ".join(RECIPES)}.'),
        seed: int = typer.Option(0, help='Of the initial weights and of everything random in training.'),
        epochs: Optional[float] = typer.Option(None, help="Passes over the data, in place of the recipe's."),
        iterations: Optional[int] = typer.Option(None, help="Steps, in place of the recipe's."),
        batch_size: Optional[int] = typer.Option(None, help="Images a step, all processes', in place of the recipe's."),
        lr: Optional[float] = typer.Option(None, help="Peak learning rate, in place of the recipe's."),
        weight_decay: Optional[float] = typer.Option(None, help="L2 penalty, in place of the recipe's."),
        label_smoothing: Optional[float] = typer.Option(None, help="Of the loss, in place of the recipe's."),
        mean: Optional[str] = typer.Option(None, help="'pixel' or 'channel', in place of the recipe's."),
        bn_group: Optional[int] = typer.Option(None, help='Images that share BatchNorm statistics.'),
        model_kwargs: List[str] = typer.Option([], help='KEY=VALUE for the model, VALUE as JSON or a Python literal.'),
        device: str = typer.Option('cuda' if torch.cuda.is_available() else 'cpu', help='Where to train.'),
        amp: bool = typer.Option(True, help='bfloat16 autocast; --no-amp trains in float32.'),
        compile_model: bool = typer.Option(False, '--compile', help='torch.compile the network.'),
        checkpoint_every: int = typer.Option(0, help='Steps between checkpoints; 0: at the end of each epoch.'),
) -> None:
    """Train a network on CIFAR by the paper's recipe, or resume such a run."""
    if recipe not in RECIPES:
        raise UserError(f'--recipe {recipe} is not known: choose one of {", ".join(RECIPES)}.')
    if epochs is not None and iterations is not None:
        raise UserError('--epochs and --iterations say the same: give one of them.')
    if mean not in (None, 'pixel', 'channel'):
        raise UserError(f"--mean {mean} is not known: choose pixel or channel.")
    for option, value in (('--epochs', epochs), ('--iterations', iterations), ('--batch-size', batch_size),
                          ('--lr', lr), ('--bn-group', bn_group)):
        if value is not None and value <= 0:
            raise UserError(f'{option} is {value}: it must be above 0.')
    given = dict(batch_size=batch_size, lr=lr, weight_decay=weight_decay, label_smoothing=label_smoothing, mean=mean,
                 bn_group=bn_group, epochs=epochs)
    chosen = replace(RECIPES[recipe], **{key: value for key, value in given.items() if value is not None})
    if iterations is not None:
        chosen = replace(chosen, iterations=iterations, epochs=None)

    distributed = 'WORLD_SIZE' in os.environ
    if distributed:
        dist.init_process_group('nccl' if device == 'cuda' else 'gloo')
        if device == 'cuda':
            torch.cuda.set_device(int(os.environ['LOCAL_RANK']))
    try:
        output.mkdir(parents=True, exist_ok=True)
        write_atomically(output / '.writable', b'')
        (output / '.writable').unlink(missing_ok=True)
        train, test = load_image_set(data, 'train'), load_image_set(data, 'test')
        settings = dict(model=check_name(model), model_kwargs=parse_model_kwargs(model_kwargs), seed=seed, amp=amp,
                        data=[train.sha256, test.sha256])
        run = Run(settings, chosen, train, test, output, torch.device(device), amp, compile_model)
        run.train(checkpoint_every)
        if run.rank == 0:
            finish(run, train, test, recipe, ' '.join(['python -m train.cifar', *sys.argv[1:]]))
    finally:
        if distributed:
            dist.destroy_process_group()


if __name__ == '__main__':
    app()
