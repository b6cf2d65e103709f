"""Networks as files that run without this package: ONNX, torch.export, AOTInductor, TorchScript."""
import copy
import logging
import tempfile
import warnings
from contextlib import contextmanager
from pathlib import Path
from typing import Callable, Dict, Iterator, NamedTuple, Optional, Tuple, Union

import torch
from torch import nn

from .errors import COUNT, UserError
from .files import write_atomically
from .inference import ScaleShift, check_eval, keep_hooks
from .kernels import EPS, VARIANCE
from .quantization import quantize

__all__ = ['FORMATS', 'choose_format', 'export']


def export(
        model: nn.Module,
        path: Union[str, Path],
        format: Optional[str] = None,
        input_size: Optional[Tuple[int, int, int]] = None,
        batch_size: Optional[int] = None,
        int8: Optional[torch.Tensor] = None,
) -> None:
    """Write a network to one file, whole or not at all.

    Args:
        model: In eval mode; as created, or one that `timm_preact.inference.optimize` made.
        path: New file; its suffix names the format, .onnx, .pt2 (torch.export) or .pt and .ts (TorchScript).
        format: A name of `FORMATS`: 'aoti', compiled for this machine's device, has the suffix .pt2 too.
        input_size: (C, H, W) of the images; that of the model's config if not given. TorchScript takes any.
        batch_size: The only one that the file will take; any if not given. TorchScript takes any.
        int8: Images to calibrate on, (N, C, H, W) as the network takes them, for ONNX in 8-bit integers, see
            `timm_preact.quantization.quantize`; None for a file in the model's own numbers.

    Raises:
        UserError: The model is in training mode, or for ONNX not in float32; suffix, format and other arguments do not
            fit each other; a package or the compiler is missing; or no input size is known.
    """
    path = Path(path)
    format = choose_format(path, format, batch_size, int8 is not None)
    check_eval(model, 'export')
    if not path.parent.is_dir():
        raise UserError(f'{path.parent} is no folder: make it, or name a file in another.')
    COUNT.check('batch_size', batch_size)
    COUNT.check('input_size', input_size)
    input_size = input_size or getattr(model, 'pretrained_cfg', {}).get('input_size')
    if input_size is None:
        raise UserError('the model has no config that knows the size of its images: pass input_size=(C, H, W).')
    like = next(model.parameters())
    # a batch of 1 may be recorded as one that broadcasts, so where any size is asked for the example has 2
    images = torch.zeros(batch_size or 2, *input_size, dtype=like.dtype, device=like.device)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / path.name
        with torch.no_grad(), quiet():
            FORMATS[format].write(model, file, images, batch_size is None)
        if int8 is None:
            write_atomically(path, file.read_bytes())
        else:
            quantize(file, path, int8)


def choose_format(
        path: Path,
        format: Optional[str] = None,
        batch_size: Optional[int] = None,
        int8: bool = False,
) -> str:
    """The format of a new file, by its suffix where none is named.

    Args:
        path: The file.
        format: A name of `FORMATS`.
        batch_size: The only one that the file is to take.
        int8: The file is to compute in 8-bit integers.

    Raises:
        UserError: There is no such format, its files end otherwise, or it cannot be had so.
    """
    if format is None:
        format = next((name for name, known in FORMATS.items() if path.suffix in known.suffixes), None)
        if format is None:
            raise UserError(f'{path} names no format by its end: let it be .onnx, .pt2 (torch.export), .pt or .ts '
                            f'(TorchScript).')
    if format not in FORMATS:
        raise UserError(f'{format} is no format: choose {", ".join(FORMATS)}.')
    if path.suffix not in FORMATS[format].suffixes:
        raise UserError(f'a file of the format {format} ends in {" or ".join(FORMATS[format].suffixes)}: {path} does '
                        f'not.')
    if int8 and (format != 'onnx' or batch_size is not None):
        raise UserError('8-bit integers are for an .onnx file that takes any batch size: name no other format, and no '
                        'batch size.')
    return format


def record(model: nn.Module, images: torch.Tensor, any_batch: bool) -> torch.export.ExportedProgram:
    """The network as a graph."""
    return torch.export.export(model, (images,), dynamic_shapes=batch_of(any_batch))


def batch_of(any_batch: bool) -> Optional[Tuple[Dict]]:
    """What torch.export is told of the batch dimension."""
    return ({0: torch.export.Dim('batch')},) if any_batch else None


def write_onnx(model: nn.Module, file: Path, images: torch.Tensor, any_batch: bool) -> None:
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as e:
        raise UserError("ONNX needs packages that are missing: pip install 'timm-preact[export]'.") from e
    if images.dtype != torch.float32:
        raise UserError(f'ONNX is written in float32, not in {images.dtype}: export the model without a dtype.')
    # ONNX knows no memory format: of channels-last weights the exporter makes gathers by computed indices
    model = copy.deepcopy(model).to(memory_format=torch.contiguous_format)
    try:
        torch.onnx.export(
            with_batchnorms(model), (images,), str(file), dynamo=True, external_data=False, input_names=['images'],
            dynamic_shapes=batch_of(any_batch), verbose=False)
    except Exception as e:  # the exporter's errors and its libraries' share no class
        raise UserError(f'the ONNX exporter of torch {torch.__version__} fails on this network ({type(e).__name__}): '
                        f'install a newer torch (2.6 fails, 2.14 does not).') from e
    onnx.checker.check_model(str(file), full_check=True)


def with_batchnorms(module: nn.Module) -> nn.Module:
    """`module` with a BatchNorm for each `ScaleShift`, in place: one node, which runtimes know how to fuse."""
    for name, child in module.named_children():
        if isinstance(child, ScaleShift):
            norm = nn.BatchNorm2d(len(child.scale), eps=EPS, device=child.scale.device, dtype=child.scale.dtype).eval()
            norm.weight, norm.bias = child.scale, child.shift
            norm.running_var.fill_(VARIANCE)
            setattr(module, name, keep_hooks(child, nn.Sequential(norm, nn.ReLU()) if child.relu else norm))
        else:
            with_batchnorms(child)
    return module


@contextmanager
def quiet() -> Iterator[None]:
    """Keep from the user what the exporters say of their own insides, and of TorchScript as a whole."""
    logger = logging.getLogger('torch.onnx')
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter('ignore')
            yield
    finally:
        logger.setLevel(level)


def write_torch_export(model: nn.Module, file: Path, images: torch.Tensor, any_batch: bool) -> None:
    torch.export.save(record(model, images, any_batch), file)


def write_aoti(model: nn.Module, file: Path, images: torch.Tensor, any_batch: bool) -> None:
    from torch._inductor import aoti_compile_and_package
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler
    try:
        get_cpp_compiler()  # asked by itself: how the failure of a compilation is wrapped differs between versions
    except InvalidCxxCompiler as e:
        raise UserError('AOTInductor needs a C++ compiler: install g++, or name one in $CXX.') from e
    aoti_compile_and_package(record(model, images, any_batch), package_path=str(file))


def write_torchscript(model: nn.Module, file: Path, images: torch.Tensor, any_batch: bool) -> None:
    torch.jit.script(model).save(str(file))


class Format(NamedTuple):
    """A kind of file.

    Attributes:
        suffixes: Ends of its files' names.
        write: Called with the model, the file, images like those to come, and whether their number may be another.
    """
    suffixes: Tuple[str, ...]
    write: Callable[[nn.Module, Path, torch.Tensor, bool], None]


# the first one of a suffix is the one that it names
FORMATS = {
    'onnx': Format(('.onnx',), write_onnx),
    'torch-export': Format(('.pt2',), write_torch_export),
    'aoti': Format(('.pt2',), write_aoti),
    'torchscript': Format(('.pt', '.ts'), write_torchscript),
}
