"""Which part of every parameter a process holds: exact, so that a real rank can be held against it.

Tensor parallelism cuts a matrix along the dimension that its product is divided in; FSDP cuts what
is left along the first, as ``torch.chunk`` does: the last processes of a group may have less.
"""

from collections.abc import Iterator
from functools import lru_cache
from math import prod

import torch

from puna.model import Llama, LlamaConfig
from puna.pretraining.planner.job import BF16, Job

_BY_INPUT = ("o_proj.weight", "down_proj.weight")  # products cut along what they read
_BLOCK = "model.layers.0."
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


def chunk(size: int, parts: int, number: int) -> int:
    """How much of ``size`` part ``number`` gets from ``torch.chunk(parts)``."""
    each = -(-size // parts)
    return max(0, min(each, size - number * each))


@lru_cache(maxsize=32)
def shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """Name and shape of every parameter outside the blocks and of one block's."""
    with torch.device("meta"):
        model = Llama(config.model_copy(update={"n_layers": 1}))
    return {name: tuple(p.shape) for name, p in model.named_parameters()}


def parameters_of(job: Job, place: int) -> Iterator[tuple[str, tuple[int, ...], int]]:
    """(name, shape, how many) of what a place of the pipeline holds, before it is divided."""
    first, last = job.holds(place)
    n_layers = sum(job.layers_of_places[place])
    for name, shape in shapes(job.model).items():
        if name.startswith(_BLOCK):
            yield name, shape, n_layers
        elif first if name == EMBEDDING else last:
            yield name, shape, 1
    if job.model.tie_embeddings and last and not first:
        yield EMBEDDING, shapes(job.model)[EMBEDDING], 1  # the head's copy of it


def after_tp(job: Job, name: str, shape: tuple[int, ...], rank: int = 0) -> tuple[int, ...]:
    """Shape of the part of a parameter that tensor-parallel rank ``rank`` has."""
    if len(shape) < 2:
        return shape
    cut = 1 if name.endswith(_BY_INPUT) else 0
    return tuple(
        chunk(size, job.layout.tp, rank) if dim == cut else size for dim, size in enumerate(shape)
    )


def after_fsdp(job: Job, shape: tuple[int, ...], rank: int = 0) -> int:
    """Numbers of such a part that rank ``rank`` among those that shard it holds."""
    return chunk(shape[0], job.layout.dp_shard * job.layout.cp, rank) * prod(shape[1:])


def held_numbers(job: Job, place: int, tp_rank: int = 0, shard_rank: int = 0) -> int:
    """Parameters that one process holds: the first ranks of each group hold the most."""
    return sum(
        many * after_fsdp(job, after_tp(job, name, shape, tp_rank), shard_rank)
        for name, shape, many in parameters_of(job, place)
    )


def gathered_numbers(job: Job, place: int) -> int:
    """Parameters of a process's stages after FSDP gathered them: its tensor-parallel part."""
    return sum(
        many * prod(after_tp(job, name, shape)) for name, shape, many in parameters_of(job, place)
    )


def end_numbers(job: Job, place: int) -> int:
    """The same outside the blocks: embedding, norm and head, where the place has them."""
    return sum(
        many * prod(after_tp(job, name, shape))
        for name, shape, many in parameters_of(job, place)
        if not name.startswith(_BLOCK)
    )


def gathered_bytes(job: Job, place: int) -> int:
    """Bytes of `gathered_numbers` as FSDP gathers them: blocks in bf16, ends as `Style` says."""
    ends = end_numbers(job, place)
    return (gathered_numbers(job, place) - ends) * BF16 + ends * job.style.end_bytes


def block_numbers(job: Job) -> int:
    """Parameters of one block in a tensor-parallel part."""
    return sum(
        prod(after_tp(job, name, shape))
        for name, shape in shapes(job.model).items()
        if name.startswith(_BLOCK)
    )


def head_numbers(job: Job) -> int:
    """Numbers of the head in a tensor-parallel part."""
    return prod(after_tp(job, EMBEDDING, shapes(job.model)[EMBEDDING]))
