"""What 8-bit integers cost preact_resnet20 and what they save, on the whole test set of CIFAR-10.

    python -m train.quantization --data DIR

Writes benchmarks/int8_preact_resnet20.json. About a minute on 2 cores.
"""
import json
import platform
import statistics
import sys
import tempfile
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any, Dict, List

import numpy as np
import timm
import torch
import typer
from torch.utils.data import DataLoader

from timm_preact.benchmark import hardware
from timm_preact.errors import UserError, one_sentence_errors
from timm_preact.evaluation import eval_transform, load_model, open_images
from timm_preact.export import export
from timm_preact.files import write_atomically
from timm_preact.inference import optimize
from timm_preact.quantization import quantize

MODEL = 'preact_resnet20.cifar10'
RESULT = Path(__file__).parents[1] / 'benchmarks' / 'int8_preact_resnet20.json'
CALIBRATION, BATCH, THREADS = 500, 250, 2  # images, images a pass, of onnxruntime
TIMED_BATCHES = (1, 64)
SECONDS = 0.3  # a measurement takes at least


def session(path: Path) -> Any:
    """The file's network in onnxruntime, on a CPU."""
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    return onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])


def error(predict: Any, images: np.ndarray, labels: np.ndarray) -> float:
    """Top-1 error in percent of what makes logits of a batch."""
    batches = np.split(images, range(BATCH, len(images), BATCH))
    guesses = np.concatenate([np.asarray(predict(batch)).argmax(1) for batch in batches])
    return round(100 * float((guesses != labels).mean()), 4)


def milliseconds(network: Any, images: np.ndarray) -> float:
    """An image's, of a batch."""
    start, passes = time.perf_counter(), 0
    while time.perf_counter() - start < SECONDS:
        network.run(None, {'images': images})
        passes += 1
    return 1000 * (time.perf_counter() - start) / passes / len(images)


@one_sentence_errors
def main(
        data: str = typer.Option(help='CIFAR-10 as train.cifar reads it.'),
        rounds: int = typer.Option(7, help='Measurements of each time, in turn.'),
) -> None:
    """Errors of float32, bfloat16 and int8 on test images, times of two in onnxruntime; ranges from training images."""
    if rounds < 1:
        raise UserError(f'--rounds {rounds} measures nothing: choose 1 or more.')
    torch.set_num_threads(THREADS)
    model = load_model(MODEL)
    train, test = (open_images(data, split, eval_transform(model)) for split in ('train', 'test'))
    images, labels = (part.numpy() for part in next(iter(DataLoader(test, batch_size=len(test)))))
    bfloat16 = optimize(model, dtype=torch.bfloat16)

    def predict_bfloat16(batch: np.ndarray) -> np.ndarray:
        x = torch.from_numpy(batch).to(torch.bfloat16, memory_format=torch.channels_last)
        with torch.inference_mode():
            return bfloat16(x).float().numpy()

    with tempfile.TemporaryDirectory() as temporary:
        files = {kind: Path(temporary) / f'{kind}.onnx' for kind in ('float32', 'int8')}
        export(optimize(model), files['float32'])
        quantize(files['float32'], files['int8'], train.spread(CALIBRATION)[0].numpy())
        sessions = {kind: session(file) for kind, file in files.items()}
        sizes = {kind: file.stat().st_size for kind, file in files.items()}
    errors = {kind: error(lambda batch, s=s: s.run(None, {'images': batch})[0], images, labels)
              for kind, s in sessions.items()}
    errors['bfloat16'] = error(predict_bfloat16, images, labels)
    times: Dict[int, Dict[str, List[float]]] = {count: {kind: [] for kind in sessions} for count in TIMED_BATCHES}
    for _ in range(rounds):
        for count, measured in times.items():
            for kind, network in sessions.items():
                measured[kind].append(milliseconds(network, images[:count]))
    medians = {count: {kind: statistics.median(values) for kind, values in measured.items()}
               for count, measured in times.items()}
    RESULT.parent.mkdir(exist_ok=True)
    write_atomically(RESULT, json.dumps(dict(
        command=' '.join(['python -m train.quantization', *sys.argv[1:]]), model=MODEL, test_images=len(labels),
        calibration_images=CALIBRATION, error=errors, bytes=sizes,
        milliseconds_per_image={f'batch {count}': values for count, values in medians.items()},
        rounds={f'batch {count}': measured for count, measured in times.items()},
        versions=dict(python=platform.python_version(), torch=torch.__version__, timm=timm.__version__, **{
            package: version(package) for package in ('onnx', 'onnxruntime', 'onnxscript')}),
        hardware=hardware(torch.device('cpu')),
    ), indent=1).encode())
    print(', '.join(f'{kind} {value:.2f} %' for kind, value in errors.items()), f'error on {len(labels)} images')
    for count, values in medians.items():
        print(f'batch {count}:', ', '.join(f'{kind} {value:.3f} ms' for kind, value in values.items()), 'an image')


if __name__ == '__main__':
    typer.run(main)
