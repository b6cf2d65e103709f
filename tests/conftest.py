"""Real data and a Hub for every test: the CIFAR-10 test images that ship with the package, written as users have
theirs, and a server on this machine in place of huggingface.co. Every process that tests has its own of both."""
import ctypes
import gc
import os
import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
from support.hub_server import WRITE, Hub

# What takes longest goes first: the last file to end is a short one
LONGEST = (
    'train/test_replicas.py', 'package/test_sources.py', 'train/test_tables.py', 'package/test_export.py',
    'package/test_memory.py', 'package/test_timm_contract.py', 'package/test_propagation.py', 'train/test_cifar.py',
    'package/test_kernels.py', 'benchmarks/test_depth.py', 'package/test_benchmark.py', 'benchmarks/test_steps.py')


def cores():
    return len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count() or 1


def memory():
    """Bytes that this machine, or the container around this process, has."""
    limit = Path('/sys/fs/cgroup/memory.max')
    limit = limit.read_text().strip() if limit.is_file() else 'max'
    machines = os.sysconf('SC_PHYS_PAGES') * os.sysconf('SC_PAGE_SIZE')
    return machines if limit == 'max' else min(machines, int(limit))


def pytest_xdist_auto_num_workers(config):
    """A worker a core that has 4 GB; no workers for a GPU's tests, for they share it, nor for a test's own pytest."""
    if config.option.markexpr == 'gpu' or 'PYTEST_XDIST_WORKER' in os.environ:
        return 0
    count = int(os.environ.get('PYTEST_XDIST_AUTO_NUM_WORKERS') or min(cores(), memory() // 4_000_000_000))
    return count if count > 1 else 0


if 'PYTEST_XDIST_WORKER' in os.environ:  # before torch is imported, here or in a process that a test starts
    os.environ.setdefault('OMP_NUM_THREADS', str(max(1, cores() // int(os.environ['PYTEST_XDIST_WORKER_COUNT']))))

# huggingface_hub reads its environment once, when timm imports it: whatever a test asks of a Hub, it asks of this one
assert 'huggingface_hub' not in sys.modules
HUB = Hub()
HUB.start()
TEMPORARY = tempfile.TemporaryDirectory(prefix='timm_preact_tests_')  # removed when the tests end
for name in [n for n in os.environ if n.startswith(('HF_', 'HUGGING', 'TRANSFORMERS_', 'TIMM_PREACT_'))]:
    del os.environ[name]
os.environ.update(
    HF_ENDPOINT=HUB.url,
    HF_HOME=f'{TEMPORARY.name}/huggingface',
    HF_HUB_DISABLE_XET='1',  # its protocol is not the server's, and the client has no way back from it
    HF_HUB_DISABLE_TELEMETRY='1',
    HF_HUB_DISABLE_PROGRESS_BARS='1',
    NO_PROXY='localhost,127.0.0.1',
    TORCH_HOME=f'{TEMPORARY.name}/torch',
)
sys.path.append(str(Path(__file__).parents[1]))  # for train/; last: the package tested is the installed one


def pytest_collectstart():
    """Register the names; not in the process that only hands out tests, which collects none."""
    import timm_preact  # noqa: F401


def pytest_collection_modifyitems(items):
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get('/'.join(item.path.parts[-2:]), len(places)))


def trim():
    """What malloc keeps of tensors that are gone goes back to the machine."""
    if sys.platform == 'linux':
        ctypes.CDLL(None).malloc_trim(0)


@pytest.fixture(scope='module', autouse=True)
def memory_given_back():
    """What a file compiled or exported ends with it."""
    yield
    gc.collect()
    if 'torch._dynamo' in sys.modules:
        sys.modules['torch'].compiler.reset()
    trim()


@pytest.fixture
def memory_trimmed():
    """For tests of large networks."""
    yield
    trim()


@pytest.fixture
def hub(monkeypatch):
    """A running Hub without repositories, faults or requests; the cache is empty and nobody is logged in."""
    HUB.reset()
    HUB.start()
    shutil.rmtree(f"{os.environ['HF_HOME']}/hub", ignore_errors=True)
    for name in ('HF_TOKEN', 'TIMM_PREACT_HUB_ORG'):
        monkeypatch.delenv(name, raising=False)
    yield HUB
    HUB.start()
    assert HUB.errors == [], 'the test server itself failed'


@pytest.fixture
def lab(hub, monkeypatch):
    """The Hub, where we are logged in as lab."""
    monkeypatch.setenv('HF_TOKEN', WRITE)
    return hub


@pytest.fixture(scope='session')
def sample():
    """500 real test images, 50 of each class."""
    from timm_preact.data import load_sample
    return load_sample()


@pytest.fixture(scope='session')
def npz_folder(sample, tmp_path_factory):
    """A data folder: 320 shuffled images to train on, 100 to test on."""
    folder = tmp_path_factory.mktemp('npz')
    order = np.random.default_rng(0).permutation(len(sample.labels))
    for split, index in (('train', order[:320]), ('test', order[320:420])):
        np.savez(folder / f'{split}.npz', images=sample.images[index], labels=sample.labels[index],
                 classes=np.array(sample.classes))
    return folder


@pytest.fixture(scope='session')
def small_folder(npz_folder, tmp_path_factory):
    """The same images at half their size, for what trains."""
    folder = tmp_path_factory.mktemp('small')
    for split in ('train', 'test'):
        with np.load(npz_folder / f'{split}.npz') as arrays:
            np.savez(folder / f'{split}.npz', **dict(arrays, images=arrays['images'][:, ::2, ::2]))
    return folder


@pytest.fixture(scope='session')
def parquet_folder(npz_folder, tmp_path_factory):
    """The same images in the layout of the Hub data set uoft-cs/cifar10."""
    import datasets
    folder = tmp_path_factory.mktemp('parquet')
    for split in ('train', 'test'):
        with np.load(npz_folder / f'{split}.npz') as arrays:
            features = datasets.Features(
                img=datasets.Image(), label=datasets.ClassLabel(names=arrays['classes'].tolist()))
            table = datasets.Dataset.from_dict(
                dict(img=list(arrays['images']), label=arrays['labels'].tolist()), features=features)
        (folder / 'plain_text').mkdir(exist_ok=True)
        table.to_parquet(folder / 'plain_text' / f'{split}-00000-of-00001.parquet')
    return folder


@pytest.fixture(scope='session')
def sets(small_folder):
    """Training and test images of `small_folder`."""
    from timm_preact.data import load_image_set
    return load_image_set(small_folder, 'train'), load_image_set(small_folder, 'test')


@pytest.fixture
def make(sets, tmp_path):
    """Makes runs of a tiny net, each in a folder of its own unless one is named; they are closed at the end."""
    from support.runs import CPU, TINY

    from train.recipe import choose_recipe
    from train.run import Run
    made = []

    def make(seed=0, model='preact_resnet20', recipe=None, folder=None, amp=False, device=CPU, model_kwargs=TINY,
             **options):
        settings = dict(model=model, model_kwargs=model_kwargs, seed=seed, amp=amp, data=[s.sha256 for s in sets])
        recipe = recipe or choose_recipe('modern', batch_size=32, epochs=2)
        run = Run(settings, recipe, *sets, tmp_path / (folder or f'run{len(made)}'), device, **options)
        made.append(run)
        return run

    yield make
    for run in made:
        run.close()
