"""Write binary .t7 files as Lua Torch7 does, whole or wrong on purpose.

    write_torch7(path, module('nn.Sequential', modules=[
        module('cudnn.SpatialConvolution', weight=np.zeros((8, 3, 7, 7), 'float32'), kW=7, kH=7, dW=2, dH=2),
        module('cudnn.ReLU', inplace=True),
    ]))

Counterparts in Python: None, bool, int and float, str (latin-1) and bytes, dict, list and tuple (a table with keys from
1), TorchObject, Function, Storage, Tensor, and an array, which is a tensor with a storage of its own. What is met twice
(by `is`) is written once and referred to afterwards.
"""
import struct
from pathlib import Path
from typing import Any, NamedTuple, Optional, Sequence

import numpy as np

from timm_preact.weights.torch7 import TorchObject

__all__ = ['Function', 'Storage', 'Tensor', 'dump_torch7', 'flattened', 'module', 'write_torch7']

DTYPES = dict(Byte='u1', Char='i1', Short='<i2', Int='<i4', Long='<i8', Half='<f2', Float='<f4', Double='<f8')
KINDS = {np.dtype(dtype): kind for kind, dtype in DTYPES.items()}


class Storage:
    """Elements that tensors share.

    Args:
        elements: Anything with a dtype of its kind, flattened.
        kind: 'Float', 'CudaHalf', ...; 'Cuda' is float. None takes it from the dtype.
        count: What the file claims, if not the truth.
    """

    def __init__(self, elements: Any, kind: Optional[str] = None, count: Optional[int] = None):
        elements = np.asarray(elements)
        self.kind = kind or KINDS[elements.dtype.newbyteorder('<')]
        self.elements = np.ascontiguousarray(elements.reshape(-1), DTYPES[self.kind.removeprefix('Cuda') or 'Float'])
        self.count = self.elements.size if count is None else count


class Tensor:
    """A view on a storage, or an empty tensor without one.

    Args:
        storage: None for nil.
        sizes: One dimension over all of the storage where left out.
        strides: Of a contiguous tensor where left out.
        offset: Of the first element, from 1.
        kind: For a tensor that does not fit its storage, or has none.
    """

    def __init__(self, storage: Optional[Storage], sizes: Optional[Sequence[int]] = None,
                 strides: Optional[Sequence[int]] = None, offset: int = 1, kind: Optional[str] = None):
        self.storage = storage
        self.kind = kind or (storage.kind if storage else 'Float')
        self.sizes = list(sizes if sizes is not None else [storage.elements.size] if storage else [])
        if strides is None:
            strides = [int(np.prod(self.sizes[d + 1:], dtype=object)) for d in range(len(self.sizes))]
        self.strides = list(strides)
        self.offset = offset


class Function(NamedTuple):
    """A Lua function; types 6 and 7 are older than 8, and 6 has no index."""
    code: bytes = b'\x1bLua'
    upvalues: Any = ()
    type: int = 8


def module(class_name: str, **fields: Any) -> TorchObject:
    """module('nn.Sequential', modules=[...])."""
    return TorchObject(class_name, fields)


def flattened(arrays: Sequence[np.ndarray], kind: str = 'Cuda') -> list:
    """Tensors of one storage, one after the other, as getParameters() of nn leaves a network's."""
    storage = Storage(np.concatenate([array.reshape(-1) for array in arrays]), kind)
    ends = np.cumsum([array.size for array in arrays])
    return [Tensor(storage, a.shape, offset=int(end) - a.size + 1) for a, end in zip(arrays, ends, strict=True)]


class Writer:
    """Collects the bytes of objects."""

    def __init__(self, version: bool):
        self.version = version
        self.bytes = bytearray()
        self.written = {}  # id -> index and the object, which must live for its id to stay its own

    def put(self, form: str, *values: Any) -> None:
        self.bytes += struct.pack(f'<{form}', *values)

    def string(self, string: bytes) -> None:
        self.put('i', len(string))
        self.bytes += string

    def object(self, obj: Any) -> None:
        if obj is None:
            self.put('i', 0)
        elif isinstance(obj, bool):
            self.put('ii', 5, obj)
        elif isinstance(obj, (int, float)):
            self.put('id', 1, obj)
        elif isinstance(obj, (str, bytes)):
            self.put('i', 2)
            self.string(obj.encode('latin-1') if isinstance(obj, str) else obj)
        elif isinstance(obj, Function):
            self.referable(obj, obj.type, self.function, indexed=obj.type != 6)
        elif isinstance(obj, (dict, list, tuple)):
            self.referable(obj, 3, self.table)
        else:
            self.referable(obj, 4, self.torch_object)

    def referable(self, obj: Any, kind: int, write: Any, indexed: bool = True) -> None:
        self.put('i', kind)
        is_new = not indexed or id(obj) not in self.written
        if indexed:
            index, _ = self.written.setdefault(id(obj), (len(self.written) + 1, obj))
            self.put('i', index)
        if is_new:
            write(obj)

    def function(self, function: Function) -> None:
        self.string(function.code)
        self.object(function.upvalues)

    def table(self, table: Any) -> None:
        pairs = table.items() if isinstance(table, dict) else list(enumerate(table, 1))
        self.put('i', len(pairs))
        for key, value in pairs:
            self.object(key)
            self.object(value)

    def torch_object(self, obj: Any) -> None:
        if isinstance(obj, np.ndarray):
            obj = Tensor(Storage(obj), obj.shape) if obj.size else Tensor(None, kind=KINDS[obj.dtype])
        if self.version:
            self.string(b'V 1')
        if isinstance(obj, Storage):
            self.string(f'torch.{obj.kind}Storage'.encode())
            self.put('q', obj.count)
            self.bytes += obj.elements.tobytes()
        elif isinstance(obj, Tensor):
            self.string(f'torch.{obj.kind}Tensor'.encode())
            self.put('i', len(obj.sizes))
            self.put(f'{2 * len(obj.sizes) + 1}q', *obj.sizes, *obj.strides, obj.offset)
            self.object(obj.storage)
        else:
            self.string(obj.class_name.encode('latin-1'))
            self.object(obj.fields)


def dump_torch7(obj: Any, version: bool = True) -> bytes:
    """The content of a file with `obj`; without version, as files older than the version string have it."""
    writer = Writer(version)
    writer.object(obj)
    return bytes(writer.bytes)


def write_torch7(path: Any, obj: Any, version: bool = True) -> Path:
    """Write `dump_torch7` of the same arguments, and return the path."""
    Path(path).write_bytes(dump_torch7(obj, version))
    return Path(path)
