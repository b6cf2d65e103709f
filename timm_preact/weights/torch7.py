"""Read a binary .t7 file of Lua Torch7 with NumPy alone; what a damaged or hostile file claims is checked first.

There is no specification: the facts below come from torch7's File.lua, generic/Tensor.c and generic/Storage.c, and from
its doc/serialization.md. Everything is little-endian, an int has 4 bytes and a long has 8.

    object    int type, then: 0 nil: nothing; 1 number: double; 2 string; 5 boolean: int; 6 function: code;
              3 table, 4 torch, 7 and 8 function: int index, and only where that index is new, the payload
    string    int length, bytes
    table     int count, then count times a key and a value, both objects
    torch     string 'V n' (absent in files older than it), string class name, then what that class writes:
              tensor: int ndim, long sizes[ndim], long strides[ndim], long offset (from 1), object storage or nil
              storage: long count, elements; any other class: a table
    code      string of dumped byte code, object with the upvalues
"""
import math
import mmap
import struct
from dataclasses import dataclass
from os import PathLike
from types import GeneratorType
from typing import Any, Dict, Generator, List, Optional, Union

import numpy as np

from . import WeightsError

__all__ = ['Torch7Error', 'TorchObject', 'read_torch7']

NIL, NUMBER, STRING, TABLE, TORCH, BOOLEAN, FUNCTION, LEGACY_CLOSURE, CLOSURE = range(9)
INT, LONG, DOUBLE = struct.Struct('<i'), struct.Struct('<q'), struct.Struct('<d')

MAX_NDIM = 16
MAX_DEPTH = 256  # ResNet-200 needs less than 30

DTYPES = {
    'Byte': np.dtype('u1'), 'Char': np.dtype('i1'), 'Short': np.dtype('<i2'), 'Int': np.dtype('<i4'),
    'Long': np.dtype('<i8'), 'Half': np.dtype('<f2'), 'Float': np.dtype('<f4'), 'Double': np.dtype('<f8'),
}
DTYPES.update({'Cuda' + kind.replace('Float', ''): dtype for kind, dtype in DTYPES.items()})  # CudaTensor is float
TENSORS = {f'torch.{kind}Tensor': dtype for kind, dtype in DTYPES.items()}
STORAGES = {f'torch.{kind}Storage': dtype for kind, dtype in DTYPES.items()}


class Torch7Error(WeightsError):
    """A file that cannot be read as Torch7; the message says what to do."""


@dataclass(eq=False)
class TorchObject:
    """An object of any class but tensors and storages. As in Lua, it equals only itself.

    Attributes:
        class_name: E.g. 'nn.Sequential'.
        fields: Its table, e.g. {'train': False, 'modules': {1: ..., 2: ...}}.
    """
    class_name: str
    fields: Dict[Any, Any]


class Reader:
    """Reads objects off a buffer, front to back.

    A container is a generator that yields when it needs its next child: `read` keeps the waiting ones in a list, so
    that a deep file meets MAX_DEPTH and never Python's recursion limit.
    """

    def __init__(self, path: Union[str, PathLike], buffer: mmap.mmap):
        self.path = path
        self.buffer = buffer
        self.start = self.end = 0  # of the item read last
        self.objects: Dict[int, Any] = {}
        self.storages: Dict[int, np.ndarray] = {}

    def error(self, what: str) -> Torch7Error:
        return Torch7Error(f'{self.path} is no whole Torch7 file ({what}, byte {self.start}): fetch it again.')

    def take(self, size: int, what: str) -> int:
        """Start of the next `size` bytes, which are in the file."""
        self.start = self.end
        if not 0 <= size <= len(self.buffer) - self.start:
            raise self.error(f'{what} does not fit into the file')
        self.end += size
        return self.start

    def number(self, form: struct.Struct) -> Any:
        return form.unpack_from(self.buffer, self.take(form.size, 'a number'))[0]

    def string(self) -> str:
        size = self.number(INT)
        start = self.take(size, f'a string of {size} bytes')
        return self.buffer[start:start + size].decode('latin-1')

    def read(self) -> Any:
        waiting: List[Generator] = []
        value = self.object()
        while waiting or isinstance(value, GeneratorType):
            if isinstance(value, GeneratorType):
                if len(waiting) == MAX_DEPTH:
                    raise self.error(f'objects nest deeper than {MAX_DEPTH}')
                waiting.append(value)
                value = None
            try:
                waiting[-1].send(value)
            except StopIteration as finished:
                waiting.pop()
                value = finished.value
            else:
                value = self.object()
        return value

    def object(self) -> Any:
        """The next object; of a container, the generator that will return it."""
        kind = self.number(INT)
        if kind == NIL:
            return None
        if kind == NUMBER:
            return self.number(DOUBLE)
        if kind == STRING:
            return self.string()
        if kind == BOOLEAN:
            return self.boolean()
        if kind == FUNCTION:
            return self.function()
        if kind not in (TABLE, TORCH, LEGACY_CLOSURE, CLOSURE):
            raise self.error(f'{kind} is no type of object')
        index = self.number(INT)
        if index in self.objects:
            return self.objects[index]
        if kind == TABLE:
            return self.table(index)
        if kind == TORCH:
            return self.torch_object(index)
        self.objects[index] = None
        return self.function()

    def boolean(self) -> bool:
        value = self.number(INT)
        if value not in (0, 1):
            raise self.error(f'{value} is no boolean')
        return value == 1

    def function(self) -> Generator:
        size = self.number(INT)
        self.take(size, f'a function of {size} bytes')
        yield

    def table(self, index: int) -> Generator:
        table = self.objects[index] = {}
        count = self.number(INT)
        if not 0 <= count <= (len(self.buffer) - self.end) // (2 * INT.size):  # each key and value has at least a type
            raise self.error(f'a table of {count} pairs does not fit into the file')
        for _ in range(count):
            key = self.key((yield))
            if key in table:  # True and 1 are one key to Python
                raise self.error(f'a table has the key {key!r:.80} twice')
            table[key] = yield
        return table

    def key(self, key: Any) -> Union[str, bool, int]:
        if isinstance(key, float) and key.is_integer() and abs(key) < 1 << 53:  # beyond, integers hash alike
            return int(key)
        if not isinstance(key, (str, bool)):
            raise self.error(f'a table has a key that is no string, boolean or integer but {type(key).__name__}')
        return key

    def class_name(self) -> str:
        name = self.string()
        return self.string() if name.startswith('V ') else name

    def torch_object(self, index: int) -> Any:
        class_name = self.class_name()
        if class_name in STORAGES:
            return self.storage(index, STORAGES[class_name])
        if class_name in TENSORS:
            return self.tensor(index, TENSORS[class_name])
        return self.instance(index, class_name)

    def instance(self, index: int, class_name: str) -> Generator:
        instance = self.objects[index] = TorchObject(class_name, {})
        fields = yield
        if not isinstance(fields, dict):
            raise self.error(f'what follows the class name {class_name!r:.80} is no table')
        instance.fields = fields
        return instance

    def storage(self, index: int, dtype: np.dtype) -> np.ndarray:
        count = self.number(LONG)
        start = self.take(count * dtype.itemsize, f'a storage of {count} elements')
        storage = np.frombuffer(self.buffer, dtype, count, start)
        self.objects[index] = self.storages[index] = storage
        return storage

    def storage_of_tensor(self, dtype: np.dtype) -> Optional[np.ndarray]:
        kind = self.number(INT)
        if kind == NIL:
            return None
        index = self.number(INT)
        if kind == TORCH and index not in self.objects:
            class_name = self.class_name()
            if class_name in STORAGES:
                self.storage(index, STORAGES[class_name])
        if index not in self.storages or self.storages[index].dtype != dtype:
            raise self.error(f'a tensor of {dtype} has no storage of {dtype}')
        return self.storages[index]

    def tensor(self, index: int, dtype: np.dtype) -> np.ndarray:
        self.objects[index] = None  # so that it cannot be its own storage
        ndim = self.number(INT)
        if not 0 <= ndim <= MAX_NDIM:
            raise self.error(f'a tensor has {ndim} dimensions')
        sizes = [self.number(LONG) for _ in range(ndim)]
        strides = [self.number(LONG) for _ in range(ndim)]
        offset = self.number(LONG)
        storage = self.storage_of_tensor(dtype)
        if ndim == 0:  # how Torch7 writes an empty tensor, with or without a storage
            sizes, strides, offset, storage = [0], [1], 1, np.frombuffer(self.buffer, dtype, 0)
        elif storage is None:
            raise self.error(f'a tensor of sizes {sizes} has no storage')
        else:
            self.check_view(sizes, strides, offset, storage.size)
        # The stride of a dimension of 1 means nothing, so nothing bounds it
        steps = [stride * dtype.itemsize if size > 1 else 0 for size, stride in zip(sizes, strides, strict=True)]
        view = np.ndarray(sizes, dtype, storage, (offset - 1) * dtype.itemsize, steps)
        self.objects[index] = view
        return view

    def check_view(self, sizes: List[int], strides: List[int], offset: int, count: int) -> None:
        """Raise unless a view lies in its storage, and has no more elements, which a stride of 0 would allow."""
        last = offset + sum((size - 1) * stride for size, stride in zip(sizes, strides, strict=True))
        if min(sizes) < 1 or min(strides) < 0 or offset < 1 or max(last, math.prod(sizes)) > count:
            raise self.error(f'a tensor of sizes {sizes}, strides {strides} and offset {offset} does not fit into its '
                             f'storage of {count} elements')


def read_torch7(path: Union[str, PathLike]) -> Any:
    """The object in a little-endian 64-bit binary .t7 file, as torch.save of Lua Torch writes them.

    nil is None, a number a float, a boolean a bool and a string a str with one character a byte (latin-1). A table is a
    dict, its integral keys ints. A function is None: its code is skipped. A tensor is a read-only array that views the
    mapped file, without a copy, maybe unaligned (so copy before torch sees it); tensors of one storage share memory. A
    storage is an array of one dimension. What the file refers to twice is one object, and may contain itself.

    Bytes after the object are ignored: Torch appends further objects to a file in the same way. Leave the file as it
    is while its arrays are in use.

    Raises:
        Torch7Error: The file is damaged, or no such file.
        OSError: The file cannot be opened.
    """
    with open(path, 'rb') as file:
        try:
            buffer = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as e:
            raise Torch7Error(f'{path} is empty or a pipe: name a file that was fetched whole.') from e
    if buffer[:4].startswith((b'PK\3\4', b'\x80\2', b'\x80\3', b'\x80\4', b'\x80\5')):  # zip, pickle
        raise Torch7Error(f'{path} is a checkpoint of PyTorch, not of Lua Torch7: rename it to .pth.')
    if len(buffer) < INT.size or not NIL <= INT.unpack(buffer[:4])[0] <= CLOSURE:
        raise Torch7Error(f'{path} is no binary Torch7 file: fetch it again, or name one that torch.save of Lua Torch '
                          f'wrote on a 64-bit machine in its default format.')
    return Reader(path, buffer).read()
