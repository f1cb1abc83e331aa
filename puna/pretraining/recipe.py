"""Pretraining as code: what is trained on, phase after phase, and what opens the next phase.

"The Llama 3 Herd of Models" section 3.4: a ramp of batch and length, changes of the mix on the way,
six stages to 128K positions, each left only when short rows are read as well as before and needles
are found, and an anneal of the learning rate to 0 on the best data, whose models are averaged.
"""

from itertools import pairwise
from typing import Self

from pydantic import Field, PositiveFloat, model_validator

from puna.core.config import Config
from puna.model import RopeScaling
from puna.training import LoopConfig

Mix = dict[str, PositiveFloat]


class Phase(Config):
    """Some steps with one batch size, one length, one mix."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9-]*$")
    """In events and in the report."""
    steps: int = Field(ge=1)
    """Optimizer steps."""
    row_length: int = Field(ge=8)
    """Tokens in a row."""
    batch_rows: int = Field(ge=1)
    """Rows in a step, over all processes."""
    micro_rows: int = Field(default=0, ge=0)
    """Rows in one forward pass; 0 takes those of ``loop``."""
    mix: Mix = Field(default={})
    """Share of the tokens of each source named; a source not named is left out. Empty reads every
    document equally often."""


class ContextStage(Config):
    """A longer context, and how long it is trained on at a time."""

    row_length: int = Field(ge=32)
    """Tokens in a row from here on."""
    batch_rows: int = Field(ge=1)
    """Rows in a step."""
    steps: int = Field(ge=1)
    """Steps before the stage is judged, and again after each judgement that it is not done."""


class Gate(Config):
    """What a context stage must show before the next one begins."""

    short_loss_tolerance: float = Field(default=0.01, ge=0)
    """By what share the held-out loss of short rows may exceed what it was before the stages."""
    needle_accuracy: float = Field(default=1.0, ge=0, le=1)
    """Share of needles that must be found at the stage's length."""
    needles: int = Field(default=20, ge=1)
    """Needles tried, at depths spread evenly over the row."""
    rows: int = Field(default=64, ge=1)
    """Held-out rows that give the short loss."""
    attempts: int = Field(default=10, ge=1)
    """Judgements before the stage is given up."""
    give_up: bool = True
    """Whether a stage that is given up ends the run; else the next one begins and it is noted."""


class LongContext(Config):
    """The way to a long context."""

    rope: RopeScaling
    """Scaling of RoPE, switched on with the first stage."""
    stages: list[ContextStage] = Field(min_length=1)
    """Lengths, ascending."""
    mix: Mix = Field(default={})
    """As in a phase."""
    gate: Gate = Gate()
    """What opens the next stage."""

    @model_validator(mode="after")
    def _ascending(self) -> Self:
        lengths = [stage.row_length for stage in self.stages]
        for before, after in pairwise(lengths):
            if after <= before:
                raise ValueError(f"stages go from {before} to {after} tokens: lengths must rise")
        return self


class Anneal(Config):
    """The end: the learning rate falls linearly to 0 on the best data."""

    steps: int = Field(ge=1)
    """Optimizer steps."""
    row_length: int = Field(ge=8)
    """Tokens in a row."""
    batch_rows: int = Field(ge=1)
    """Rows in a step."""
    mix: Mix = Field(default={})
    """As in a phase: the best sources with more weight than before."""
    average: int = Field(default=0, ge=0)
    """How many models of the way, evenly spaced and the last one included, are averaged (Polyak);
    0 and 1 leave the last one."""

    @model_validator(mode="after")
    def _enough(self) -> Self:
        if self.average > self.steps:
            raise ValueError(f"average {self.average} exceeds steps {self.steps}: lower it")
        return self


class Curriculum(Config):
    """All of it, in order."""

    phases: list[Phase] = Field(min_length=1)
    """Ramps and mixes."""
    long_context: LongContext | None = None
    """Stages to a long context; none stays at the phases' length."""
    anneal: Anneal | None = None
    """The end; none ends with the cosine."""

    @model_validator(mode="after")
    def _ends_long(self) -> Self:
        reach = self.reach
        if self.anneal and self.anneal.row_length > reach:
            raise ValueError(
                f"anneal.row_length {self.anneal.row_length} exceeds the longest context trained, "
                f"{reach}: lower it, or add a stage to long_context"
            )
        names = [phase.name for phase in self.phases]
        if len(set(names)) < len(names):
            raise ValueError("two phases have the same name: rename one")
        return self

    @property
    def short(self) -> int:
        """Longest row of the phases."""
        return max(phase.row_length for phase in self.phases)

    @property
    def sources(self) -> set[str]:
        """All that its mixes name."""
        parts = [*self.phases, self.long_context, self.anneal]
        return {source for part in parts if part for source in part.mix}

    @property
    def reach(self) -> int:
        """Longest row of all."""
        return self.long_context.stages[-1].row_length if self.long_context else self.short

    @property
    def work(self) -> tuple[int, int]:
        """Steps, and tokens they train on, where no stage of a longer context is repeated."""
        parts: list[Phase | ContextStage | Anneal] = [*self.phases]
        parts += self.long_context.stages if self.long_context else []
        parts += [self.anneal] if self.anneal else []
        tokens = sum(part.steps * part.batch_rows * part.row_length for part in parts)
        return sum(part.steps for part in parts), tokens


def loop_of(
    loop: LoopConfig, start: int, steps: int, batch_rows: int, micro_rows: int, *, anneal: bool
) -> LoopConfig:
    """The loop of ``steps`` steps after ``start`` others of the same run.

    ``loop.steps`` stays the length of the cosine, whatever phase a step is in.
    """
    micro = micro_rows or min(loop.micro_rows, batch_rows)
    changed = {
        "steps": start + steps,
        "cosine_steps": loop.steps,
        "anneal_steps": steps if anneal else 0,
        "batch_rows": batch_rows,
        "micro_rows": micro,
        "warmup_steps": min(loop.warmup_steps, start + steps),
    }
    return LoopConfig.parse(loop.model_dump() | changed, where="stages.pretrain.curriculum")
