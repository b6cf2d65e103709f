"""A network as CUDA graphs: what a call launches is recorded once for a shape of images, and replayed from then on.

Of a small batch a GPU is done before Python has launched the next kernel; a graph launches all of them at once.
"""
import threading
import warnings
from typing import Any, Dict, NamedTuple, Optional

import torch
from torch import nn
from torch.nn.modules.module import _has_any_global_hook
from torch.utils._pytree import tree_map_only

__all__ = ['capture_calls']

SHAPES = 8  # of which graphs are kept: each holds its images and what the network returns, all share the memory between


def capture_calls(model: nn.Module) -> None:
    """Have each model(x) replay a CUDA graph, recorded when a shape and type of x comes for the first time.

    Nothing else of the model changes: its methods run kernel by kernel, and so does a copy of it (copy.deepcopy,
    pickle). So does model(x) itself where a graph would not do the same: off the GPU, in training mode, with gradients,
    with a hook on a module, under a compiler, a tracer or another capture, and from the ninth shape on.
    """
    model._compiled_call_impl = CapturedCalls(model)


class Recording(NamedTuple):
    """A graph, the images it reads and what it writes."""
    graph: torch.cuda.CUDAGraph
    x: torch.Tensor
    output: Any


class CapturedCalls:
    """model(...), by a graph where one does the same."""

    def __init__(self, model: nn.Module):
        self.model = model
        self.lock = threading.Lock()  # a graph has one place for its images
        self.forget()

    def forget(self) -> None:
        """Drop the graphs, and note which modules and weights the next ones will be of."""
        self.recordings: Dict[tuple, Recording] = {}
        self.closed = False  # to other shapes
        self.pool: Any = None  # of memory; with its stream and event made for the first graph
        self.stream: Optional[torch.cuda.Stream] = None
        self.replayed: Optional[torch.cuda.Event] = None
        modules = list(self.model.modules())
        self.hooks = [hooks for module in modules for hooks in (module._forward_pre_hooks, module._forward_hooks)]
        self.parts = [(parts, key, part) for module in modules
                      for parts in (module._modules, module._parameters, module._buffers)
                      for key, part in parts.items()]
        self.tensors = [part for _, _, part in self.parts if isinstance(part, torch.Tensor)]
        self.addresses = [tensor.data_ptr() for tensor in self.tensors]

    def is_stale(self) -> bool:
        """Whether a module, a weight or its place in memory is another one than in the graphs."""
        return (any(parts.get(key) is not part for parts, key, part in self.parts)
                or any(tensor.data_ptr() != address
                       for tensor, address in zip(self.tensors, self.addresses, strict=True)))

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if torch.compiler.is_compiling() or not self.takes(args, kwargs):
            return self.model._call_impl(*args, **kwargs)
        with self.lock, torch.cuda.device(args[0].device):
            if self.is_stale():
                self.forget()
            output = None if any(self.hooks) else self.replay(args[0])
        return self.model._call_impl(*args) if output is None else output

    def takes(self, args: tuple, kwargs: Dict[str, Any]) -> bool:
        """Whether a graph may do what a call does."""
        if self.model.training or kwargs or len(args) != 1 or not isinstance(args[0], torch.Tensor):
            return False
        x = args[0]
        return (
            x.is_cuda and x.numel() > 0 and not torch.jit.is_tracing() and not _has_any_global_hook()
            and not torch.cuda.is_current_stream_capturing()
            and not (torch.is_grad_enabled() and (x.requires_grad or any(t.requires_grad for t in self.tensors))))

    def replay(self, x: torch.Tensor) -> Any:
        """What the model returns for x; None where there is no graph."""
        autocast = torch.get_autocast_dtype('cuda') if torch.is_autocast_enabled('cuda') else None
        kind = (x.shape, x.stride(), x.dtype, x.device, autocast)
        if kind not in self.recordings:
            if self.closed or not self.record(kind, x):
                return None
        recording, stream = self.recordings[kind], torch.cuda.current_stream()
        stream.wait_event(self.replayed)  # another stream may have replayed last
        recording.x.copy_(x)
        recording.graph.replay()
        output = tree_map_only(torch.Tensor, torch.clone, recording.output)
        self.replayed.record(stream)
        return output

    def record(self, kind: tuple, x: torch.Tensor) -> bool:
        """Record a graph; whether that could be done."""
        if len(self.recordings) == SHAPES:
            return self.close(f'{SHAPES} shapes of images have a CUDA graph each')
        before = torch.cuda.current_stream()
        if self.pool is None:
            self.pool, self.stream = torch.cuda.graph_pool_handle(), torch.cuda.Stream()
            self.replayed = torch.cuda.Event()
        with torch.inference_mode(False), torch.no_grad():
            place = torch.empty_like(x).copy_(x)
            self.stream.wait_stream(before)
            with torch.cuda.stream(self.stream):
                for _ in range(2):  # compiles kernels, chooses algorithms, fetches workspaces
                    self.model._call_impl(place)
            before.wait_stream(self.stream)
            try:
                self.recordings[kind] = self.recorded(place)
            except RuntimeError as e:  # CUDA's
                torch.cuda.set_stream(before)
                return self.close(f'a CUDA graph cannot be recorded ({" ".join(str(e).split())[:200]})')
        return True

    def recorded(self, place: torch.Tensor) -> Recording:
        """What the model does to the tensor at this place in memory, whatever it holds."""
        graph, enabled = torch.cuda.CUDAGraph(), torch.is_autocast_enabled('cuda')
        with torch.autocast('cuda', torch.get_autocast_dtype('cuda'), enabled, cache_enabled=False):
            with torch.cuda.graph(graph, pool=self.pool, stream=self.stream, capture_error_mode='thread_local'):
                output = self.model._call_impl(place)
        return Recording(graph, place, output)

    def close(self, reason: str) -> bool:
        self.closed = True
        warnings.warn(f'{reason}: from now on other shapes run kernel by kernel.', RuntimeWarning, stacklevel=5)
        return False
