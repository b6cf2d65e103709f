"""The command line: timm-preact list | predict | evaluate | benchmark | propagate | export | run | demo | convert |
verify | publish."""
import json
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Callable, Dict, Iterator, List, Optional

import timm
import typer

from . import __version__
from .errors import (
    UserError,
    check_above_0,
    check_device,
    check_name,
    one_sentence_errors,
    parse_model_kwargs,
)

app = typer.Typer(
    name='timm-preact', no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False,
    rich_markup_mode='markdown', help=f'Pre-activation residual networks for timm, version {__version__}.')

DEMO_MODEL = 'preact_resnet20.cifar10'
MATCH_HELP = "How the data's classes are found among the model's: by name, or by index, in the order that they have."


@contextmanager
def progress(total: int, description: str) -> Iterator[Callable[[int], None]]:
    """A bar on stderr while the block runs, where somebody watches; yields advance(done)."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    columns = TextColumn('{task.description}', markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    if not sys.stderr.isatty():
        yield lambda done: None
        return
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(description, total=total)
        yield lambda done: bar.advance(task, done)


def print_table(table: Any, width: int = 120) -> None:
    """Print a rich table, up to `width` characters wide where no terminal limits it; names are printed as they are."""
    from rich.console import Console
    Console(width=None if sys.stdout.isatty() else width, markup=False, emoji=False).print(table)


def print_scores(title: str, scores: Any) -> None:
    from rich.table import Table
    print(title)
    table = Table()
    table.add_column('class')
    table.add_column('accuracy, %', justify='right')
    for name, accuracy in scores.per_class.items():
        table.add_row(name, f'{accuracy:.2f}')
    table.add_section()
    table.add_row('top-1', f'{scores.top1:.2f}', style='bold')
    table.add_row('top-5', f'{scores.top5:.2f}')
    print_table(table)


@app.command('list')
@one_sentence_errors
def list_models(
        pattern: str = typer.Argument('preact_*', help='Names to list, e.g. "preact_resnet110*".'),
        as_json: bool = typer.Option(False, '--json', help='Print JSON.'),
) -> None:
    """List the networks: size, cost, the errors of the paper, of published weights and ours, and which have weights.

    Example: `timm-preact list 'preact_resnet110*'`
    """
    from .catalog import MEASURED, PAPER, SIZES, depth_of
    from .weights.sources import SOURCES
    names = [name for name in timm.list_models(pattern) if name in SIZES]
    if not names:
        raise UserError(f'no network matches {pattern}: try "preact_*".')
    rows = []
    for name in names:
        default, *others = [cfg.tag for cfg in timm.models.get_arch_pretrained_cfgs(name).values()]
        for tag in (default, *others):
            key = f'{name}.{tag}'
            facts = dict(
                paper_error=PAPER.get(name, {}).get(tag),
                published_error=SOURCES[key].reported[0] if key in SOURCES else None,
                our_error=MEASURED.get(key),
                weights=timm.models.is_model_pretrained(key),
            )
            if tag == default or any(facts.values()):
                rows.append(dict(
                    name=name, depth=depth_of(name), params=SIZES[name].params, macs=SIZES[name].macs, data_set=tag,
                    **facts))
    if as_json:
        print(json.dumps(rows, indent=1))
        return
    from rich import box
    from rich.table import Table
    table = Table(
        box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, caption_justify='left',
        caption='paper, published (as its publisher reports it), ours: top-1 errors in %; MACs: multiply-adds for one '
                'image of the default data set')
    table.add_column('name', overflow='fold')
    for heading in ('depth', 'params', 'MACs', 'data set', 'paper', 'published', 'ours', 'weights'):
        table.add_column(heading, justify='left' if heading in ('data set', 'weights') else 'right', no_wrap=True)
    for row in rows:
        table.add_row(
            row['name'], str(row['depth']), f"{row['params'] / 1e6:.2f}M", f"{row['macs'] / 1e6:.0f}M", row['data_set'],
            *(_error(row[key]) for key in ('paper_error', 'published_error', 'our_error')),
            'yes' if row['weights'] else '-')
    print_table(table)


def _error(error: Any) -> str:
    return '-' if error is None else f'{error:.2f}' if isinstance(error, float) else error


@app.command()
@one_sentence_errors
def predict(
        images: List[Path] = typer.Argument(help='Image files of any size, or folders of them.'),
        model: str = typer.Option(DEMO_MODEL, help='Registered name, with or without tag.'),
        weights: Optional[str] = typer.Option(None, help='Weights of your own: a file, or a folder of train.cifar.'),
        top_k: int = typer.Option(5, help='Classes an image.'),
        device: str = typer.Option('cpu', help='cpu or cuda.'),
        as_json: bool = typer.Option(False, '--json', help='Print JSON.'),
) -> None:
    """Name what is in images; one that cannot be read costs its own row, and the exit code is 1.

    Example: `timm-preact predict cat.png --top-k 3 --json`
    """
    from .evaluation import load_model
    from .evaluation import predict as predict_files
    from .images import image_files
    where, files = check_device(device), image_files(images)
    results = predict_files(load_model(model, weights, where), files, top_k, where)
    if as_json:
        print(json.dumps(results, indent=1))
    else:
        from rich.table import Table
        table = Table('image', 'class', 'probability')
        for result in results:
            if 'error' in result:
                table.add_row(result['file'], result['error'], '')
            for i, guess in enumerate(result.get('predictions', [])):
                table.add_row(result['file'] if i == 0 else '', guess['class'], f"{guess['probability']:.4f}")
            table.add_section()
        print_table(table)
    if any('error' in result for result in results):
        raise SystemExit(1)


@app.command()
@one_sentence_errors
def evaluate(
        model: str = typer.Option(help='Registered name, with or without tag.'),
        data: str = typer.Option(help='Folder of parquet or npz files or of images (a subfolder a class), .npz file, '
                                      'or Hub data set such as uoft-cs/cifar10.'),
        split: str = typer.Option('test', help='Split of the data set.'),
        weights: Optional[str] = typer.Option(None, help='Weights of your own: a file, or a folder of train.cifar.'),
        num_classes: Optional[int] = typer.Option(None, help='Classes of weights of your own, where not the name\'s.'),
        img_size: Optional[int] = typer.Option(None, help='Side of the crop; the test size if not given.'),
        crop_pct: Optional[float] = typer.Option(None, help='Crop as a share of the shorter side.'),
        batch_size: int = typer.Option(250, help='Images a forward pass.'),
        match: str = typer.Option('name', help=MATCH_HELP),
        device: str = typer.Option('cpu', help='cpu or cuda.'),
        as_json: bool = typer.Option(False, '--json', help='Print JSON.'),
) -> None:
    """Measure top-1 and top-5 accuracy, overall and by class.

    Examples: `timm-preact evaluate --model preact_resnet20 --data uoft-cs/cifar10`

    `timm-preact evaluate --model preact_resnet200_fb --data /imagenet/val --img-size 320 --crop-pct 1.0`
    """
    from .evaluation import eval_transform, load_model, open_images
    from .evaluation import evaluate as evaluate_images
    where = check_device(device)
    net = load_model(model, weights, where, num_classes)
    images = open_images(data, split, eval_transform(net, img_size, crop_pct, use_test_size=True))
    with progress(len(images), f'{model} on {data}') as advance:
        scores = evaluate_images(net, images, batch_size, where, advance, match)
    if as_json:
        print(json.dumps(dict(
            model=model, data=data, split=split, images=scores.images, top1=round(scores.top1, 4),
            top5=round(scores.top5, 4), error=round(scores.error, 4), per_class=scores.per_class), indent=1))
        return
    print_scores(f'{model} on {scores.images} images of {data}', scores)
    print(f'top-1 error {scores.error:.2f} %')


@app.command()
@one_sentence_errors
def export(
        model: str = typer.Argument(help='Registered name, with or without tag.'),
        to: Path = typer.Option(help='New file: .onnx, .pt2 (torch.export), .pt or .ts (TorchScript).'),
        format: Optional[str] = typer.Option(
            None, help='onnx, torch-export or torchscript, as the suffix says by itself, or aoti: .pt2, compiled.'),
        weights: Optional[str] = typer.Option(None, help='Weights of your own: a file, or a folder of train.cifar.'),
        num_classes: Optional[int] = typer.Option(None, help='Classes of weights of your own, where not the name\'s.'),
        img_size: Optional[int] = typer.Option(None, help='Side of the images; the config\'s if not given.'),
        batch_size: Optional[int] = typer.Option(None, help='The only batch size to take; any if not given.'),
        plain: bool = typer.Option(False, '--plain', help='The network as trained, its BatchNorms not folded.'),
        int8: bool = typer.Option(False, '--int8', help='ONNX in 8-bit integers; needs --data.'),
        data: Optional[str] = typer.Option(
            None, help='For --int8: images to find the ranges of values on, as evaluate reads them.'),
        split: str = typer.Option('train', help='For --int8: split of the data set.'),
        calibration_images: int = typer.Option(500, help='For --int8: how many, evenly spread over the split.'),
) -> None:
    """Write a network to a file that runs without this package, optimised for inference.

    Examples: `timm-preact export preact_resnet20 --to preact_resnet20.onnx`

    `timm-preact export preact_resnet20 --to int8.onnx --int8 --data uoft-cs/cifar10`
    """
    from .evaluation import load_model
    from .export import export as write
    from .export import format_of
    from .inference import optimize
    format = format_of(to, format)
    check_above_0('--img-size', img_size)
    if int8 and (format != 'onnx' or data is None or batch_size is not None):
        raise UserError('--int8 makes an .onnx file that takes any batch size, and looks at images to do so: pass '
                        '--data, and no other format or --batch-size.')
    if data is not None and not int8:
        raise UserError('--data is what --int8 looks at: pass both or neither.')
    net = load_model(model, weights, num_classes=num_classes)
    if not plain:
        net = optimize(net)
    input_size = None if img_size is None else (net.pretrained_cfg['input_size'][0], img_size, img_size)
    if data is None:
        write(net, to, format, input_size, batch_size)
    else:
        from .evaluation import eval_transform, open_images
        from .quantization import quantize
        images = open_images(data, split, eval_transform(net, img_size))
        with tempfile.TemporaryDirectory() as folder:
            float32 = Path(folder) / 'float32.onnx'
            write(net, float32, format, input_size)
            quantize(float32, to, images.spread(calibration_images)[0].numpy())
    print(f'{to} holds {model} as {format}{" in int8" if int8 else ""}, {to.stat().st_size / 2 ** 20:.2f} MiB')


@app.command('run', context_settings=dict(allow_interspersed_args=False, ignore_unknown_options=True))
@one_sentence_errors
def run_timm_script(
        script: str = typer.Argument(help='validate.py, inference.py, benchmark.py, onnx_export.py, train.py, ... '),
        arguments: Optional[List[str]] = typer.Argument(None, help='Arguments of the script.'),
        timm_scripts: Optional[Path] = typer.Option(
            None, envvar='TIMM_SCRIPTS', help='Clone of huggingface/pytorch-image-models.'),
) -> None:
    """Run one of timm's scripts with our names registered, its arguments checked first.

    Examples: `timm-preact run validate.py --model preact_resnet50 --pretrained --data-dir /imagenet`

    `torchrun --nproc-per-node 8 -m timm_preact run train.py --config CONFIG.yaml --data-dir /imagenet`
    """
    from .scripts import find_script, run_script, version_warning
    path = find_script(script, timm_scripts)
    if warning := version_warning(path):
        print(f'warning: {warning}', file=sys.stderr)
    run_script(path, arguments or [])


@app.command()
@one_sentence_errors
def demo(
        output: Path = typer.Option(Path('timm_preact_demo.png'), help='Where to write the picture of predictions.'),
) -> None:
    """Run the network that ships with the package on real test images that ship with it; needs no network."""
    from .data import load_sample
    from .evaluation import Images, eval_transform, load_model
    from .evaluation import evaluate as evaluate_images
    from .picture import draw_predictions
    start = time.perf_counter()
    net = load_model(DEMO_MODEL)
    sample = load_sample()
    scores = evaluate_images(net, Images(sample, eval_transform(net)))
    draw_predictions(sample, scores.predictions.numpy(), output)
    print_scores(f"timm.create_model('{DEMO_MODEL}', pretrained=True) on {scores.images} CIFAR-10 test images", scores)
    print(f'top-1 error {scores.error:.2f} % in {time.perf_counter() - start:.1f} s; predictions drawn in {output}')


@app.command()
@one_sentence_errors
def convert(
        source: str = typer.Argument(help='A name with tag, whose published weights are fetched, or a weight file: '
                                          '.t7, .h5, .params, .pth.zip, .pth, .safetensors.'),
        to: Path = typer.Option(help='New folder.'),
        name: Optional[str] = typer.Option(None, help='For a file: the network, with a tag of your choice.'),
        license: Optional[str] = typer.Option(None, help='For a file: its licence, e.g. apache-2.0.'),
        model_kwargs: Optional[List[str]] = typer.Option(
            None, help='For a file: an argument of the network, e.g. stride_on=1x1; may be repeated.'),
) -> None:
    """Turn published weights, or a file, into verified safetensors with config, card and golden logits.

    Examples: `timm-preact convert preact_resnet200_fb.in1k --to fb`

    `timm-preact convert resnetv2_50.safetensors --name preact_resnet50.a1h_in1k --license apache-2.0 --to a1h`
    """
    from . import hub
    sha256 = hub.convert(source, to, name, license, parse_model_kwargs(model_kwargs or []))
    print(f'{to} holds {", ".join(sorted(path.name for path in to.iterdir()))}; sha256 {sha256}')


@app.command()
@one_sentence_errors
def verify(
        folder: Path = typer.Argument(help='A folder that convert or train.ship made.'),
        data: Optional[str] = typer.Option(None, help='Labelled images to measure on, as evaluate reads them.'),
        split: str = typer.Option('test', help='Split of the data set.'),
        batch_size: int = typer.Option(50, help='Images a forward pass.'),
        match: str = typer.Option('name', help=MATCH_HELP),
        device: str = typer.Option('cpu', help='cpu or cuda.'),
        record: bool = typer.Option(False, help='Write what is measured into config.json and the card.'),
) -> None:
    """Check a folder: hashes, loading by timm, stored logits, and the accuracy on labelled images if given.

    Example: `timm-preact verify fb --data /imagenet/val` tests 224x224 (crop 0.875) and the paper's 320x320 (crop 1.0).
    """
    from . import hub
    where = check_device(device)
    if record and data is None:
        raise UserError('--record writes what is measured: name images by --data.')
    model = hub.verify_folder(folder)
    error = hub.golden_error(folder, model)
    replayed = 'no stored logits' if error is None else f'stored logits replayed within {error:.1e}'
    print(f'{folder} is whole: {model.pretrained_cfg["architecture"]}, {replayed}')
    if data is None:
        return
    results = hub.measure(model, data, split, batch_size, where, match)
    for result in results:
        print('{input_size}x{input_size}, crop {crop_pct}: top-1 {top1:.2f} %, top-5 {top5:.2f} % of {images} images'
              .format_map(result))
    if record:
        hub.record(folder, results)


@app.command()
@one_sentence_errors
def publish(
        folder: Path = typer.Argument(help='A folder that convert or train.ship made.'),
        repo_id: str = typer.Option(help='ORG/NAME on the Hub.'),
        revision: Optional[str] = typer.Option(None, help='Branch, made if it does not exist.'),
        private: bool = typer.Option(False, '--private', help='Make a new repository private.'),
        dry_run: bool = typer.Option(False, '--dry-run', help='Check everything, send nothing.'),
) -> None:
    """Push a folder to the Hugging Face Hub in one commit, and read it back.

    Example: `timm-preact publish fb --repo-id my-lab/preact_resnet200_fb.in1k --dry-run`
    """
    from . import hub
    published = hub.publish(folder, repo_id, revision, private, dry_run)
    done = 'would get' if dry_run else f'has at {published.commit[:12]}' if published.changed else 'has already'
    print(f'{published.url} {done} {", ".join(published.files)}')


@app.command('benchmark')
@one_sentence_errors
def run_benchmark(
        models: List[str] = typer.Argument(help='Registered names.'),
        task: str = typer.Option('inference', help='inference or training.'),
        against: str = typer.Option('timm,pytorchcv,torchvision', help='Packages to measure beside us.'),
        batch_size: List[int] = typer.Option([64], help='Images a call; may be repeated.'),
        img_size: Optional[int] = typer.Option(None, help="Pixels a side; the name's own if not given."),
        dtype: List[str] = typer.Option(['float32'], help='float32, bfloat16 or float16; may be repeated.'),
        device: str = typer.Option('cpu', help='cpu or cuda.'),
        threads: Optional[int] = typer.Option(None, help='Threads of the CPU; all if not given.'),
        rounds: int = typer.Option(5, min=1, help='Measurements of each.'),
        compile_units: bool = typer.Option(False, '--compile', help='Measure ours with compiled units too.'),
        cuda_graph: bool = typer.Option(False, '--cuda-graph', help='Measure ours as a CUDA graph too.'),
        to: Optional[Path] = typer.Option(None, help='Write PATH.json and PATH.png.'),
) -> None:
    """Measure our networks beside other people's on this machine: images a second and memory.

    Example: `timm-preact benchmark preact_resnet110_pcv preact_resnet152 --batch-size 4 --dtype bfloat16`
    """
    import torch

    from . import benchmark
    from .preact_resnet import MODEL_ARGS
    from .provenance import quote_command, record
    where = check_device(device)
    check_above_0('--threads', threads)
    check_above_0('--img-size', img_size)
    for size in batch_size:
        check_above_0('--batch-size', size)
    if threads:
        torch.set_num_threads(threads)
    if task not in benchmark.TASKS:
        raise UserError(f'--task {task} is not known: choose one of {", ".join(benchmark.TASKS)}.')
    for name in models:
        if name not in MODEL_ARGS:
            raise UserError(f'{name} is no network of ours: timm-preact list names them.')
    dtypes = [getattr(torch, name, None) for name in dtype]
    if not set(dtypes) <= {torch.float32, torch.bfloat16, torch.float16}:
        raise UserError(f'--dtype {" ".join(dtype)} is not known: choose float32, bfloat16 or float16.')
    if cuda_graph and where.type != 'cuda':
        raise UserError('a CUDA graph needs a GPU: add --device cuda, or leave --cuda-graph out.')
    packages = benchmark.select_installed(against.split(','))
    others = [package for package in packages if package != 'timm']
    result = dict(record(quote_command('timm-preact'), where, *others), operations_per_second={}, runs=[])
    settings = [benchmark.Setting(name, task, kind, batch, img_size)
                for name in models for kind in dtypes for batch in batch_size]
    with progress(len(settings), 'benchmark') as advance:
        for kind in dtypes:
            rate = benchmark.operations_per_second(where, kind)
            result['operations_per_second'][str(kind).removeprefix('torch.')] = rate
        for setting in settings:
            result['runs'].append(benchmark.benchmark(setting, where, packages, rounds, compile_units, cuda_graph))
            advance(1)
    from rich.console import Console
    from rich.markdown import Markdown
    console = Console() if sys.stdout.isatty() else None
    text = benchmark.format_tables(result)
    console.print(Markdown(text)) if console else print(text)
    print(f"{result['hardware']}; {', '.join(f'{k} {v}' for k, v in result['versions'].items())}")
    if to:
        print(f'wrote {", ".join(map(str, benchmark.write(result, to)))}')


@app.command()
@one_sentence_errors
def propagate(
        models: List[str] = typer.Argument(help="Names of ours, of timm's resnet and resnetv2, or of your own."),
        check: bool = typer.Option(
            False, '--check', help='Say whether signal and gradient stay in a safe range; exit code 1 if not.'),
        data: Optional[str] = typer.Option(
            None, help='Labelled images, as evaluate reads them; CIFAR-10 images of the package if not given.'),
        split: str = typer.Option('test', help='Split of the data set.'),
        batch_size: int = typer.Option(32, min=1, help='How many images, evenly spread over the split.'),
        weights: Optional[str] = typer.Option(None, help='Weights of your own: a file, or a folder of train.cifar.'),
        num_classes: Optional[int] = typer.Option(None, help='Classes of weights of your own, where not the name\'s.'),
        pretrained: bool = typer.Option(False, '--pretrained', help='Fetch published weights too, where there are.'),
        model_kwargs: Optional[List[str]] = typer.Option(
            None, help='An argument of the networks, e.g. shortcut=C; may be repeated.'),
        device_modules: Optional[List[str]] = typer.Option(
            None, help='A module to import first, which registers names of your own; as in train.py.'),
        evaluation: bool = typer.Option(False, '--eval', help='Run as in evaluation, by running statistics.'),
        seed: int = typer.Option(0, min=0, max=2 ** 31 - 1, help='Of the initial weights and of dropout.'),
        device: str = typer.Option('cpu', help='cpu or cuda.'),
        units: bool = typer.Option(False, '--units', help='Print every unit.'),
        to: Optional[Path] = typer.Option(None, help='Folder to write: a .csv and a .json a network, propagation.png.'),
) -> None:
    """See how signal and gradient travel: at initialisation, and with weights where the package or you have them.

    Examples: `timm-preact propagate preact_resnet110 preact_resnet110_orig preact_resnet110_orig_const_scale --to out`

    `timm-preact propagate --check my_resnet --device-modules my_models`
    """
    from . import propagation
    from .data import load_sample
    from .evaluation import Images, eval_transform, load_states, open_images
    where, kwargs = check_device(device), parse_model_kwargs(model_kwargs or [])
    if num_classes is not None:
        kwargs['num_classes'] = num_classes
    models = list(dict.fromkeys(models))
    if weights and len(models) > 1:
        raise UserError('--weights are those of one network: name one.')
    if check and units:
        raise UserError('--check says one sentence, --units prints every unit: give one of them.')
    import_modules(device_modules or [])
    for name in models:
        check_name(name)
    if to:
        to.mkdir(parents=True, exist_ok=True)
    results: Dict[str, List[propagation.Propagation]] = {}
    verdicts = []
    with progress(len(models), 'propagate') as advance:
        for name in models:
            for held, net in load_states(name, weights, pretrained, kwargs, seed):
                transform = eval_transform(net)
                images = Images(load_sample(), transform) if data is None else open_images(data, split, transform)
                x, y = (tensor.to(where) for tensor in images.spread(batch_size))
                try:
                    found = propagation.measure(net.to(where), x, y, not evaluation, seed, name, held)
                except UserError:
                    raise
                except (RuntimeError, ValueError) as e:
                    raise UserError(f'{name} does not run on these images: {e}') from e
                results.setdefault(name, []).append(found)
                verdicts.append(propagation.check(net, found))
            advance(1)
    if check:
        for verdict in verdicts:
            print(verdict.sentence)
    else:
        print_propagation(results, verdicts, units)
    if to:
        written = []
        for found in (found for states in results.values() for found in states):
            written += [to / f'{found.model}.{found.weights}.{kind}' for kind in ('csv', 'json')]
            found.to_csv(written[-2])
            found.to_json(written[-1])
        if propagation.draw(results, to / 'propagation.png'):
            written.append(to / 'propagation.png')
        print(f'wrote {", ".join(path.name for path in written)} in {to}')
    if check and not all(verdict.safe for verdict in verdicts):
        raise SystemExit(1)


def import_modules(names: List[str]) -> None:
    """Import modules by name, as `python -m` finds them: those of the current folder too."""
    import importlib
    sys.path.insert(0, '')
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as e:  # whatever a module of the user's does
            raise UserError(f'--device-modules {name} cannot be imported ({type(e).__name__}: {e}): name a module that '
                            f'is installed, or lies in this folder.') from e
    sys.path.remove('')


def print_propagation(results: Dict[str, List[Any]], verdicts: List[Any], units: bool) -> None:
    """A row a network and what it held, or with `units` a table each and a row a unit."""
    from rich import box
    from rich.table import Table

    def new_table(names: List[str], numbers: List[str], **texts: Any) -> Table:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, **texts)
        for heading in (*names, *numbers):
            least = max(7, *(len(word) for word in heading.split()))
            options = dict(no_wrap=True) if heading in names else dict(justify='right', min_width=least)
            table.add_column(heading, **options)
        return table

    found = [result for states in results.values() for result in states]
    if units:
        columns = found[0].columns()
        for result in found:
            table = new_table(['unit'], [column.replace('_', '\n') for column in columns],
                              title=f'{result.model} ({result.weights})', title_justify='left')
            for row, unit in enumerate(result.units):
                table.add_row(unit, *(_figure(getattr(result, column)[row]) for column in columns))
            print_table(table, 170)
        return
    table = new_table(
        ['network', 'weights', 'safe'], ['signal', 'gradient', 'direct', 'factors', 'cosine', 'dead'],
        caption_justify='left', caption=(
            "signal: the stream's largest standard deviation over the first unit's; gradient: at the first unit over "
            'that behind the last; direct: the gradient through shortcuts alone at its weakest unit, over the same; '
            'factors: the product of what merges multiply the shortcuts by; cosine: the lowest with the last gradient '
            'of the same shape; dead: share of ReLU channels'))
    for result, verdict in zip(found, verdicts, strict=True):
        table.add_row(result.model, result.weights, 'yes' if verdict.safe else 'NO', *map(_figure, (
            result.signal, result.growth, result.direct, result.scaling_product[0], result.cosine, result.dead)))
    print_table(table)


def _figure(value: float) -> str:
    return '-' if value != value else f'{value:.2g}'


def run() -> None:
    """Entry point of timm-preact and python -m timm_preact."""
    app(prog_name='timm-preact')
