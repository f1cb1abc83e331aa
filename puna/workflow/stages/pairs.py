"""Pairs of a better and a worse answer: what the stages that learn from them share."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import ClassVar, Literal, Self

import numpy as np
from pydantic import Field, model_validator

from puna.alignment import Comparison, encode_pair
from puna.core.errors import UsageError
from puna.core.events import EventLog
from puna.data import NamedPair, read_pairs
from puna.data.chats import MOST_HELD_OUT, held_out
from puna.data.generators import generate_pairs
from puna.model import LoraConfig
from puna.tokenizer import Tokenizer
from puna.training import LoopConfig
from puna.workflow.stages.training import FromModel, Given


class PairStage(FromModel):
    """What stages that learn from pairs have in common."""

    together: ClassVar[bool] = True

    files: tuple[Path, ...] = ()
    """Preferences of your own: ``chosen`` and ``rejected``, with or without ``prompt``."""
    generated_pairs: int = Field(default=0, ge=0)
    """Pairs made by the generators."""
    generated_from: int = Field(default=0, ge=0)
    """The first of them, when earlier ones were learned from before."""
    held_out_fraction: float = Field(default=0.05, gt=0, lt=1)
    """Share of the prompts, 500 at most, whose pairs the model is judged on, before and after."""
    too_long: Literal["error", "drop"] = "error"
    """What becomes of a pair longer than a row."""
    row_length: int = Field(ge=8)
    """Longest conversation, in tokens."""
    lora: LoraConfig | None = None
    """Train an adapter instead of all weights."""
    loop: LoopConfig
    """How it is optimised; a row is a pair."""

    @model_validator(mode="after")
    def _some_pairs(self) -> Self:
        if not (self.files or self.generated_pairs or self.sampled()):
            raise ValueError("no pairs: set files, generated_pairs or, for dpo, from_sample")
        return self

    def sampled(self) -> bool:
        """Whether the pairs of stages.sample are learned from too."""
        return False

    def reads(self) -> list[Path]:
        """Its files."""
        return list(self.files)


@dataclass(frozen=True)
class Pairs:
    """Pairs as tokens."""

    train: list[Comparison]
    held_out: list[Comparison]
    """Of prompts that are not trained on."""


def read_stage_pairs(
    config: PairStage, given: Given, tokenizer: Tokenizer, more: Sequence[Path] = ()
) -> Pairs:
    """The generators' pairs and those of files, ``more`` of them than the stage names, split.

    The generators keep problems aside themselves; a file's prompts are drawn by the seed. Raises
    `UsageError` where nothing is left to learn from.
    """
    own = _read([*config.files, *more], given.events)
    drawn = np.array([pair.drawn(given.seed) for pair in own], np.int64)
    aside = held_out(drawn, config.held_out_fraction)
    train, judged = ([p for p, a in zip(own, aside, strict=True) if a == side] for side in (0, 1))
    n_judged = min(MOST_HELD_OUT, round(config.generated_pairs * config.held_out_fraction))
    named = _generated(given, config.generated_from, config.generated_pairs, held_out=False)
    fitting = _Fitting(config, tokenizer)
    pairs = Pairs(
        fitting.encode([*named, *train]),
        fitting.encode([*_generated(given, 0, n_judged, held_out=True), *judged]),
    )
    if fitting.too_long:
        text = f"{fitting.too_long:,} pairs are left out: longer than {config.row_length} tokens"
        given.events.emit("warning", text=text)
    if not pairs.train:
        raise UsageError("no pair is left to learn from: raise row_length or give more")
    return pairs


def _read(files: Sequence[Path], events: EventLog) -> list[NamedPair]:
    """Pairs of files; those that say no preference are counted and left out."""
    unfit: list[UsageError] = []
    named = [pair for path in files for pair in read_pairs(path, unfit.append)]
    if unfit:
        text = f"{len(unfit):,} pairs are left out, the first: {unfit[0]}"
        events.emit("warning", text=text)
    return named


def _generated(given: Given, first: int, n: int, *, held_out: bool) -> list[NamedPair]:
    drawn = given.drawn
    made = generate_pairs(given.seed, first + n, drawn.countries, drawn.kinds, held_out=held_out)
    return [
        NamedPair(f"pair {i}", p.prompt, p.chosen, p.rejected)
        for i, p in islice(enumerate(made), first, None)
    ]


class _Fitting:
    """Encodes pairs and counts those that do not fit a row."""

    def __init__(self, config: PairStage, tokenizer: Tokenizer) -> None:
        self.config, self.tokenizer = config, tokenizer
        self.too_long = 0

    def encode(self, pairs: Sequence[NamedPair]) -> list[Comparison]:
        encoded = []
        for pair in pairs:
            sides = (pair.prompt, pair.chosen, pair.rejected)
            length = self.config.row_length
            try:
                encoded.append(encode_pair(self.tokenizer, *sides, length, pair.name))
            except UsageError:
                if self.config.too_long == "error":
                    raise
                self.too_long += 1
        return encoded
