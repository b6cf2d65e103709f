"""Torch7 files: what the format holds is read as it was written, and nothing that a wrong file claims is believed.

The mutations are drawn from a seeded random.Random: hypothesis is no dependency, and shrinking has little to say about
bytes that nobody wrote.
"""
import random
import struct
import time
import tracemalloc

import numpy as np
import pytest
from support.torch7_writer import Function, Storage, Tensor, dump_torch7, flattened, module, write_torch7

from timm_preact.errors import UserError
from timm_preact.weights.torch7 import MAX_DEPTH, MAX_NDIM, Torch7Error, TorchObject, read_torch7

DTYPES = dict(Byte='u1', Char='i1', Short='i2', Int='i4', Long='i8', Half='f2', Float='f4', Double='f8')
KINDS = dict(DTYPES, **{'Cuda' + kind.replace('Float', ''): dtype for kind, dtype in DTYPES.items()})
HUGE = 2**31 - 1
EXTREMES = [-1, 0, 1, 2, 3, 4, 6, 8, 16, 17, 255, 2**15, 2**24, 2**31 - 1, -2**31, 2**31, 2**32, 2**53, 2**61, 2**62,
            2**63 - 1, -2**63]


def pack(form, *values):
    return struct.pack(f'<{form}', *values)


@pytest.fixture
def round_trip(tmp_path):
    return lambda obj, **kwargs: read_torch7(write_torch7(tmp_path / 'x.t7', obj, **kwargs))


@pytest.fixture
def refused(tmp_path):
    """Check that a content is refused in one sentence that names the file, and return the sentence."""
    def check(content):
        path = tmp_path / 'wrong.t7'
        path.write_bytes(content if isinstance(content, bytes) else dump_torch7(content))
        with pytest.raises(Torch7Error) as e:
            read_torch7(path)
        message = str(e.value)
        assert message.startswith(f'{path} ') and message.endswith('.') and '\n' not in message and len(message) < 2000
        return message
    return check


def conv(weight, bias, stride=1):
    out_chs, in_chs, kernel, _ = weight.sizes
    return module('cudnn.SpatialConvolution', weight=weight, bias=bias, nInputPlane=in_chs, nOutputPlane=out_chs,
                  kW=kernel, kH=kernel, dW=stride, dH=stride, padW=kernel // 2, padH=kernel // 2, groups=1, train=False)


def batch_norm(weight, bias, mean, var):
    return module('nn.SpatialBatchNormalization', weight=weight, bias=bias, running_mean=mean, running_var=var,
                  eps=1e-5, momentum=.1, affine=True)


def small_network():
    """A transition as the published ResNet-200 has it, in miniature: live, on CUDA, every tensor in one storage."""
    rng = np.random.default_rng(0)
    shapes = 3 * [(2,)] + [(2,), (4, 2, 1, 1), (4,), (4, 2, 1, 1), (4,), (4,), (4,), (4,), (4,), (3, 4), (3,)]
    values = flattened([rng.standard_normal(shape) for shape in shapes])
    relu = module('cudnn.ReLU', inplace=True, mode='CUDNN_ACTIVATION_RELU', output=Tensor(None, kind='Cuda'))
    branch = module('nn.Sequential', modules=[batch_norm(*values[:4]), relu, conv(*values[4:6], stride=2)])
    shortcut = module('nn.Sequential', modules=[conv(*values[6:8], stride=2), batch_norm(*values[8:12])])
    network = module('nn.Sequential', train=False, name=None, modules=[
        module('nn.ConcatTable', modules=[branch, shortcut]),
        module('nn.CAddTable', inplace=True, gradInput={}),
        relu,
        module('nn.View', size=Storage([-1, 4], 'Long'), numElements=4),
        module('nn.Linear', weight=values[12], bias=values[13], gradWeight=np.zeros((3, 4), 'float32')),
        module('nn.Copy', intype='torch.CudaTensor', hook=Function(upvalues=[{'name': 'x', 'id': 1., 'value': relu}])),
    ])
    network.fields['self'] = network
    return network


def children(obj):
    if isinstance(obj, TorchObject):
        return [obj.fields]
    return list(obj.values()) if isinstance(obj, dict) else []


def arrays_in(obj):
    """Every array that can be reached, once."""
    seen, queue = {}, [obj]
    while queue:
        obj = queue.pop()
        if id(obj) not in seen:
            seen[id(obj)] = obj
            queue += children(obj)
    return [obj for obj in seen.values() if isinstance(obj, np.ndarray)]


@pytest.mark.parametrize('kind', KINDS)
def test_a_tensor_of_every_kind_is_read(round_trip, kind):
    values = np.array([[0, 1, 2], [3, 100, 127]], KINDS[kind])
    read = round_trip(Tensor(Storage(values, kind), (2, 3)))
    assert read.dtype == values.dtype
    np.testing.assert_array_equal(read, values)


def test_the_tensor_without_a_kind_on_cuda_is_float(round_trip):
    content = dump_torch7(Tensor(Storage([.5], 'Cuda')))
    assert b'torch.CudaTensor' in content and b'torch.CudaStorage' in content
    assert round_trip(Tensor(Storage([.5], 'Cuda'))).dtype == np.float32


@pytest.mark.parametrize('value', [0., -1.5, float('inf'), 2.**60, '', 'nn.View', 'a\0\xff', True, False, None])
def test_plain_values_are_read(round_trip, value):
    read = round_trip(value)
    assert read == value and type(read) is type(value)
    assert round_trip({'key': value})['key'] == value


def test_bytes_of_a_string_survive(round_trip):
    assert round_trip(bytes(range(256))).encode('latin-1') == bytes(range(256))


def test_keys_of_a_table_are_strings_integers_and_booleans(round_trip):
    read = round_trip({'a': 1, 1: 'b', -2.: 'c', False: 'd', 2.**40: 'e'})
    assert read == {'a': 1., 1: 'b', -2: 'c', False: 'd', 2**40: 'e'}
    assert sorted(type(key).__name__ for key in read) == ['bool', 'int', 'int', 'int', 'str']
    assert round_trip(['x', 'y']) == {1: 'x', 2: 'y'}


def test_an_object_has_its_class_and_fields(round_trip):
    read = round_trip(module('nn.Sequential', train=True, modules=[module('nn.Identity')]))
    assert read.class_name == 'nn.Sequential' and read.fields['train'] is True
    assert read.fields['modules'][1].class_name == 'nn.Identity'


def test_a_file_older_than_the_version_string_is_read(round_trip):
    obj = module('nn.Linear', weight=np.ones((2, 2), 'float32'))
    assert dump_torch7(obj).count(b'V 1') == 3 and dump_torch7(obj, version=False).count(b'V 1') == 0
    read = round_trip(obj, version=False)
    assert read.class_name == 'nn.Linear' and read.fields['weight'].sum() == 4


def test_tensors_of_one_storage_share_its_memory(round_trip):
    storage = Storage(np.arange(24), 'Float')
    views = dict(
        storage=storage,
        matrix=Tensor(storage, (2, 3), offset=5),
        transposed=Tensor(storage, (3, 2), (1, 3), offset=5),
        column=Tensor(storage, (4,), (6,), offset=6),
        same=Tensor(storage, (2, 2), (0, 1), offset=24 - 1),
        single=Tensor(storage, (1, 2), (2**62, 1), offset=1),
    )
    read = round_trip(views)
    np.testing.assert_array_equal(read['storage'], np.arange(24))
    np.testing.assert_array_equal(read['matrix'], [[4, 5, 6], [7, 8, 9]])
    np.testing.assert_array_equal(read['transposed'], read['matrix'].T)
    np.testing.assert_array_equal(read['column'], [5, 11, 17, 23])
    np.testing.assert_array_equal(read['same'], [[22, 23], [22, 23]])
    np.testing.assert_array_equal(read['single'], [[0, 1]])
    assert all(np.shares_memory(read['storage'], view) for view in read.values())


def test_a_flattened_network_keeps_its_shapes_and_values(round_trip):
    arrays = [np.random.default_rng(i).standard_normal(shape).astype('f4') for i, shape in enumerate([(2, 3), (4,)])]
    for read, array in zip(round_trip(flattened(arrays)).values(), arrays, strict=True):
        np.testing.assert_array_equal(read, array)


@pytest.mark.parametrize('storage', [None, Storage([1.], 'Float'), Storage([], 'Float')])
def test_a_tensor_without_dimensions_is_empty(round_trip, storage):
    read = round_trip(Tensor(storage, ()))
    assert read.shape == (0,) and read.dtype == np.float32 and not read.flags.writeable


def test_an_empty_storage_is_read(round_trip):
    assert round_trip(Storage([], 'Long')).shape == (0,)


def test_arrays_are_views_that_cannot_be_written(round_trip):
    tracemalloc.start()
    read = round_trip({'x': np.ones((1000, 1000), 'float32')})
    tracemalloc.reset_peak()
    read = round_trip({'x': np.ones((1, 1), 'float32'), 'y': read['x']})
    size, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert size < 1e6 and not read['y'].flags.owndata
    with pytest.raises(ValueError, match='read-only'):
        read['y'][0, 0] = 0
    with pytest.raises(ValueError, match='WRITEABLE'):
        read['y'].flags.writeable = True


def test_what_is_referred_to_twice_is_one_object(round_trip):
    table, identity, tensor = {'a': 1}, module('nn.Identity'), Tensor(Storage([1., 2.], 'Double'))
    read = round_trip([table, identity, tensor, table, identity, tensor])
    assert all(read[i] is read[i + 3] for i in (1, 2, 3))


def test_tables_and_objects_may_contain_themselves(round_trip):
    table, parent = {}, module('nn.Sequential')
    table['self'] = table
    parent.fields.update(modules=[module('nn.Identity', parent=parent)], table=table)
    read = round_trip(parent)
    assert read.fields['modules'][1].fields['parent'] is read
    assert read.fields['table']['self'] is read.fields['table']
    assert repr(read)


@pytest.mark.parametrize('type', [6, 7, 8])
def test_functions_are_skipped(round_trip, type):
    function = Function(b'\x1bLua' + bytes(100), [1., {'value': 'up'}], type)
    assert round_trip([function, 'between', function, 'after']) == {1: None, 2: 'between', 3: None, 4: 'after'}


def test_a_function_may_be_its_own_upvalue(round_trip):
    upvalues = []
    function = Function(upvalues=upvalues)
    upvalues.append({'name': 'recurse', 'value': function})
    assert round_trip([function, 'after']) == {1: None, 2: 'after'}


def test_what_follows_the_first_object_is_ignored(tmp_path):
    (tmp_path / 'x.t7').write_bytes(dump_torch7('first') + dump_torch7('second') + b'\xff')
    assert read_torch7(tmp_path / 'x.t7') == 'first'
    assert read_torch7(str(tmp_path / 'x.t7')) == 'first'


def assert_agrees(ours, theirs, seen):
    """Compare with what torchfile returns, along every edge once."""
    if (id(ours), id(theirs)) in seen:
        return
    seen.add((id(ours), id(theirs)))
    if isinstance(ours, TorchObject):
        assert theirs.torch_typename().decode() == ours.class_name
        assert_agrees(ours.fields, theirs._obj, seen)
    elif isinstance(ours, dict):
        theirs = {key.decode() if isinstance(key, bytes) else key: value for key, value in theirs.items()}
        assert theirs.keys() == ours.keys()
        for key in ours:
            assert_agrees(ours[key], theirs[key], seen)
    elif isinstance(ours, np.ndarray):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
    elif isinstance(ours, str):
        assert ours.encode('latin-1') == theirs
    else:
        assert ours == theirs or type(theirs).__name__ == 'LuaFunction'


def test_an_independent_reader_agrees(tmp_path):
    torchfile = pytest.importorskip('torchfile')
    network = small_network()
    kinds = [kind for kind in KINDS if 'Half' not in kind and kind != 'CudaLong']  # torchfile reads no others
    network.fields['kinds'] = {kind: Tensor(Storage(np.arange(6), kind), (2, 2), (3, 1), 2) for kind in kinds}
    path = write_torch7(tmp_path / 'x.t7', network)
    seen = set()
    assert_agrees(read_torch7(path), torchfile.load(path, use_list_heuristic=False), seen)
    assert len(seen) > 80


@pytest.mark.parametrize('content', [b'\3', b'no weights at all\n', b'4\n1\n3\nV 1\n13\nnn.Sequential\n',
                                     b'<!DOCTYPE html>', b'\x89HDF\r\n\x1a\n', b'\0\0\0\4\0\0\0\1'])
def test_a_file_that_is_no_binary_torch7_is_refused(refused, content):
    assert 'is no binary Torch7 file: fetch it again' in refused(content)


def test_an_empty_file_is_refused(refused):
    assert 'is empty' in refused(b'')


@pytest.mark.parametrize('zipped', [True, False])
def test_a_checkpoint_of_pytorch_is_refused(tmp_path, refused, zipped):
    torch = pytest.importorskip('torch')
    torch.save({'x': torch.ones(2)}, tmp_path / 'x.pth', _use_new_zipfile_serialization=zipped)
    assert 'is a checkpoint of PyTorch' in refused((tmp_path / 'x.pth').read_bytes())


def test_a_file_that_cannot_be_opened_is_an_oserror(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_torch7(tmp_path / 'missing.t7')
    with pytest.raises(OSError):
        read_torch7(tmp_path)
    assert issubclass(Torch7Error, UserError)


@pytest.mark.parametrize('content', [
    pack('ii', 2, HUGE) + b'abc', pack('ii', 2, -1) + b'abc', pack('ii', 2, 4) + b'abc',
    pack('iii', 4, 1, HUGE) + b'V 1', pack('iii', 4, 1, 3) + b'V 1' + pack('i', HUGE),
], ids=['string', 'negative', 'one byte', 'version', 'class name'])
def test_a_string_that_does_not_fit_is_refused(refused, content):
    assert 'a string of' in refused(content) and 'does not fit' in refused(content)


@pytest.mark.parametrize('count', [HUGE, -1, -2**31, 3])
def test_a_table_that_does_not_fit_is_refused(refused, count):
    two_pairs = dump_torch7({True: True, False: False})
    assert f'a table of {count} pairs' in refused(two_pairs[:8] + pack('i', count) + two_pairs[12:28])


@pytest.mark.parametrize('header', [pack('i', 6), pack('ii', 7, 1), pack('ii', 8, 1)], ids=['6', '7', '8'])
@pytest.mark.parametrize('size', [HUGE, -1])
def test_a_function_that_does_not_fit_is_refused(refused, header, size):
    assert 'a function of' in refused(header + pack('i', size))


@pytest.mark.parametrize('count', [3, -1, 2**31, 2**60, 2**61, 2**62, 2**63 - 1, -2**63])
def test_a_storage_that_does_not_fit_is_refused(refused, count):
    assert f'a storage of {count} elements' in refused(Storage([1., 2.], 'Double', count=count))


@pytest.mark.parametrize('wrong', [
    dict(sizes=[7]), dict(sizes=[6], offset=2), dict(sizes=[2], offset=6), dict(sizes=[2, 3], strides=[4, 1]),
    dict(offset=0), dict(offset=-5), dict(offset=7), dict(offset=2**63 - 1), dict(offset=-2**63),
    dict(sizes=[0, 2]), dict(sizes=[-1]), dict(sizes=[-1, -6]), dict(sizes=[2**62, 4]),
    dict(sizes=[7], strides=[0]), dict(sizes=[2, 4], strides=[0, 1]), dict(sizes=[2**63 - 1], strides=[0]),
    dict(sizes=[2**32, 2**32], strides=[0, 0]), dict(sizes=[2, 2], strides=[2**62, 2**62]),
    dict(sizes=[2], strides=[2**63 - 1]), dict(sizes=[3, 2], strides=[-2**63, 1]),
    dict(sizes=[2], strides=[-1], offset=6), dict(sizes=[1, 2], strides=[-1, 1]),
    dict(sizes=[1] * (MAX_NDIM + 1)), dict(sizes=[1] * 1000),
], ids=str)
def test_a_tensor_that_leaves_its_storage_is_refused(refused, wrong):
    assert 'a tensor ' in refused(Tensor(Storage(np.arange(6.), 'Float'), **wrong))


@pytest.mark.parametrize('ndim', [-1, HUGE])
def test_a_number_of_dimensions_that_cannot_be_is_refused(refused, ndim):
    content = dump_torch7(Tensor(Storage([1.], 'Float')))
    at = content.index(b'FloatTensor') + len('FloatTensor')
    assert f'a tensor has {ndim} dimensions' in refused(content[:at] + pack('i', ndim) + content[at + 4:])


@pytest.mark.parametrize('storage', [
    None, Storage([1., 2.], 'Double'), module('nn.Identity'), Tensor(Storage([1., 2.], 'Float')), [1., 2.], 1.,
], ids=['nil', 'another kind', 'an object', 'a tensor', 'a table', 'a number'])
def test_a_tensor_of_something_that_is_not_its_storage_is_refused(refused, storage):
    assert 'has no storage' in refused(Tensor(storage, (2,), kind='Float'))


def test_a_tensor_cannot_be_the_storage_of_itself_or_of_another(refused):
    first = Tensor(Storage([1., 2.], 'Float'), (2,), (0,))
    itself = Tensor(None, (2,))
    itself.storage = itself
    assert 'has no storage' in refused([first, Tensor(first, (2,), kind='Float')])
    assert 'has no storage' in refused(itself)


@pytest.mark.parametrize('key', [.5, float('nan'), float('inf'), 2.**53, -2.**1000, None, (), Function()], ids=repr)
def test_a_key_that_is_neither_string_nor_integer_nor_boolean_is_refused(refused, key):
    assert 'has a key that is no' in refused({key: 1.})


def test_a_key_that_is_there_twice_is_refused(refused):
    one, true = pack('id', 1, 1.), pack('ii', 5, 1)
    nil = pack('i', 0)
    assert 'twice' in refused(pack('iii', 3, 1, 2) + one + nil + true + nil)
    long = dump_torch7('x' * 10000)
    assert 'twice' in refused(pack('iii', 3, 1, 2) + long + nil + long + nil)


@pytest.mark.parametrize('kind', [9, -1, HUGE, 0x80])
def test_a_type_that_is_none_is_refused(refused, kind):
    assert 'is no type of object' in refused(pack('iii', 3, 1, 1) + dump_torch7('key') + pack('id', kind, 0.))


def test_a_boolean_that_is_none_is_refused(refused):
    assert '2 is no boolean' in refused(pack('ii', 5, 2))


@pytest.mark.parametrize('payload', [1., 'x', None, np.ones(1)], ids=['number', 'string', 'nil', 'tensor'])
def test_an_object_whose_payload_is_no_table_is_refused(refused, payload):
    assert 'is no table' in refused(TorchObject('tds.Hash', payload))


def nested(depth, kind):
    levels = {
        'tables': lambda i: pack('iiiid', 3, i, 1, 1, 1.),
        'keys': lambda i: pack('iii', 3, i, 1),
        'objects': lambda i: pack('iii', 4, i, 3) + b'V 1' + pack('i', 1) + b'x',
        'functions': lambda i: pack('iii', 8, i, 0),
        'old functions': lambda i: pack('ii', 6, 0),
    }
    return b''.join(levels[kind](i) for i in range(depth)) + pack('i', 0)


@pytest.mark.parametrize('kind', ['tables', 'keys', 'objects', 'functions', 'old functions'])
def test_deep_nesting_is_refused_however_little_stack_is_left(refused, kind):
    def deep_in_the_stack(frames):
        return refused(nested(100_000, kind)) if frames == 0 else deep_in_the_stack(frames - 1)
    assert f'objects nest deeper than {MAX_DEPTH}' in deep_in_the_stack(600)


def test_nesting_up_to_the_limit_is_read(tmp_path):
    (tmp_path / 'x.t7').write_bytes(nested(MAX_DEPTH, 'tables'))
    read, depth = read_torch7(tmp_path / 'x.t7'), 0
    while read is not None:
        read, depth = read[1], depth + 1
    assert depth == MAX_DEPTH


def test_a_file_cut_at_any_byte_is_refused(refused):
    content = dump_torch7(small_network())
    for size in range(len(content)):
        refused(content[:size])


def peak_of(path):
    """What a reading returns, and the most memory it took on the way; None for a file that is refused."""
    tracemalloc.start()
    try:
        read = read_torch7(path)
    except Torch7Error:
        read = None
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return read, peak


@pytest.mark.parametrize('content', [
    pack('ii', 2, HUGE), pack('iii', 3, 1, HUGE), pack('iii', 8, 1, HUGE), pack('iii', 4, 1, HUGE),
    dump_torch7(Storage([1.], 'Double', count=2**40)), dump_torch7(Storage([1.], 'Byte', count=2**33)),
    dump_torch7(Tensor(Storage([1.], 'Double'), (2**40,), (0,))),
    dump_torch7(Tensor(Storage([1.], 'Double'), [1] * 1000)),
], ids=['string', 'table', 'function', 'class name', 'storage', 'bytes', 'tensor', 'dimensions'])
def test_a_claim_allocates_nothing(tmp_path, content):
    (tmp_path / 'x.t7').write_bytes(content)
    read, peak = peak_of(tmp_path / 'x.t7')
    assert read is None and peak < 100_000


@pytest.mark.parametrize('make', [
    lambda n: pack('iii', 3, 0, n) + b''.join(pack('idiii', 1, i, 3, i + 1, 0) for i in range(n)),
    lambda n: pack('iii', 3, 0, n) + b''.join(pack('idi', 1, float(i << 20), 0) for i in range(n)),
    lambda n: pack('iii', 3, 0, n) + b''.join(pack('iidi', 2, 8, i, 0) for i in range(n)),
    lambda n: dump_torch7([module('x') for _ in range(n)], version=False),
], ids=['tables', 'integers', 'strings', 'objects'])
def test_many_small_objects_take_time_and_memory_in_proportion_to_the_file(tmp_path, make):
    def cost(n):
        path = tmp_path / f'{n}.t7'
        path.write_bytes(make(n))
        start = time.process_time()
        assert len(read_torch7(path)) == n
        seconds = time.process_time() - start
        return seconds, peak_of(path)[1] / path.stat().st_size
    small, large = cost(1000), cost(20_000)
    assert large[0] < 20 * 10 * small[0] + .1 and large[1] < 32


def mutate(rng, content):
    """One to three wrong places: bits, ends, insertions, removals, copies, and integers of extreme value."""
    content = bytearray(content)
    # Where three bytes of 0 follow one, there is a type, an index, a count, a length or a size more often than not
    integers = [i for i in range(len(content) - 3) if content[i + 1:i + 4] == b'\0\0\0']
    for _ in range(rng.choice((1, 1, 1, 2, 3))):
        at, other = rng.randrange(len(content)), rng.randrange(len(content))
        length = rng.choice((1, 4, 8, rng.randrange(1, 200)))
        how = rng.choice(('flip', 'cut', 'insert', 'remove', 'splice', 'repeat', 'int', 'int', 'long', 'long'))
        if how in ('int', 'long') and rng.random() < .8:
            at = rng.choice(integers)
        if how == 'flip':
            content[at] ^= 1 << rng.randrange(8)
        elif how == 'cut':
            del content[max(at, 1):]
        elif how == 'insert':
            content[at:at] = rng.randbytes(length)
        elif how == 'remove':
            del content[at:at + length]
        elif how == 'splice':
            content[at:at + length] = content[other:other + length]
        elif how == 'repeat':
            content[at:at] = content[other:other + length]
        else:
            bits = 32 if how == 'int' else 64
            value = rng.choice(EXTREMES) if rng.random() < .7 else rng.randrange(64)
            content[at:at + bits // 8] = (value % (1 << bits)).to_bytes(bits // 8, 'little')
        if len(content) < 4:
            break
        integers = [i for i in integers if i < len(content)] or [0]
    return bytes(content)


def fuzz(tmp_path, count, seed):
    """Read mutated files; every one is refused in a sentence or read whole, soon, and in memory like its size.

    Returns:
        How many were read.
    """
    rng = random.Random(seed)
    originals = [dump_torch7(small_network(), version=version) for version in (True, False)]
    path = tmp_path / 'mutated.t7'
    num_read = 0
    for i in range(count):
        content = mutate(rng, originals[i % 2])
        path.write_bytes(content)
        start = time.process_time()
        try:
            read = read_torch7(path)
        except Torch7Error as e:
            assert str(path) in str(e)
        else:
            num_read += 1
            for array in arrays_in(read):
                assert array.size <= len(content) and not array.flags.writeable
                with np.errstate(all='ignore'):
                    array.sum()
        assert time.process_time() - start < 1
        if i % 20 == 0:
            assert peak_of(path)[1] < 50_000 + 20 * len(content)
    return num_read


def test_a_mutated_file_is_refused_or_read_but_never_believed(tmp_path):
    assert fuzz(tmp_path, 300, seed=0) > 20


@pytest.mark.slow
def test_a_great_many_mutated_files_are_refused_or_read(tmp_path):
    assert fuzz(tmp_path, 40_000, seed=1) > 2000
