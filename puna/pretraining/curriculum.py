"""A curriculum carried out: segments of one training run, some repeated until their gate opens.

Each segment calls the one loop on the same checkpoints with more steps than before, so weights,
moments and step numbers go on. What was decided between segments is kept in a file: a run that is
killed anywhere makes the same decisions again, or reads them.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from puna.core.errors import PunaError, UsageError
from puna.core.events import EventLog
from puna.core.files import write_json
from puna.core.random import stable_seed
from puna.data import Group, MixedRows, MixSource, PackedRows, TokenFile
from puna.data.order import WHOLE, Share
from puna.formats import save_model
from puna.model import Llama, RopeScaling
from puna.parallel import here
from puna.parallel.folders import save_spread
from puna.parallel.parallelize import laid_out
from puna.pretraining.held_out import held_out_loss
from puna.pretraining.needle import needle_accuracy
from puna.pretraining.recipe import Curriculum, Gate, LongContext, Mix, loop_of
from puna.pretraining.spread_needle import spread_needle_accuracy
from puna.tokenizer import Tokenizer
from puna.training import LoopConfig, next_token, train
from puna.training.checkpoint import Progress
from puna.training.look import set_dtype
from puna.training.loop import compute_dtype

_LOG, _AVERAGED = "curriculum.json", "averaged"
_HAY = 200_000  # tokens of held-out text around needles


@dataclass(frozen=True)
class Segment:
    """Steps in a row that have the same settings."""

    name: str
    steps: int
    row_length: int
    batch_rows: int
    micro_rows: int
    mix: Mix
    rope: RopeScaling | None
    gate: Gate | None = None
    """What is judged after it."""
    attempt: int = 1
    """How often it has been begun, for a segment with a gate."""
    average: int = 0
    """Models kept of an anneal's way."""
    anneal: bool = False


@dataclass(frozen=True)
class Judged:
    """What was found after a segment."""

    name: str
    end: int
    """Steps of the whole run until then."""
    row_length: int
    tokens: int
    passed: bool
    """Whether the next stage may begin."""
    short_loss: float | None = None
    needles: float | None = None
    note: str = ""


@dataclass
class Texts:
    """What is read: training documents with their sources, and held-out ones."""

    tokens: TokenFile
    sources: Sequence[str]
    """Of each document in ``tokens``."""
    held_out: TokenFile
    hay: list[int] = field(init=False)
    """Held-out ids, end to end."""

    def __post_init__(self) -> None:
        self.hay = self.held_out.tokens[:_HAY].astype(np.int64).tolist()

    def groups(self, mix: Mix, where: str) -> list[Group]:
        """The documents of a mix; raises `UsageError` for a source that has none."""
        sources = np.asarray(self.sources)
        if not mix:
            return [Group(np.arange(len(sources)))]
        missing = sorted(set(mix) - set(self.sources))
        if missing:
            known = ", ".join(sorted(set(self.sources)))
            raise UsageError(
                f"{where}.mix: no document is of the source '{missing[0]}': known: {known}"
            )
        return [Group(np.flatnonzero(sources == name), weight) for name, weight in mix.items()]


class CurriculumRun:
    """A curriculum on its way.

    Args:
        curriculum: what is done.
        loop: rates, optimizer and layout of all segments; ``steps`` is the cosine's length.
        texts: what is read.
        folder: of checkpoints and decisions, kept until the run is whole.
        keeps_reach: whether the model comes with a context and a scaling of RoPE that are its own,
            until a stage asks for others; else its context is that of the longest row so far.
    """

    def __init__(
        self,
        curriculum: Curriculum,
        loop: LoopConfig,
        texts: Texts,
        seed: int,
        folder: Path,
        events: EventLog,
        stage: str,
        *,
        keeps_reach: bool = False,
    ) -> None:
        self.keeps_reach = keeps_reach
        self.curriculum, self.loop, self.texts, self.seed = curriculum, loop, texts, seed
        self.folder, self.events, self.stage = folder, events, stage
        self.before: float | None = None
        self.done: list[Judged] = []
        path = folder / _LOG
        if path.exists():
            found = json.loads(path.read_text())
            self.before, self.done = found["before"], [Judged(**row) for row in found["done"]]

    def run(self, model: Llama, tokenizer: Tokenizer) -> Progress:
        """Train ``model`` through all segments; raises `PunaError` when a stage is given up."""
        self._check()
        progress = Progress(0, 0, 0.0)
        finished, restored = len(self.done), False
        own = model.config if self.keeps_reach else None
        reach, scaling = (own.context, own.rope_scaling) if own else (0, None)
        for number, segment in enumerate(self._segments()):
            start = self.done[number - 1].end if number else 0
            reach = max(reach, segment.row_length)
            model_reads(model, reach, segment.rope or scaling)
            if number < finished:
                continue
            progress = self._train(model, tokenizer, segment, start)
            restored = True
            self._decide(self._judge(model, tokenizer, segment, progress))
        if not restored:  # killed after the last decision: the weights are in the checkpoint
            last = list(self._segments())[-1]
            start = self.done[-2].end if len(self.done) > 1 else 0
            progress = self._train(model, tokenizer, last, start)
        return progress

    def averaged(self) -> list[Path]:
        """Models of the anneal's way to be averaged, the first one first."""
        return sorted((self.folder / _AVERAGED).glob("step-*"))

    def facts(self) -> dict[str, Any]:
        """Figures of the segments."""
        return {"short_loss_before_long": self.before, "segments": [asdict(d) for d in self.done]}

    def _check(self) -> None:
        """Raise `UsageError` for a mix that names a source without documents, before any step."""
        for number, phase in enumerate(self.curriculum.phases):
            self.texts.groups(phase.mix, f"curriculum.phases.{number}")
        if self.curriculum.long_context:
            self.texts.groups(self.curriculum.long_context.mix, "curriculum.long_context")
        if self.curriculum.anneal:
            self.texts.groups(self.curriculum.anneal.mix, "curriculum.anneal")

    def _segments(self) -> Iterator[Segment]:
        """In order; what comes next may depend on how the last one was judged."""
        for phase in self.curriculum.phases:
            yield Segment(
                phase.name, phase.steps, phase.row_length, phase.batch_rows, phase.micro_rows,
                phase.mix, None,
            )  # fmt: skip
        long = self.curriculum.long_context
        if long is not None:
            yield from self._stages(long)
        anneal = self.curriculum.anneal
        if anneal is not None:
            yield Segment(
                "anneal", anneal.steps, anneal.row_length, anneal.batch_rows, 0, anneal.mix,
                long.rope if long else None, average=anneal.average, anneal=True,
            )  # fmt: skip

    def _stages(self, long: LongContext) -> Iterator[Segment]:
        for stage in long.stages:
            name = f"context-{stage.row_length}"
            for attempt in range(1, long.gate.attempts + 1):
                yield Segment(
                    name, stage.steps, stage.row_length, stage.batch_rows, 0, long.mix, long.rope,
                    long.gate, attempt,
                )  # fmt: skip
                judged = [each for each in self.done if each.name == name]
                if judged[attempt - 1].passed:
                    break

    def _train(
        self, model: Llama, tokenizer: Tokenizer, segment: Segment, start: int
    ) -> Progress:  # fmt: skip
        loop = loop_of(
            self.loop, start, segment.steps, segment.batch_rows, segment.micro_rows,
            anneal=segment.anneal,
        )  # fmt: skip
        groups = self.texts.groups(segment.mix, segment.name)
        seed = stable_seed(self.seed, segment.name, segment.attempt)
        rows = MixedRows(self.texts.tokens, groups, segment.row_length, seed)
        mixed = MixSource(rows, loop.batch_rows, loop.micro_rows)

        def source(step: int, share: Share = WHOLE) -> list[Any]:
            return mixed(step - start, share)

        self.events.emit(
            "note",
            text=f"{segment.name}: {segment.steps:,} steps of {loop.batch_rows:,} rows of "
            f"{segment.row_length:,} tokens",
        )
        marks = _marks(start, segment)

        def keep(step: int, trained: Llama) -> None:
            if step not in marks:
                return
            place = self.folder / _AVERAGED / f"step-{step:09d}"
            if laid_out(trained) is not None:
                save_spread(place, trained, tokenizer)
            elif here().is_first:
                save_model(place, trained, tokenizer)

        return train(
            model, next_token, source, loop, self.folder / "checkpoints", self.events,
            stage=self.stage, attended=segment.row_length // 2,
            after_step=keep if marks else None,
        )  # fmt: skip

    def _judge(
        self, model: Llama, tokenizer: Tokenizer, segment: Segment, progress: Progress
    ) -> Judged:  # fmt: skip
        """What the segment left, and whether the next may begin."""
        judged = Judged(segment.name, progress.step, segment.row_length, progress.tokens, True)
        long = self.curriculum.long_context
        last_phase = len(self.done) + 1 == len(self.curriculum.phases)
        if long is None or not (last_phase or segment.gate):
            return judged
        gate = segment.gate or long.gate
        set_dtype(model, compute_dtype(self.loop, model.device))
        short_rows = PackedRows(self.texts.held_out, self.curriculum.short)
        short = held_out_loss(model, short_rows, gate.rows)
        if segment.gate is None:
            self.before = short
            set_dtype(model, None)
            return Judged(**{**asdict(judged), "short_loss": short})
        find = needle_accuracy if laid_out(model) is None else spread_needle_accuracy
        needles = find(
            model, tokenizer, self.texts.hay, segment.row_length, gate.needles, self.seed
        )
        set_dtype(model, None)
        assert self.before is not None
        passed = short <= self.before * (1 + gate.short_loss_tolerance)
        passed = passed and needles >= gate.needle_accuracy
        found = {**asdict(judged), "passed": passed, "short_loss": short, "needles": needles}
        self._report(segment, gate, found)
        return Judged(**found)

    def _report(self, segment: Segment, gate: Gate, found: dict[str, Any]) -> None:
        """Say what was found; raise `PunaError` when the stage is given up."""
        seen = (
            f"{segment.name}: short loss {found['short_loss']:.4f} ({self.before:.4f} before), "
            f"{found['needles']:.0%} of needles found"
        )
        if found["passed"]:
            self.events.emit("note", text=f"{seen}: done")
        elif segment.attempt < gate.attempts:
            self.events.emit("note", text=f"{seen}: trained on")
        elif gate.give_up:
            raise PunaError(
                f"{seen} after {gate.attempts} attempts: raise long_context.gate.attempts or the "
                "stage's steps, or lower what the gate asks for; all steps are saved"
            )
        else:
            found["note"] = "given up, the next stage begins"
            self.events.emit("warning", text=f"{seen}: {found['note']}")

    def _decide(self, judged: Judged) -> None:
        self.done.append(judged)
        if here().is_first:
            rows = [asdict(each) for each in self.done]
            write_json(self.folder / _LOG, {"before": self.before, "done": rows})


def model_reads(model: Llama, context: int, rope: RopeScaling | None) -> None:
    """Give the model, and the parts of it that stages run, this context."""
    spread = laid_out(model)
    for part in {id(p): p for p in [model, *(spread.parts if spread else [])]}.values():
        part.stretch(context, rope)


def _marks(start: int, segment: Segment) -> set[int]:
    """Steps after which an anneal keeps a model."""
    if segment.average < 2:
        return set()
    n = segment.average
    return {start + round(segment.steps * number / n) for number in range(1, n + 1)}
