"""Pipeline parallelism: processes hold the layers one after the other, in stages.

torch's schedules say when which stage works on which microbatch and move activations. What else a
stage needs (ids, positions, documents) each takes from the batch itself, which all of them have, so
document masks hold in every schedule. The last stage computes the objective.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.pipelining import PipelineStage, schedules

from puna.core.devices import default_device
from puna.core.errors import UsageError
from puna.data import Batch
from puna.model import Llama
from puna.model.linear import Linear
from puna.parallel.gradients import local
from puna.parallel.mesh import Mesh

_SCHEDULES: dict[str, Any] = {
    "1f1b": schedules.Schedule1F1B,
    "interleaved": schedules.ScheduleInterleaved1F1B,
    "interleaved-zero-bubble": schedules.ScheduleInterleavedZeroBubble,
    "zbv": schedules.ScheduleZBVZeroBubble,
    "dualpipev": schedules.ScheduleDualPipeV,
}


class Incoming(nn.Module):
    """In place of the embedding: what the stage before has made."""

    x_btd: Tensor

    def forward(self, _ids_bt: Tensor) -> Tensor:
        return self.x_btd


class Stage(nn.Module):
    """Some consecutive layers; the first stage has the embedding too, the last norm and head.

    Args:
        part: a Llama of these layers.
        first, last: whether it is that of all stages.
    """

    def __init__(self, part: Llama, *, first: bool, last: bool) -> None:
        super().__init__()
        self.part, self.first, self.last = part, first, last
        self.batches: Sequence[Batch] = ()
        self.objective: Callable[[Llama, Any], Any] | None = None
        self.outcomes: list[Any] = []

    def forward(self, x_btd: Tensor, number: Tensor) -> Tensor:
        """From what the stage before made of a microbatch to its own, or the sum of losses."""
        batch = self.batches[int(number)]
        if not self.first:
            embedding: Any = self.part.model.embed_tokens
            embedding.x_btd = x_btd
        if not self.last:
            return self.part.hidden(
                batch.ids, positions_bt=batch.positions, documents_bt=batch.documents
            )
        assert self.objective is not None
        outcome = self.objective(self.part, batch)
        self.outcomes.append(outcome)
        return torch.stack([outcome.loss_sum])


def cut_into_stages(model: Llama, mesh: Mesh) -> list[Stage]:
    """The stages of this process, made of the modules of ``model``, which keeps those only.

    A tied head becomes a copy of the embedding, for it may be on another process: see `Tie`.
    """
    layout, n_layers = mesh.layout, model.config.n_layers
    counts = layout.layers_of_stages(n_layers)
    whole: Any = model.model
    blocks, held = dict(whole.layers.named_children()), nn.ModuleDict()
    if model.lm_head is None:
        with torch.device("meta"):
            model.lm_head = Linear(model.config.dim, model.config.vocab_size)
        model.lm_head.weight = nn.Parameter(whole.embed_tokens.weight.detach().clone())
    stages = []
    for number in layout.stages_of(mesh.places["pp"]):
        start = sum(counts[:number])
        names = [str(n) for n in range(start, start + counts[number])]
        first, last = number == 0, number == layout.stages - 1
        with torch.device("meta"):
            part = type(model)(model.config.model_copy(update={"n_layers": 1}))
        part.config = model.config
        inner: Any = part.model
        inner.layers = nn.ModuleDict({name: blocks[name] for name in names})
        inner.embed_tokens = whole.embed_tokens if first else Incoming()
        inner.norm = whole.norm if last else nn.Identity()
        part.lm_head = model.lm_head if last else None
        held.update(inner.layers.named_children())
        stages.append(Stage(part, first=first, last=last))
    whole.layers = held
    if not any(stage.first for stage in stages):
        whole.embed_tokens = None
    if not any(stage.last for stage in stages):
        whole.norm, model.lm_head = None, None
    return stages


class Clock:
    """Adds up the time spent within it; with a GPU, that of the work given to it there."""

    def __init__(self) -> None:
        self._on_gpu = default_device().type == "cuda"  # weights may be on the way to it
        self._marks: list[Any] = []

    def __enter__(self) -> None:
        self._mark()

    def __exit__(self, *_: object) -> None:
        self._mark()

    def _mark(self) -> None:
        if self._on_gpu:
            self._marks.append(torch.cuda.Event(enable_timing=True))
            self._marks[-1].record()
        else:
            self._marks.append(time.perf_counter())

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """``function``, its time added up."""

        def timed(*args: Any, **kwargs: Any) -> Any:
            with self:
                return function(*args, **kwargs)

        return timed

    def seconds(self) -> float:
        """The sum, which begins anew; waits for the last work on the GPU."""
        marks, self._marks = self._marks, []
        pairs = zip(marks[::2], marks[1::2], strict=True)
        if not self._on_gpu:
            return sum(end - start for start, end in pairs)
        if marks:
            marks[-1].synchronize()
        return sum(start.elapsed_time(end) for start, end in pairs) / 1000


@dataclass(frozen=True)
class Tie:
    """An embedding that is the head too, of which first and last stage have a copy each.

    With the sum of both gradients the copies stay equal, bit for bit.
    """

    stages: list[Stage]
    """Those of this process."""
    mesh: Mesh

    @property
    def head(self) -> Tensor | None:
        """The last stage's copy, where this process has it."""
        for stage in self.stages:
            if stage.last and stage.part.lm_head is not None:
                return stage.part.lm_head.weight
        return None

    @torch.no_grad()
    def sum_gradients(self) -> None:
        """Give both copies the sum of their gradients."""
        copies: list[Any] = [s.part.model.embed_tokens.weight for s in self.stages if s.first]
        gradients = [local(copy.grad) for copy in (*copies, self.head) if copy is not None]
        if len(gradients) == 2:
            gradients[0].add_(gradients[1])
            gradients[1].copy_(gradients[0])
        elif gradients:
            gradients[0].add_(self._from_other_end(gradients[0]))

    def _from_other_end(self, mine: Tensor) -> Tensor:
        group = self.mesh.group("pp")
        there = self.mesh.layout.pp - 1 if self.mesh.places["pp"] == 0 else 0
        peer, theirs = dist.get_global_rank(group, there), torch.empty_like(mine)
        exchange = [(dist.isend, mine), (dist.irecv, theirs)]
        operations = [dist.P2POp(how, tensor, peer, group) for how, tensor in exchange]
        for work in dist.batch_isend_irecv(operations):
            work.wait()
        return theirs


class Pipeline:
    """Forward and backward passes through the stages of all processes.

    Args:
        stages: those of this process.
        mesh: all processes.
    """

    def __init__(self, stages: list[Stage], mesh: Mesh) -> None:
        self.stages, self.mesh = stages, mesh
        self._busy, self._whole = (Clock() for _ in range(2))
        self._schedule = cache(self._new_schedule)  # the exchange is set up for one shape

    def run(self, objective: Callable[[Llama, Any], Any], batch: Any) -> list[Any]:
        """Gradients of ``batch`` under ``objective``; its outcomes, where the last stage is.

        All processes call it, those of one pipeline with the same batch.
        """
        if not isinstance(batch, Batch):
            raise UsageError(
                "layout.pp sends packed rows through the stages, and this method's batches are of "
                "another kind: set layout.pp to 1"
            )
        n, (rows, time) = self.mesh.layout.n_microbatches, batch.ids.shape
        names = ("ids", "labels", "documents", "positions")
        parts = zip(*(getattr(batch, name).chunk(n) for name in names), strict=True)
        batches = [replace(batch, **dict(zip(names, part, strict=True))) for part in parts]
        for stage in self.stages:
            stage.batches, stage.objective, stage.outcomes = batches, objective, []
        schedule = self._schedule(rows // n, time, self.stages[0].part.dtype)
        numbers = torch.arange(n)
        first, last = (any(getattr(s, end) for s in self.stages) for end in ("first", "last"))
        with self._whole:
            schedule.step(
                *([numbers] if first else []), target=numbers if last else None, number=numbers
            )
        outcomes = [outcome for stage in self.stages for outcome in stage.outcomes]
        self._forget()
        return outcomes

    def seconds(self) -> tuple[float, float]:
        """Since it was asked for last: in passes through a stage, and in `run` altogether."""
        return self._busy.seconds(), self._whole.seconds()

    def look(self, objective: Callable[[Llama, Any], Any], batch: Any) -> list[Any]:
        """What ``objective`` makes of ``batch``, no gradient recorded, where the last stage is.

        All processes call it. The batch goes through the stages as a whole, whatever the schedule.
        """
        layout, here = self.mesh.layout, self.mesh.places["pp"]
        places = {n: place for place in range(layout.pp) for n in layout.stages_of(place)}
        stages = dict(zip(layout.stages_of(here), self.stages, strict=True))
        x: Any = None
        for number, stage in sorted(stages.items()):
            if number and places[number - 1] != here:
                x = self._received(batch, places[number - 1])
            stage.batches, stage.objective, stage.outcomes = [batch], objective, []
            x = stage(x, number=torch.zeros(1, dtype=torch.int64))
            if not stage.last and places[number + 1] != here:
                group = self.mesh.group("pp")
                dist.send(x.contiguous(), dist.get_global_rank(group, places[number + 1]), group)
        outcomes = [outcome for stage in self.stages for outcome in stage.outcomes]
        self._forget()
        return outcomes

    def _received(self, batch: Batch, place: int) -> Tensor:
        """What the stage before makes of ``batch``, from the process at ``place``."""
        part, (rows, time) = self.stages[0].part, batch.ids.shape
        shape = (rows, time // self.mesh.layout.tp, part.config.dim)
        x = torch.empty(shape, dtype=part.dtype, device=part.device)
        group = self.mesh.group("pp")
        dist.recv(x, dist.get_global_rank(group, place), group)
        return x

    def _forget(self) -> None:
        for stage in self.stages:
            stage.batches, stage.objective, stage.outcomes = (), None, []

    def _new_schedule(self, rows: int, time: int, dtype: torch.dtype) -> Any:
        layout = self.mesh.layout
        shape = (rows, time // layout.tp, self.stages[0].part.config.dim)
        between = torch.empty(shape, dtype=dtype, device="meta", requires_grad=True)
        number = torch.empty(1, dtype=torch.int64, device="meta")
        loss = torch.empty(1, device="meta", requires_grad=True)
        made = [
            PipelineStage(
                stage,
                index,
                layout.stages,
                self.stages[0].part.device,
                input_args=number if stage.first else between,
                output_args=loss if stage.last else between,
                group=self.mesh.group("pp"),
            )
            for stage, index in zip(
                self.stages, layout.stages_of(self.mesh.places["pp"]), strict=True
            )
        ]
        for stage in made:
            for name in ("forward_one_chunk", "backward_one_chunk", "backward_weight_one_chunk"):
                setattr(stage, name, self._busy.around(getattr(stage, name)))
        return _SCHEDULES[layout.schedule](
            made[0] if layout.stages == layout.pp else made,
            layout.n_microbatches,
            loss_fn=lambda output, _target: output.sum(),
            scale_grads=False,
        )
