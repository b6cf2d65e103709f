"""Lets timm's train.py run several processes without a GPU: `--device-modules timm_preact cpu_ddp`.

timm (seen in 1.0.29.dev0 and 1.0.31) names the process's device to DistributedDataParallel, which on a CPU takes none
and raises. A rehearsal of launch scripts on processors alone needs this; training on GPUs does not.
"""
from torch.nn import parallel


class CpuDistributedDataParallel(parallel.DistributedDataParallel):
    """Without device_ids."""

    def __init__(self, module, device_ids=None, **kwargs):
        super().__init__(module, **kwargs)


parallel.DistributedDataParallel = CpuDistributedDataParallel
