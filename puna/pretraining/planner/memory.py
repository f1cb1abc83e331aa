"""Bytes that a process of a layout takes at its peak, place by place of the pipeline."""

from dataclasses import dataclass, fields

import torch

from puna.model.loss import CHUNK_BYTES
from puna.pretraining.planner import shares
from puna.pretraining.planner.constants import FITTED, Constants
from puna.pretraining.planner.job import BF16, FP32, Job
from puna.training.estimate import kept_by_block

GIB = 1024**3
_MOMENTS = 2 * FP32  # AdamW's two


@dataclass(frozen=True)
class Memory:
    """Bytes of one process, by what they are for."""

    weights: float
    """Its part of the fp32 parameters."""
    optimizer: float
    """AdamW's moments of that part, fp32."""
    gradients: float
    """fp32: its part, and under a pipeline those of its stages until the last micro-batch."""
    gathered: float
    """Weights that FSDP gathered: its stages in a pipeline, else two blocks and the ends; blocks in
    bf16, embedding, norm and head in fp32 (`Style.wide_ends`)."""
    activations: float
    """Kept for the backward pass, of all passes in flight."""
    working: float
    """What the backward pass of one block makes and drops."""
    logits: float
    """Logits, softmax and gradients at the head."""
    reserve: float
    """Held by the allocator and not used."""

    @property
    def total(self) -> float:
        """All of it."""
        return sum(getattr(self, field.name) for field in fields(self))


def memory_of(job: Job, place: int, constants: Constants = FITTED) -> Memory:
    """Bytes of the process that holds the most at a place of the pipeline."""
    held, gathered = shares.held_numbers(job, place), shares.gathered_numbers(job, place)
    sharded = job.layout.dp_shard * job.layout.cp > 1
    pipelined = job.layout.pp > 1
    ends = shares.end_numbers(job, place)
    if pipelined:
        copies = shares.gathered_bytes(job, place) if sharded else gathered * BF16
    elif sharded:
        blocks = min(gathered - ends, 2 * shares.block_numbers(job))
        copies = blocks * BF16 + ends * job.style.end_bytes
    else:
        copies = shares.block_numbers(job) * BF16
    unsharded = gathered * FP32 if pipelined and sharded else 0
    in_use = {
        "weights": held * FP32,
        "optimizer": held * _MOMENTS,
        "gradients": held * FP32 + unsharded,
        "gathered": copies,
        "activations": kept_by_layer(job) * layers_in_flight(job, place),
        "working": _working(job, constants),
        "logits": _logits(job, place, constants),
    }
    return Memory(**in_use, reserve=(constants.reserve - 1) * sum(in_use.values()))


def worst_place(job: Job, constants: Constants = FITTED) -> tuple[int, Memory]:
    """The place of the pipeline that takes the most, and its bytes.

    Of places that are alike the first one holds the most passes.
    """
    found = [(place, memory_of(job, place, constants)) for place in job.kinds_of_places]
    return max(found, key=lambda each: each[1].total)


def kept_by_layer(job: Job) -> float:
    """Bytes that a block keeps of one pass, on one process.

    Under tensor and sequence parallelism all of it is divided; where nothing is recomputed, the two
    inputs gathered for products are kept whole.
    """
    config, tp = job.model, job.layout.tp
    gathered = 0.0
    if job.recompute == "alternate":
        others = BF16 * (config.dim + config.n_heads * config.head_dim)
        kept = (kept_by_block(config, "selective", torch.bfloat16) + others) / 2
    else:
        kept = kept_by_block(config, job.recompute, torch.bfloat16)
        if job.recompute == "none":
            gathered = 2 * BF16 * config.dim * (1 - 1 / tp)
    return (kept / tp + gathered) * job.tokens_of_pass


def layers_in_flight(job: Job, place: int) -> int:
    """Layers times passes whose activations a place of the pipeline holds at once, at most.

    1F1B: Narayanan et al. 2021 (arXiv 2104.04473), section 2.2; interleaved: its warm-up as in
    torch's schedule; zero-bubble V and DualPipeV: every place as the first one of 1F1B (Qi et al.
    2024, arXiv 2405.15362).
    """
    layers, layout = job.layers_of_places[place], job.layout
    if layout.pp == 1:
        return sum(layers)
    if layout.schedule == "1f1b":
        return sum(layers) * min(job.passes, layout.pp - place)
    n_stages, largest = len(layers), max(layers)
    if layout.schedule in ("zbv", "dualpipev"):
        ahead = 2 * layout.pp + (layout.schedule == "dualpipev")
    else:
        ahead = 2 * (layout.pp - place - 1) + (n_stages - 1) * layout.pp + 1
    if ahead >= job.passes * n_stages:
        return sum(layers) * job.passes
    return min(ahead * largest, -(-ahead * sum(layers) // n_stages) + largest)


def _working(job: Job, constants: Constants) -> float:
    block = kept_by_block(job.model, "none", torch.bfloat16) / job.layout.tp
    gathered = 2 * BF16 * job.model.dim * (1 - 1 / job.layout.tp)
    return constants.working * (block + gathered) * job.tokens_of_pass


def _logits(job: Job, place: int, constants: Constants) -> float:
    """At the head: a chunk as `cross_entropy_sum` takes it, or all tokens of a pass."""
    if not job.holds(place)[1]:
        return 0.0
    tp, config = job.layout.tp, job.model
    if job.style.logits == "chunked":
        states = 2 * BF16 * job.tokens_of_pass * config.dim / tp
        return CHUNK_BYTES * 1.5 + states + shares.head_numbers(job) * FP32
    parallel = tp > 1 or not job.style.compiled
    each = constants.eager_logit_bytes if parallel else constants.logit_bytes
    return job.tokens_of_pass * config.vocab_size / tp * each
