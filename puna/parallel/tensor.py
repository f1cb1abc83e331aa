"""Tensor and sequence parallelism: each process has some heads and some rows of the vocabulary.

Between the products the stream is spread by positions, so norms and additions are shared too:
what was an all-reduce is a reduce-scatter after a block's half and an all-gather before the next
(Korthikanti et al. 2022, "Reducing Activation Recomputation", section 4.2.2).
"""

import warnings
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn
from torch._inductor import config as inductor
from torch.distributed import _symmetric_memory as symmetric_memory
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import Replicate, Shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    ParallelStyle,
    PrepareModuleInput,
    RowwiseParallel,
    SequenceParallel,
    parallelize_module,
)

from puna.model import Llama


def spread_products(model: Llama, mesh: DeviceMesh) -> None:
    """Spread the weights of ``model``, or of the part of it that a stage has, in place."""
    by_position, whole = Shard(1), Replicate()
    block: dict[str, ParallelStyle] = {
        "input_layernorm": SequenceParallel(),
        "self_attn": PrepareModuleInput(  # x, cos, sin, mask, cache
            input_layouts=(by_position, None, None, None, None),
            desired_input_layouts=(whole, None, None, None, None),
        ),
        "self_attn.q_proj": ColwiseParallel(),
        "self_attn.k_proj": ColwiseParallel(),
        "self_attn.v_proj": ColwiseParallel(),
        "self_attn.o_proj": RowwiseParallel(output_layouts=by_position),
        "post_attention_layernorm": SequenceParallel(),
        "mlp": PrepareModuleInput(input_layouts=by_position, desired_input_layouts=whole),
        "mlp.gate_proj": ColwiseParallel(),
        "mlp.up_proj": ColwiseParallel(),
        "mlp.down_proj": RowwiseParallel(output_layouts=by_position),
    }
    for layer in model.model.layers.children():
        parallelize_module(layer, mesh, block)
    outer: dict[str, ParallelStyle] = {}
    if isinstance(model.model.embed_tokens, nn.Embedding):
        outer["model.embed_tokens"] = RowwiseParallel(
            input_layouts=whole, output_layouts=by_position
        )
    if not isinstance(model.model.norm, nn.Identity):
        outer["model.norm"] = SequenceParallel()
    if model.lm_head is not None:
        outer["lm_head"] = ColwiseParallel(use_local_output=False)
    parallelize_module(model, mesh, outer)
    if "model.embed_tokens" in outer:
        model.model.embed_tokens.register_forward_hook(_arrived)


def exchange_within_products(group: dist.ProcessGroup) -> None:
    """Let Inductor make gathering and the products after it one, and products and scattering.

    Asynchronous tensor parallelism: parts of a product are computed while others are on their way
    through memory that the GPUs of ``group`` share. It holds for all that this process compiles
    from here on.
    """
    inductor._micro_pipeline_tp = True
    with warnings.catch_warnings(action="ignore", category=FutureWarning):  # still needed in 2.13
        symmetric_memory.enable_symm_mem_for_group(group.group_name)


def _arrived(_module: nn.Module, _arguments: Any, output: Tensor) -> Tensor:
    """The embedding's output as a tensor that is there.

    Unless it is waited for, the first compiled block gets one whose exchange is under way, and
    makes wrong gradients without a word.
    """
    return output.clone()
