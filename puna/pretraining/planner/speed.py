"""Seconds of a step: products, attention, memory traffic, exchanges that are waited for, bubble.

A process's passes take ``passes * (forward + backward)``; the pipeline adds its bubble; what FSDP
exchanges is hidden behind the passes as far as they last; the optimizer ends the step.
"""

from dataclasses import dataclass, fields

from puna.pretraining.planner import shares
from puna.pretraining.planner.constants import FITTED, Constants
from puna.pretraining.planner.job import BF16, FP32, Job

GIGA, TERA = 1e9, 1e12
_UPDATE_BYTES = 28  # AdamW reads weight, gradient, two moments and writes three of them, fp32
_LOGIT_TRAFFIC = 20  # bytes read and written for a logit: fp32 softmax, loss and gradient


@dataclass(frozen=True)
class Times:
    """Seconds of a step of the slowest process, by what they go to."""

    products: float
    """Matrix products, those computed again included."""
    attention: float
    """Fused attention, the same."""
    traffic: float
    """Norms, activations, residuals, softmax of the loss: bound by memory."""
    tensor_parallel: float
    """Exchanges of activations that products wait for."""
    context_parallel: float
    """Gathering keys and values, and scattering their gradients."""
    bubble: float
    """Waiting for the first and the last micro-batches of the pipeline."""
    fsdp: float
    """What gathering weights and reducing gradients adds."""
    optimizer: float
    """AdamW and the norm of the gradient."""

    @property
    def total(self) -> float:
        """The step."""
        return sum(getattr(self, field.name) for field in fields(self))


@dataclass(frozen=True)
class _Pass:
    """Seconds of one pass through one layer, or through the head."""

    products: float = 0.0
    attention: float = 0.0
    traffic: float = 0.0
    tensor_parallel: float = 0.0
    context_parallel: float = 0.0

    def __add__(self, other: "_Pass") -> "_Pass":
        return _Pass(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    def __mul__(self, factor: float) -> "_Pass":
        return _Pass(*(getattr(self, f.name) * factor for f in fields(self)))

    @property
    def total(self) -> float:
        return sum(getattr(self, f.name) for f in fields(self))


def times_of(job: Job, constants: Constants = FITTED) -> Times:
    """Seconds of a step, by what they go to."""
    forward, backward = _layer(job, constants)
    head = _head(job, constants)
    kinds = job.kinds_of_places
    places = {
        place: (forward + backward) * sum(job.layers_of_places[place])
        + (head if job.holds(place)[1] else _Pass())
        for place in kinds
    }
    passes = max(places.values(), key=lambda one: one.total) * job.passes
    mean = sum(places[place].total * n for place, n in kinds.items()) / job.layout.pp
    fsdp = max(_fsdp(job, place, forward, backward, constants) for place in kinds)
    held = max(shares.held_numbers(job, place) for place in kinds)
    return Times(
        products=passes.products,
        attention=passes.attention,
        traffic=passes.traffic,
        tensor_parallel=passes.tensor_parallel,
        context_parallel=passes.context_parallel,
        bubble=_bubble(job, mean, forward.total / (forward + backward).total)
        + _hops(job, constants),
        fsdp=fsdp,
        optimizer=held * _UPDATE_BYTES / (job.gpu.memory_gbps * GIGA * constants.memory),
    )


def model_flops(job: Job, *, causal: bool = False) -> float:
    """FLOPs of a step, forward and backward, recomputation and the embedding's look-up not counted.

    As published figures are counted, every token attends to the whole row; ``causal`` counts half
    of it, which is what it needs (`LlamaConfig.flops_per_token`).
    """
    attended = job.row_length // 2 if causal else job.row_length
    return job.model.flops_per_token(attended) * job.tokens_of_step


def _layer(job: Job, constants: Constants) -> tuple[_Pass, _Pass]:
    """One layer forward; and backward, with what is computed again."""
    config, tp, tokens = job.model, job.layout.tp, job.tokens_of_pass
    rate = job.gpu.bf16_tflops * TERA * job.gpu.gemm_fraction
    norms = 2 * config.dim
    products = 2 * tokens * (shares.block_numbers(job) - norms) / rate
    if job.style.float8:
        products /= constants.float8
    scores = 2 * tokens * job.row_length * config.n_heads / tp * config.head_dim  # half: causal
    slowed = constants.ring if job.style.ring and job.layout.cp > 2 else 1.0
    attention = scores / (rate * constants.attention * slowed)
    traffic = _traffic(job, constants)
    moved = tokens * config.dim * BF16
    tensor = 4 * _collective(job, moved, tp, 1, constants)
    if job.style.overlapped_tp:
        tensor *= constants.overlapped_tp
    keys = 2 * config.n_kv_heads / tp * config.head_dim * tokens * job.layout.cp * BF16
    context = _collective(job, keys, job.layout.cp, tp, constants)
    forward = _Pass(products, attention, traffic, tensor, context)
    backward = _Pass(2 * products, 2.5 * attention, 2 * traffic, tensor, 2 * context)
    return forward, backward + _again(job, forward)


def _again(job: Job, forward: _Pass) -> _Pass:
    """What recomputation adds to the backward pass."""
    if job.recompute == "none":
        return _Pass()
    if job.recompute == "full":
        return forward
    if job.recompute == "alternate":
        return _Pass(products=forward.products / 2, traffic=forward.traffic)
    return _Pass(traffic=forward.traffic, tensor_parallel=forward.tensor_parallel)


def _traffic(job: Job, constants: Constants) -> float:
    """Seconds of a layer's forward pass that go to memory between products.

    Two norms with the residuals before them, RoPE, SwiGLU: ten widths of the stream, four of the
    queries, three of the feed-forward, read or written once in bf16.
    """
    config = job.model
    widths = 10 * config.dim + 4 * config.n_heads * config.head_dim + 3 * config.ffn_dim
    moved = job.tokens_of_pass * widths * BF16 / job.layout.tp
    eager = 1.0 if job.style.compiled else constants.eager
    return eager * moved / (job.gpu.memory_gbps * GIGA * constants.memory)


def _head(job: Job, constants: Constants) -> _Pass:
    """Logits, loss and their gradients: three products in bf16, the last place's only."""
    config, tp, tokens = job.model, job.layout.tp, job.tokens_of_pass
    rate = job.gpu.bf16_tflops * TERA * job.gpu.gemm_fraction
    moved = tokens * config.vocab_size / tp * _LOGIT_TRAFFIC
    return _Pass(
        products=6 * tokens * config.vocab_size * config.dim / tp / rate,
        traffic=moved / (job.gpu.memory_gbps * GIGA * constants.memory),
    )


def _collective(job: Job, n_bytes: float, parts: int, stride: int, constants: Constants) -> float:
    """Seconds of an all-gather or reduce-scatter whose whole is ``n_bytes``, over ``parts``.

    Ranks of the group are ``stride`` apart. A group of one node uses its switch; one that spans
    nodes is bound by the network of those of its members that share a node.
    """
    if parts == 1:
        return 0.0
    gpu = job.gpu
    switch = gpu.node_gbps * constants.node
    if parts * stride <= gpu.node_gpus:
        rate = switch
    else:
        beside = max(1, gpu.node_gpus // stride)
        rate = min(switch, beside * gpu.network_gbps * constants.network)
    return n_bytes * (parts - 1) / parts / (rate * GIGA)


def _bubble(job: Job, mean: float, forward_share: float) -> float:
    """Seconds a process waits in a pipeline; ``mean`` is a pass through a place, on average.

    1F1B: (stages - 1) passes; interleaved: divided by the stages each (Narayanan et al. 2021,
    section 2.2). The zero-bubble schedules fill it with gradients of weights: what is left is
    forward + backward of inputs - twice those, about a forward pass (Qi et al. 2024, arXiv
    2401.10241, table 1; DeepSeek-AI 2024, arXiv 2412.19437, table 2, for DualPipe).
    """
    layout = job.layout
    if layout.pp == 1:
        return 0.0
    waits = (layout.pp - 1) * mean
    if layout.schedule.startswith("interleaved"):
        waits /= layout.stages_each
    if layout.schedule not in ("1f1b", "interleaved"):
        waits *= forward_share
    return waits


def _hops(job: Job, constants: Constants) -> float:
    """Seconds until the first activations reached the last place, and gradients came back."""
    moved = job.tokens_of_pass * job.model.dim * BF16 / job.layout.tp
    hop = moved / (job.gpu.network_gbps * GIGA * constants.network)
    return 2 * (job.layout.pp - 1) * hop


def _fsdp(
    job: Job, place: int, forward: _Pass, backward: _Pass, constants: Constants
) -> float:  # fmt: skip
    """Seconds that gathering weights and reducing gradients (fp32) adds to a step."""
    layout = job.layout
    parts, stride = layout.dp_shard * layout.cp, layout.tp
    layers = sum(job.layers_of_places[place])
    numbers = shares.gathered_numbers(job, place)
    gather = _collective(job, shares.gathered_bytes(job, place), parts, stride, constants)
    reduce = _collective(job, numbers * FP32, parts, stride, constants)
    held = shares.held_numbers(job, place) * FP32
    apart = 2 * _collective(job, held, layout.dp_replicate, parts * stride, constants)
    if layout.pp > 1:  # once a step: all but the first stage's and the last one's is hidden
        exposed = (gather + reduce) / len(job.layers_of_places[place])
        hidden_by = job.passes * layers * (forward + backward).total
        return exposed + apart + max(0.0, gather + reduce - exposed - hidden_by)
    late = max(0.0, gather - layers * forward.total)
    late += max(0.0, gather + reduce - layers * backward.total)
    return job.passes * late + (gather + reduce) / layers + apart
