"""How signal and gradient travel through networks: propagate."""
from pathlib import Path
from typing import Annotated, List, Optional

import typer

from ..errors import COUNT, SEED, UserError, check_device, parse_model_kwargs
from .options import PATH, Data, Device, ModelKwargs, NumClasses, Split, Weights, check_used
from .screen import print_findings, print_units, show_progress

__all__ = ['propagate']


def propagate(
        models: Annotated[List[str], typer.Argument(
            help="Names of ours, of timm's resnet and resnetv2, or of your own.")],
        check: Annotated[bool, typer.Option(
            '--check', help='Say whether signal and gradient stay in a safe range; exit code 1 if not.')] = False,
        data: Data = None,
        split: Split = None,
        batch_size: Annotated[int, COUNT, typer.Option(help='How many images, evenly spread over the split.')] = 32,
        weights: Weights = None,
        num_classes: NumClasses = None,
        pretrained: Annotated[bool, typer.Option(
            '--pretrained', help='Fetch published weights too, where there are.')] = False,
        model_kwargs: ModelKwargs = None,
        device_modules: Annotated[Optional[List[str]], typer.Option(
            help='A module to import first, which registers names of your own; as in train.py.')] = None,
        evaluation: Annotated[bool, typer.Option(
            '--eval', help='Run as in evaluation, by running statistics.')] = False,
        seed: Annotated[int, SEED, typer.Option(
            help='Of the initial weights and of dropout.')] = 0,
        device: Device = 'cpu',
        units: Annotated[bool, typer.Option('--units', help='Print every unit.')] = False,
        to: Annotated[Optional[Path], typer.Option(
            **PATH, help='Folder to write: a .csv and a .json a network, propagation.png.')] = None,
) -> None:
    """See how signal and gradient travel: at initialisation, and with weights where the package or you have them.

    On CIFAR-10 images of the package, or on those that --data names.

    Examples: `timm-preact propagate preact_resnet110 preact_resnet110_orig preact_resnet110_orig_const_scale --to out`

    `timm-preact propagate --check my_resnet --device-modules my_models`
    """
    from .. import propagation
    from ..evaluation import import_modules
    where, kwargs = check_device(device), parse_model_kwargs(model_kwargs or [], ['in_chans'])
    check_used('--data', data, split=split)
    if weights and pretrained:
        raise UserError('--weights are measured in place of published ones: leave out --pretrained.')
    if num_classes is not None:
        kwargs['num_classes'] = num_classes
    if check and units:
        raise UserError('--check says one sentence, --units prints every unit: give one of them.')
    import_modules(device_modules or [])
    if to:
        to.mkdir(parents=True, exist_ok=True)
    with show_progress(len(set(models)), 'propagate') as advance:
        findings = propagation.survey(
            models, weights, pretrained, kwargs, data, split or 'test', batch_size, not evaluation, seed, where,
            advance)
    if check:
        for _, verdict in findings:
            print(verdict.sentence)
    elif units:
        for found, _ in findings:
            print_units(found)
    else:
        print_findings(findings)
    if to:
        written = propagation.write([found for found, _ in findings], to)
        print(f'wrote {", ".join(path.name for path in written)} in {to}')
    if check and not all(verdict.safe for _, verdict in findings):
        raise SystemExit(1)
