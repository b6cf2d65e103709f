"""Our networks and other people's on the same shapes, side by side in one process: images a second, memory.

Peers run as they come, in eager mode, but in the channels-last memory format, in which all of them are fastest on a CPU
and on a GPU with tensor cores.
"""
import statistics
import weakref
from contextlib import nullcontext
from functools import partial
from typing import Any, Callable, Dict, List, NamedTuple, Optional, Sequence

import timm
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..catalog import count_macs
from ..errors import COUNT, UserError
from ..inference import optimize
from ..memory import bytes_kept
from ..preact_resnet import MODEL_ARGS
from .peers import find_peers
from .timing import alternate, seconds_per_call

__all__ = ['DTYPES', 'TASKS', 'Setting', 'benchmark', 'benchmark_all', 'measure_operations', 'plan_settings']

TASKS = ('inference', 'training')
DTYPES = dict(float32=torch.float32, bfloat16=torch.bfloat16, float16=torch.float16)
SLOW = 0.3  # seconds of a matrix product at half its size that say as much as eight times as many at its whole


class Setting(NamedTuple):
    """What is measured.

    Attributes:
        name: Registered name.
        task: 'inference' (a forward pass without gradients) or 'training' (forward, loss, backward, SGD).
        dtype: Of weights and images in inference, of autocast in training; torch.float32 is full precision.
        batch_size: Images a call.
        image_size: Pixels a side, None for the name's own.
    """
    name: str
    task: str
    dtype: torch.dtype = torch.float32
    batch_size: int = 64
    image_size: Optional[int] = None


def plan_settings(
        names: Sequence[str],
        task: str = 'inference',
        dtypes: Sequence[str] = ('float32',),
        batch_sizes: Sequence[int] = (64,),
        image_size: Optional[int] = None,
) -> List[Setting]:
    """Plan every network in every type at every batch size.

    Args:
        names: Registered names.
        task: One of `TASKS`.
        dtypes: Keys of `DTYPES`.
        batch_sizes: Images a call.
        image_size: Pixels a side, None for the names' own.

    Raises:
        UserError: A name, the task or a type is not known, or a size is not positive.
    """
    COUNT.check('image_size', image_size)
    COUNT.check('batch_sizes', batch_sizes)
    if task not in TASKS:
        raise UserError(f'--task {task} is not known: choose one of {", ".join(TASKS)}.')
    for name in names:
        if name not in MODEL_ARGS:
            raise UserError(f'{name} is no network of ours: timm-preact list names them.')
    if not set(dtypes) <= DTYPES.keys():
        raise UserError(f'--dtype {" ".join(dtypes)} is not known: choose from {", ".join(DTYPES)}.')
    return [Setting(name, task, DTYPES[dtype], batch, image_size)
            for name in names for dtype in dtypes for batch in batch_sizes]


def benchmark_all(
        settings: Sequence[Setting],
        device: torch.device,
        against: List[str],
        rounds: int = 5,
        compiled: bool = False,
        graphs: bool = False,
        advance: Callable[[int], None] = lambda done: None,
) -> Dict[str, Any]:
    """Measure several settings, and how fast the machine multiplies matrices of their types.

    The arguments that are not told here are those of `benchmark`.

    Args:
        settings: What to measure.
        advance: Called with 1 after each setting.

    Returns:
        `operations_per_second` of each type, and `runs`, what `benchmark` found of each setting.

    Raises:
        UserError: A CUDA graph is asked for without a GPU.
    """
    if graphs and device.type != 'cuda':
        raise UserError('a CUDA graph needs a GPU: add --device cuda, or leave --cuda-graph out.')
    rates = {str(dtype).removeprefix('torch.'): measure_operations(device, dtype)
             for dtype in dict.fromkeys(setting.dtype for setting in settings)}
    runs = []
    for setting in settings:
        runs.append(benchmark(setting, device, against, rounds, compiled, graphs))
        advance(1)
    return dict(operations_per_second=rates, runs=runs)


def create_contestants(setting: Setting, device: torch.device, against: List[str], compiled: bool,
                       graphs: bool) -> Dict[str, nn.Module]:
    """Create ours, then the peers in `against` that have this network: name -> network, ready on the device."""
    half = setting.dtype if setting.task == 'inference' else None

    def create(**kwargs: Any) -> nn.Module:
        return timm.create_model(setting.name, **kwargs).train(setting.task == 'training')

    if setting.task == 'inference':
        nets = {'optimize()': optimize(create(), setting.dtype)}
        if compiled:
            nets['optimize(compile=True)'] = optimize(create(), setting.dtype, compile=True)
        if graphs:
            nets['optimize(cuda_graph=True)'] = optimize(create(), setting.dtype, cuda_graph=True)
        nets['as created'] = create()
    else:
        nets = {'recompute_norms': create(recompute_norms=True)}
        checkpointed = create(checkpoint_every=6)
        checkpointed.set_grad_checkpointing()
        nets['checkpointed by 6'] = checkpointed
        if compiled:
            nets['compile_units'] = create(compile_units=True)
        nets['as created'] = create()
    for peer in find_peers(setting.name):
        if peer.package in against:
            nets[peer.title] = peer.create().train(setting.task == 'training')
    return {name: net.to(device, half, memory_format=torch.channels_last) for name, net in nets.items()}


def benchmark(setting: Setting, device: torch.device, against: List[str], rounds: int = 5, compiled: bool = False,
              graphs: bool = False) -> Dict[str, Any]:
    """Measure one setting.

    Args:
        setting: What to measure.
        device: Where.
        against: Packages to measure beside us.
        rounds: Measurements of each contestant.
        compiled: Add ours with its units compiled.
        graphs: Add ours in inference as a CUDA graph; on a GPU.

    Returns:
        The setting, and for each contestant `seconds` of a call in each round, `images_per_second` (median), and
        `memory` in bytes: on a GPU the peak of a call with weights; on a CPU the most that tensors made in a call have
        at once, or in training what is kept for backward; `macs` of one image.
    """
    size = setting.image_size or timm.get_pretrained_cfg(setting.name).input_size[-1]
    nets = create_contestants(setting, device, against, compiled, graphs)
    x = torch.randn(setting.batch_size, 3, size, size, device=device).to(memory_format=torch.channels_last)
    x = x.to(setting.dtype) if setting.task == 'inference' else x
    calls = {name: make_call(net, x, setting) for name, net in nets.items()}
    memory = {}
    for name, call in calls.items():  # the first calls compile, pack weights and choose algorithms
        call()
        if device.type == 'cuda':
            torch.cuda.reset_peak_memory_stats(device)
            call()
            memory[name] = torch.cuda.max_memory_allocated(device)
        elif setting.task == 'training':
            memory[name] = bytes_kept(nets[name], lambda name=name: compute_loss(nets[name], x, setting))[0]
        else:
            with PeakMemory() as counter:
                call()
            memory[name] = counter.peak
        call()
    seconds = alternate({name: partial(seconds_per_call, call, device) for name, call in calls.items()}, rounds)
    return dict(
        setting=dict(setting._asdict(), dtype=str(setting.dtype).removeprefix('torch.'), image_size=size),
        macs=count_macs(timm.create_model(setting.name, device='meta'), (3, size, size)),
        contestants={name: dict(
            images_per_second=setting.batch_size / statistics.median(values), memory=memory.get(name), seconds=values)
            for name, values in seconds.items()})


class PeakMemory(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is on; `peak` is the most that lived at once."""

    def __init__(self):
        super().__init__()
        self.living: Dict[int, int] = {}
        self.peak = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided:
                storage = tensor.untyped_storage()
                if storage.data_ptr() not in self.living:
                    self.living[storage.data_ptr()] = storage.nbytes()
                    weakref.finalize(storage, self.living.pop, storage.data_ptr())
                    self.peak = max(self.peak, sum(self.living.values()))
        return result


def make_call(net: nn.Module, x: torch.Tensor, setting: Setting) -> Callable[[], Any]:
    """Make what one call is: a forward pass, or a training step."""
    if setting.task == 'inference':
        @torch.inference_mode()
        def forward() -> torch.Tensor:
            return net(x)
        return forward
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3, momentum=0.9)

    def step() -> None:
        compute_loss(net, x, setting).backward()
        optimizer.step()
        optimizer.zero_grad()
    return step


def compute_loss(net: nn.Module, x: torch.Tensor, setting: Setting) -> torch.Tensor:
    """Compute the loss of a training step, in autocast where the setting says so."""
    half = setting.dtype != torch.float32
    with torch.autocast(x.device.type, setting.dtype) if half else nullcontext():
        return F.cross_entropy(net(x), torch.arange(len(x), device=x.device) % 10)


def measure_operations(device: torch.device, dtype: torch.dtype, rounds: int = 5) -> float:
    """Measure floating-point operations a second of a large matrix product, by torch.mm or as a 1x1 convolution."""
    def products(n: int) -> Dict[str, Callable[[], torch.Tensor]]:
        a, b = (torch.randn(n, n, device=device, dtype=dtype) for _ in range(2))
        image = a.view(1, n // 64, 64, n).permute(0, 3, 1, 2)  # channels last: the same matrix
        kernel = b.view(n, n, 1, 1)
        return {'mm': lambda: torch.mm(a, b), 'conv': lambda: F.conv2d(image, kernel)}

    n = 8192 if device.type == 'cuda' else 2048
    with torch.inference_mode():
        # a processor may have no kernel for one of them, which at full size then takes minutes, or for both
        half = {name: seconds_per_call(call, device) for name, call in products(n // 2).items()}
        n = n // 2 if min(half.values()) > SLOW else n
        calls = {name: call for name, call in products(n).items() if half[name] < 5 * min(half.values())}
        seconds = alternate({name: partial(seconds_per_call, call, device) for name, call in calls.items()}, rounds)
    return 2 * n ** 3 / min(statistics.median(values) for values in seconds.values())
