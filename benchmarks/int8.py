"""What 8-bit integers cost preact_resnet20 and what they save, on the whole test set of CIFAR-10.

    python -m benchmarks.int8 --data DIR

Writes int8_preact_resnet20.json into benchmarks/results. About a minute on 2 cores.
"""
import statistics
import tempfile
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from torch.utils.data import DataLoader

from timm_preact.benchmark import alternate, seconds_per_call
from timm_preact.errors import COUNT, one_sentence_errors
from timm_preact.evaluation import eval_transform, load_model, open_images
from timm_preact.export import export
from timm_preact.files import write_json
from timm_preact.inference import optimize
from timm_preact.quantization import quantize
from train import places
from train.command import record_command

__all__ = ['main']

MODEL = 'preact_resnet20.cifar10'
CALIBRATION, BATCH, THREADS = 500, 250, 2  # images, images a pass, of onnxruntime
TIMED_BATCHES = (1, 64)


def open_session(path: Path) -> Any:
    """Open a file's network in onnxruntime, on a CPU."""
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = THREADS
    return onnxruntime.InferenceSession(path, options, providers=['CPUExecutionProvider'])


def measure_error(predict: Any, images: np.ndarray, labels: np.ndarray) -> float:
    """Measure the top-1 error in percent of what makes logits of a batch."""
    batches = np.split(images, range(BATCH, len(images), BATCH))
    guesses = np.concatenate([np.asarray(predict(batch)).argmax(1) for batch in batches])
    return round(100 * float((guesses != labels).mean()), 4)


def measure_milliseconds(network: Any, images: np.ndarray) -> float:
    """Measure the milliseconds an image of a batch."""
    return 1000 * seconds_per_call(lambda: network.run(None, {'images': images})) / len(images)


@one_sentence_errors
def main(
        data: str = typer.Option(help='CIFAR-10 as train.cifar reads it.'),
        rounds: Annotated[int, COUNT] = typer.Option(7, help='Measurements of each time, in turn.'),
) -> None:
    """Measure errors of float32, bfloat16 and int8 on test images, and times of two of them in onnxruntime."""
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
        sessions = {kind: open_session(file) for kind, file in files.items()}
        sizes = {kind: file.stat().st_size for kind, file in files.items()}
    errors = {kind: measure_error(lambda batch, s=s: s.run(None, {'images': batch})[0], images, labels)
              for kind, s in sessions.items()}
    errors['bfloat16'] = measure_error(predict_bfloat16, images, labels)
    times = {count: alternate({kind: partial(measure_milliseconds, network, images[:count])
                               for kind, network in sessions.items()}, rounds) for count in TIMED_BATCHES}
    medians = {count: {kind: statistics.median(values) for kind, values in measured.items()}
               for count, measured in times.items()}
    packages = 'onnx', 'onnxruntime', 'onnxscript'
    places.BENCHMARKS.mkdir(exist_ok=True)
    write_json(places.BENCHMARKS / 'int8_preact_resnet20.json', dict(
        record_command('python -m benchmarks.int8', torch.device('cpu'), *packages),
        model=MODEL, test_images=len(labels), calibration_images=CALIBRATION, error=errors, bytes=sizes,
        milliseconds_per_image={f'batch {count}': values for count, values in medians.items()},
        rounds={f'batch {count}': measured for count, measured in times.items()},
    ))
    print(', '.join(f'{kind} {value:.2f} %' for kind, value in errors.items()), f'error on {len(labels)} images')
    for count, values in medians.items():
        print(f'batch {count}:', ', '.join(f'{kind} {value:.3f} ms' for kind, value in values.items()), 'an image')


if __name__ == '__main__':
    typer.run(main)
