"""ONNX files in 8-bit integers, by what goes through the network on images of one's own; nothing is trained."""
import tempfile
from pathlib import Path
from typing import Any, Union

import numpy as np

from .errors import UserError
from .files import write_atomically

__all__ = ['quantize']

CALIBRATION_BATCH = 50


def quantize(onnx_path: Union[str, Path], path: Union[str, Path], images: Any) -> None:
    """Write an ONNX file's network in int8: weights by output channel, what flows between layers by tensor.

    Both are stored between pairs of QuantizeLinear and DequantizeLinear (QDQ), which runtimes turn into integer
    kernels. A BatchNorm that no convolution could take in becomes one of one weight a channel, so that the stream
    between the units stays in integers too.

    Args:
        onnx_path: A file that `timm_preact.export.export` wrote, of a float32 network.
        path: New file, whole or not there at all.
        images: A tensor or an array (N, C, H, W) of images prepared as the network takes them; some hundreds, not the
            test images. Ranges are the extremes seen on them.

    Raises:
        UserError: onnx or onnxruntime is missing, or the file or the images cannot be used.
    """
    try:
        import onnx
        from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process
    except ImportError as e:
        raise UserError("quantisation needs packages that are missing: pip install 'timm-preact[export]'.") from e
    onnx_path, path = Path(onnx_path), Path(path)
    if not onnx_path.is_file():
        raise UserError(f'{onnx_path} does not exist: name an .onnx file.')
    images = np.asarray(images, dtype=np.float32)
    try:
        (source,) = onnx.load(onnx_path).graph.input
    except Exception as e:  # protobuf's errors share no class with ours, ValueError comes from several inputs
        raise UserError(f'{onnx_path} is no network that takes images: export it again.') from e
    batch, *size = (dimension.dim_value for dimension in source.type.tensor_type.shape.dim)
    if list(images.shape[1:]) != size or not len(images):
        raise UserError(f'the images to calibrate on are {list(images.shape)}, the network takes some of {size}: '
                        f'prepare them as it takes them.')
    if batch:
        raise UserError(f'{onnx_path} takes batches of {batch} alone: export it without a batch size.')

    class Reader(CalibrationDataReader):
        """Calibration images as onnxruntime asks for them."""

        def __init__(self):
            self.batches = iter(np.split(images, range(CALIBRATION_BATCH, len(images), CALIBRATION_BATCH)))

        def get_next(self):
            some = next(self.batches, None)
            return None if some is None else {source.name: some}

    with tempfile.TemporaryDirectory() as folder:
        prepared, quantized = Path(folder) / 'prepared.onnx', Path(folder) / 'quantized.onnx'
        quant_pre_process(str(onnx_path), str(prepared), skip_symbolic_shape=True)
        network = onnx.load(prepared)
        norms_to_convolutions(network.graph)
        onnx.save(network, prepared)
        # signed weights and unsigned activations: the pair for which every layer has an integer kernel on a CPU
        quantize_static(
            prepared, quantized, Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
            activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8)
        write_atomically(path, quantized.read_bytes())


def norms_to_convolutions(graph: Any) -> None:
    """Write each BatchNormalization of an ONNX graph as a convolution of one weight a channel."""
    from onnx import helper, numpy_helper
    stored = {tensor.name: tensor for tensor in graph.initializer}
    replaced = set()
    for i, node in enumerate(graph.node):
        if node.op_type != 'BatchNormalization' or not all(name in stored for name in node.input[1:]):
            continue
        scale, shift, mean, var = (numpy_helper.to_array(stored[name]).astype(np.float64) for name in node.input[1:])
        eps = next((a.f for a in node.attribute if a.name == 'epsilon'), 1e-5)
        scale = scale / np.sqrt(var + eps)
        replaced.update(node.input[1:])
        names = []
        for kind, value in (('weight', scale.reshape(-1, 1, 1, 1)), ('bias', shift - scale * mean)):
            names.append(f'{node.output[0]}.{kind}')
            graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), names[-1]))
        graph.node[i].CopyFrom(helper.make_node(
            'Conv', [node.input[0], *names], [node.output[0]], node.name, kernel_shape=[1, 1], group=len(scale)))
    for name in replaced.difference(*(node.input for node in graph.node)):
        graph.initializer.remove(stored[name])
