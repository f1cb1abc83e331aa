"""The one training loop.

A method is an objective, ``(model, batch) -> Outcome``, and a source, ``(step, share) ->
micro-batches``. The loop sums losses and gradients over the step and all processes and divides once
by the step's global count, so the result depends neither on how the batch was cut into
micro-batches nor on how many processes shared them.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from puna.core.devices import fast_dtype, peak_flops, peak_memory
from puna.core.errors import PunaError, UsageError
from puna.core.events import EventLog
from puna.core.random import stable_seed
from puna.data import Share
from puna.model import Llama
from puna.model.float8 import FORWARD, set_float8
from puna.model.recompute import Recompute
from puna.parallel import Mesh
from puna.parallel.parallelize import Parallel, parallelize
from puna.training.checkpoint import Checkpoints, Kept, Progress
from puna.training.config import LoopConfig
from puna.training.interrupt import Interrupted, deferred_interrupt
from puna.training.optimizer import learning_rate
from puna.training.trace import traced
from puna.training.updates import Updates, updates_of

_SLOW_BF16 = (
    "precision is bf16, which has no hardware here: products take up to a hundred times as long as "
    "in fp32: leave precision at auto"
)


@dataclass(frozen=True)
class Outcome:
    """What an objective makes of one micro-batch, or of a microbatch of a pipeline."""

    loss_sum: Tensor
    """Differentiable sum of losses."""
    count: int
    """How many items (tokens, pairs) the sum is over."""
    metrics: dict[str, float] = field(default_factory=dict)
    """Further sums over the same items."""


Objective = Callable[[Llama, Any], Outcome]
Source = Callable[[int, Share], list[Any]]
"""Micro-batches of a step: those of a process's share."""
AfterStep = Callable[[int, Llama], None]
"""Called with the number of steps done, and the model as it stands then."""


@dataclass
class _Window:
    """Sums since the last progress event."""

    count: int = 0
    tokens: int = 0
    steps: int = 0
    seconds: float = 0.0
    sums: dict[str, float] = field(default_factory=dict)

    def add(self, other: "_Window") -> None:
        self.count += other.count
        self.tokens += other.tokens
        self.steps += other.steps
        self.seconds += other.seconds
        for name, value in other.sums.items():
            self.sums[name] = self.sums.get(name, 0.0) + value

    def over(self, mesh: Mesh) -> "_Window":
        """The sums of all processes."""
        count, tokens, *sums = mesh.total([self.count, self.tokens, *self.sums.values()])
        named = dict(zip(self.sums, sums, strict=True))
        return _Window(int(count), int(tokens), self.steps, self.seconds, named)


def compute_dtype(config: LoopConfig, device: torch.device) -> torch.dtype:
    """Data type of activations under ``config.precision`` on this device."""
    if config.precision == "auto":
        return fast_dtype(device.type)
    return torch.float32 if config.precision == "fp32" else torch.bfloat16


def recompute_of(config: LoopConfig) -> Recompute | None:
    """What blocks forget under ``config``; None when they keep everything."""
    if config.recompute == "none":
        return None
    return Recompute(config.recompute, config.recompute_every, config.offload_activations)


def _step(
    parallel: Parallel,
    objective: Objective,
    batches: list[Any],
    updates: Updates,
    config: LoopConfig,
    step: int,
) -> tuple[_Window, float]:
    """One optimizer step; returns its sums and the gradient norm before clipping."""
    done, rate = _Window(steps=1, sums={"loss": 0.0}), learning_rate(config, step)

    def expect(outcome: Outcome) -> None:
        updates.expect(outcome.count, rate)

    for batch in batches:
        mine = parallel.mine(batch)
        done.tokens += mine.n_tokens
        for outcome in parallel.run(objective, mine, expect):
            sums = {"loss": float(outcome.loss_sum.detach()), **outcome.metrics}
            done.add(_Window(count=outcome.count, sums=sums))
    done = done.over(parallel.mesh)
    if done.count == 0:
        raise PunaError(f"step {step + 1}: no position has a label: check the data's masks")
    if not math.isfinite(done.sums["loss"]):
        raise PunaError(f"step {step + 1}: the loss is {done.sums['loss']}: lower learning_rate")
    norm = updates.norm(done.count)
    if not math.isfinite(norm):
        raise PunaError(f"step {step + 1}: the gradient's norm is {norm}: lower learning_rate")
    updates.apply(rate)
    return done, norm


def train(
    model: Llama,
    objective: Objective,
    source: Source,
    config: LoopConfig,
    checkpoints: Path,
    events: EventLog,
    *,
    stage: str = "train",
    attended: int = 0,
    after_step: AfterStep | None = None,
    beside: nn.Module | None = None,
    kept: Kept | None = None,
) -> Progress:
    """Train ``model`` in place, going on from the newest checkpoint below ``checkpoints``.

    Where ``config.layout`` spreads it over processes it stays spread.

    Args:
        objective: loss of one micro-batch.
        source: micro-batches of a step, a pure function of it.
        checkpoints: folder of this run's checkpoints, written by the first process, read by all.
        events: receives ``train_resume``, ``train_step`` and ``checkpoint`` events, from the first
            process only.
        stage: named in the events.
        attended: mean number of positions a token attends to, for the FLOP count behind MFU.
        after_step: called after every step, outside its time, by all processes, e.g. to validate
            (`puna.training.look`); it must leave the weights and torch's random state as they are,
            or a resumed run would differ.
        beside: trained and saved with the model where the objective uses more, e.g. a value model.
        kept: what ``source`` and ``objective`` remember between steps; saved and restored.

    Raises `Interrupted` after saving when the user pressed Ctrl-C, `PunaError` when the loss is not
    finite.
    """
    parallel = parallelize(model, config.layout)
    mesh = parallel.mesh
    mesh.layout.check_batches(0, config.batch_rows, config.micro_rows)
    if beside is not None and not mesh.layout.only_replicas:
        raise UsageError(
            "this method trains a second model, which only replicas hold: leave layout"
        )
    events = events if mesh.is_first else EventLog()
    dtype = compute_dtype(config, model.device)
    float8 = config.precision == "float8"
    peak = math.inf
    if mesh.is_first:  # which tells it; measuring draws numbers, so before they are restored
        peak = peak_flops(model.device.type, FORWARD if float8 else dtype)
    trained = model if beside is None else nn.ModuleDict({"model": model, "beside": beside})
    torch.manual_seed(stable_seed("train", stage))  # of dropout: the same run anywhere
    updates = updates_of(trained, config, parallel)
    saved = Checkpoints(
        checkpoints, trained, updates.optimizers, kept, parallel, config, events, stage
    )
    at = saved.restore() or Progress(0, 0, 0.0)
    if mesh.layout.only_replicas:
        mesh.align(trained.parameters())
    if at.step:
        events.emit("train_resume", stage=stage, step=at.step, steps=config.steps)
    flops_per_token = model.config.flops_per_token(attended)
    window = _Window()
    for part in parallel.parts:
        part.compute_dtype, part.recompute = dtype, recompute_of(config)
    set_float8(model, on=float8)
    if config.compile:
        model.compile_blocks()
    if dtype not in (torch.float32, fast_dtype(model.device.type)):
        events.emit("warning", text=_SLOW_BF16)
    if config.offload_activations and model.device.type == "cpu":
        events.emit(
            "note", text="offload_activations: activations are in the host's memory already"
        )
    with updates, deferred_interrupt() as stop_asked:
        while at.step < config.steps:
            if not mesh.is_first:  # the checkpoint keeps the first one's random state only
                torch.manual_seed(stable_seed("train", stage, at.step, mesh.rank))
            with traced(config, at.step + 1, stage, mesh.rank, model.device.type, events):
                started = time.perf_counter()
                batches = source(at.step, mesh.share)
                done, norm = _step(parallel, objective, batches, updates, config, at.step)
                done.seconds = time.perf_counter() - started
            at = Progress(at.step + 1, at.tokens + done.tokens, at.seconds + done.seconds)
            window.add(done)
            last = at.step == config.steps
            if at.step % config.log_every == 0 or last:
                rate = window.tokens / window.seconds
                flops, bubble = rate * flops_per_token / mesh.n_processes, parallel.bubble()
                (held,) = mesh.largest([peak_memory(model.device.type)])
                events.emit(
                    "train_step",
                    stage=stage,
                    step=at.step,
                    steps=config.steps,
                    **{name: total / window.count for name, total in window.sums.items()},
                    learning_rate=learning_rate(config, at.step - 1),
                    grad_norm=norm,
                    tokens=at.tokens,
                    seconds=at.seconds,
                    tokens_per_s=rate,
                    tflops=flops / 1e12,
                    mfu=flops / peak,
                    memory_gib=held / 2**30,
                    **({} if bubble is None else {"bubble": bubble}),
                    left_s=(config.steps - at.step) * window.seconds / window.steps,
                )
                window = _Window()
            if after_step is not None and not mesh.any(stop_asked.made):
                after_step(at.step, model)
            stop = mesh.any(stop_asked.made)
            if at.step % config.checkpoint_every == 0 or last or stop:
                saved.save(at, last=last or stop)
            if stop:
                break
    if mesh.any(stop_asked.made):
        raise Interrupted(
            f"stopped in {stage} after step {at.step} of {config.steps}, which is saved: "
            "run the same command to go on"
        )
    for part in parallel.parts:
        part.compute_dtype = part.recompute = None
    set_float8(model, on=False)
    return at
