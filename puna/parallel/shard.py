"""Fully sharded data parallelism (FSDP2): a process keeps a part of each weight and its moments.

A block's weights are gathered before it runs and its gradients summed to their owners after
(Zhao et al. 2023, "PyTorch FSDP"). With replicas the sums go over them too (HSDP).
"""

import torch
from torch import nn
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    FSDPModule,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)

from puna.model import Llama
from puna.parallel.mesh import Mesh


def spread_weights(root: nn.Module, part: Llama, mesh: Mesh) -> None:
    """Spread the weights below ``root``, in place: each block by itself, the rest together.

    ``root`` is ``part`` or a module around it. Embedding, norm and head are gathered in their own
    data type and stay until the backward pass is done, for the loss uses the head's weight outside
    of the model.
    """
    layout, devices = mesh.layout, mesh.devices
    replicas = layout.dp_replicate > 1
    over = devices["replicate", "shard"] if replicas else devices["shard"]
    on_gpu = devices.device_type == "cuda"
    offload = CPUOffloadPolicy() if layout.cpu_offload and on_gpu else OffloadPolicy()
    gathered = torch.bfloat16 if layout.gather_dtype == "bf16" else None
    narrow = MixedPrecisionPolicy(param_dtype=gathered, reduce_dtype=torch.float32)
    wide = MixedPrecisionPolicy(reduce_dtype=torch.float32)
    reshard = layout.reshard == "always" or (layout.reshard == "auto" and layout.pp == 1)
    for block in part.model.layers.children():
        fully_shard(
            block,
            mesh=over,
            reshard_after_forward=reshard,
            mp_policy=narrow,
            offload_policy=offload,
        )
    fully_shard(root, mesh=over, mp_policy=wide, offload_policy=offload)
    for module in root.modules():
        if isinstance(module, FSDPModule):  # the loop divides, once, by the step's count
            module.set_gradient_divide_factor(1.0)
            module.set_force_sum_reduction_for_comms(True)
