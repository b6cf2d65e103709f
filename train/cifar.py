"""The paper's CIFAR runs: one process or many, on a CPU or a GPU, resumable to the bit.

    python -m train.cifar preact_resnet110 --data uoft-cs/cifar10 --recipe paper --output runs/110-0
    python -m train.cifar preact_resnet20 --data DIR --recipe modern --epochs 60 --output runs/20
    torchrun --nproc-per-node 2 -m train.cifar preact_resnet164 --data DIR --recipe paper --output runs/164-0

The command is also the way to resume: run again, it goes on from the last checkpoint in --output. Every process
compares its own settings with the checkpoint's. --allow-changes continues with other processes, BatchNorm groups,
number type or device, and run.json records each part. A finished run is never touched.

All randomness of an epoch (order, crops, flips) is drawn from (seed, epoch) and that of a step (dropout) from (seed,
step), the learning rate is a function of the step alone, and the reported error is the last epoch's. --output receives
log.csv, run.json, curves.png, checkpoint.pt, and at the end model.safetensors with its config.json. timm's configs know
no mean image: with --mean pixel it is written to mean_image.safetensors, and config.json has its channel averages.
"""
import os
from contextlib import closing
from pathlib import Path
from typing import Annotated, List, Optional

import timm
import torch
import torch.distributed as dist
import typer

from timm_preact.cli.options import PATH
from timm_preact.data import load_image_set
from timm_preact.errors import NOT_NEGATIVE, SEED, UserError, create_model, one_sentence_errors, parse_model_kwargs
from timm_preact.files import write_atomically
from timm_preact.provenance import quote_command
from timm_preact.weights.fetch import locate
from train.recipe import RECIPES, choose_recipe
from train.run import ALLOW_CHANGES, Run, check_pretrained, local_device, train_together

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


def find_launcher() -> str:
    """Find what started this process: 'torchrun ... -m train.cifar' for several processes, else 'python -m ...'."""
    world, local, nodes = (int(os.environ.get(name, 1)) for name in (
        'WORLD_SIZE', 'LOCAL_WORLD_SIZE', 'GROUP_WORLD_SIZE'))
    if world == 1:
        return 'python -m train.cifar'
    return f'torchrun {f"--nnodes {nodes} " if nodes > 1 else ""}--nproc-per-node {local} -m train.cifar'


def find_pretrained(model: str, fetch: bool) -> str:
    """Find the name with tag of the published or bundled weights of a network.

    Args:
        model: Registered name, with or without tag.
        fetch: Fetch and verify them too, so that an error comes before data are read.

    Raises:
        WeightsError: There are none, or they cannot be fetched.
    """
    cfg = timm.get_pretrained_cfg(model)
    if fetch:
        locate(cfg.architecture, cfg)
    return f'{cfg.architecture}.{cfg.tag}'


@app.command()
@one_sentence_errors
def main(
        model: str = typer.Argument(help='Registered name, e.g. preact_resnet110.'),
        data: str = typer.Option(help='Folder of parquet or npz files, or a Hub data set such as uoft-cs/cifar10.'),
        output: Path = typer.Option(
            **PATH, help='Folder for the log, the checkpoint and the weights; run again to resume.'),
        recipe: str = typer.Option('paper', help=f'One of {", ".join(RECIPES)}.'),
        seed: Annotated[int, SEED] = typer.Option(
            0, help='Seed of the initial weights and of everything random in training.'),
        epochs: Optional[float] = typer.Option(None, help="Passes over the data, in place of the recipe's."),
        iterations: Optional[int] = typer.Option(None, help="Steps, in place of the recipe's."),
        batch_size: Optional[int] = typer.Option(None, help="Images a step, all processes', in place of the recipe's."),
        lr: Optional[float] = typer.Option(None, help="Peak learning rate, in place of the recipe's."),
        warmup: Optional[float] = typer.Option(
            None, help="Steps of it, or a share below 1, in place of the recipe's; 0 for none."),
        weight_decay: Optional[float] = typer.Option(None, help="L2 penalty, in place of the recipe's."),
        label_smoothing: Optional[float] = typer.Option(None, help="Of the loss, in place of the recipe's."),
        decay_all: Optional[bool] = typer.Option(
            None, help="Decay BatchNorm's weights and biases too, in place of the recipe's."),
        translate: Optional[int] = typer.Option(None, help="Pixels a crop moves at most, in place of the recipe's."),
        cutout: Optional[int] = typer.Option(None, help="Side of the square cut out, in place of the recipe's."),
        alternate_flips: Optional[bool] = typer.Option(
            None, help="Flip an image every other epoch, or by chance, in place of the recipe's."),
        average: Optional[float] = typer.Option(
            None, help="Share of the run over which the weights are averaged, in place of the recipe's; 0 for none."),
        mean: Optional[str] = typer.Option(None, help="'pixel' or 'channel', in place of the recipe's."),
        bn_group: Optional[int] = typer.Option(None, help='Images that share BatchNorm statistics.'),
        pretrained: bool = typer.Option(
            False, '--pretrained', help='Fine-tune from the published or bundled weights of the name.'),
        model_kwargs: List[str] = typer.Option([], help='KEY=VALUE for the model, VALUE as JSON or a Python literal.'),
        device: str = typer.Option('cuda' if torch.cuda.is_available() else 'cpu', help='Where to train.'),
        amp: bool = typer.Option(True, help='bfloat16 autocast; --no-amp trains in float32.'),
        compile_model: bool = typer.Option(False, '--compile', help='torch.compile the network.'),
        capture: bool = typer.Option(True, help='On a GPU, capture the step as a CUDA graph and replay it.'),
        checkpoint_every: Annotated[int, NOT_NEGATIVE] = typer.Option(
            0, help='Steps between checkpoints; 0: at the end of each epoch.'),
        allow_changes: bool = typer.Option(False, '--allow-changes', help=ALLOW_CHANGES),
) -> None:
    """Train a network on CIFAR by the paper's recipe, or resume such a run."""
    chosen = choose_recipe(
        recipe, epochs=epochs, iterations=iterations, batch_size=batch_size, lr=lr, warmup=warmup,
        weight_decay=weight_decay, label_smoothing=label_smoothing, decay_all=decay_all,
        translate=translate, cutout=cutout, alternate_flips=alternate_flips, average=average, mean=mean,
        bn_group=bn_group)
    kwargs = parse_model_kwargs(model_kwargs)
    create_model(model, device='meta', **kwargs)  # before data are fetched
    settings = dict(model=model, model_kwargs=kwargs, seed=seed, amp=amp, pretrained=pretrained and find_pretrained(
        model, fetch=not (output / 'checkpoint.pt').exists()))
    check_pretrained(settings, chosen)
    where = local_device(device)
    distributed = 'WORLD_SIZE' in os.environ
    if distributed:
        dist.init_process_group('nccl' if where.type == 'cuda' else 'gloo')
    try:
        if not (output / 'run.json').exists():
            output.mkdir(parents=True, exist_ok=True)
            write_atomically(output / '.writable', b'')
            (output / '.writable').unlink(missing_ok=True)
        train, test = load_image_set(data, 'train'), load_image_set(data, 'test')
        settings.update(data=[train.sha256, test.sha256])
        with closing(Run(settings, chosen, train, test, output, where, compile_model, capture,
                         quote_command(find_launcher()), allow_changes)) as run:
            was_finished = run.has_result
            for _ in train_together([run], checkpoint_every=checkpoint_every):
                if run.state != 'finished':
                    raise UserError(run.error)
                if run.rank == 0:
                    error = run.finish(recipe_name=recipe)['test_error']
                    print(f'{output} is finished: test error {error:.2f} % after {run.step} steps (run.json).'
                          if was_finished else
                          f'{model}: test error {error:.2f} % after {run.step} steps, in {output}')
    finally:
        if distributed:
            dist.destroy_process_group()


if __name__ == '__main__':
    app()
