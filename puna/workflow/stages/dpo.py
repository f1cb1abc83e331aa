"""The stage that teaches preferences directly."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, model_validator

from puna.alignment import (
    Comparison,
    DPOConfig,
    DPOObjective,
    PairRows,
    encode_pair,
    reference_logprobs,
)
from puna.core.errors import UsageError
from puna.core.events import EventLog
from puna.core.random import stable_seed
from puna.data import NamedPair, read_pairs
from puna.data.generators import generate_pairs
from puna.tokenizer import Tokenizer
from puna.training import LoopConfig, RowSource
from puna.training.loop import compute_dtype
from puna.workflow.stage import SCRATCH
from puna.workflow.stages.corpus import Exercises
from puna.workflow.stages.training import FromModel, Given, open_base, train_and_save


class DPOStage(FromModel):
    """Preferences: make the better of two answers more likely."""

    generated_pairs: int = Field(default=0, ge=0)
    """Pairs made by the generators."""
    files: tuple[Path, ...] = ()
    """Preferences of your own: ``chosen`` and ``rejected``, with or without ``prompt``."""
    too_long: Literal["error", "drop"] = "error"
    """What becomes of a pair longer than a row."""
    row_length: int = Field(ge=8)
    """Longest conversation, in tokens."""
    dpo: DPOConfig = DPOConfig()
    """The method's own knobs."""
    loop: LoopConfig
    """How it is optimised."""

    @model_validator(mode="after")
    def _some_pairs(self) -> Self:
        if not (self.files or self.generated_pairs):
            raise ValueError("no pairs: set files or generated_pairs")
        return self

    def reads(self) -> list[Path]:
        """Its files."""
        return list(self.files)


def run_dpo(config: DPOStage, given: Given, folder: Path) -> dict[str, Any]:
    """Teach preferences; the model it starts from is the frozen reference."""
    model, tokenizer = open_base(config, given)
    seed, events = given.seed, given.events
    pairs = _pairs(config, seed, given.drawn, tokenizer, events)
    model.compute_dtype = compute_dtype(config.loop, model.device)
    reference = reference_logprobs(model, pairs, folder / SCRATCH)
    events.emit("note", text=f"{len(pairs):,} pairs, reference log-probabilities kept")
    source = RowSource(
        PairRows(pairs, reference, config.dpo), stable_seed(seed, "dpo"), config.loop
    )
    facts = train_and_save(
        model,
        tokenizer,
        DPOObjective(config.dpo),
        source,
        config.loop,
        config.row_length,
        events,
        folder,
    )
    return facts | {"pairs": len(pairs)}


def _pairs(
    config: DPOStage, seed: int, drawn: Exercises, tokenizer: Tokenizer, events: EventLog
) -> list[Comparison]:
    """Pairs of the generators and of the user's files, as tokens."""
    made = generate_pairs(
        seed, config.generated_pairs, drawn.countries, drawn.kinds, held_out=False
    )
    named = [NamedPair(f"pair {i}", p.prompt, p.chosen, p.rejected) for i, p in enumerate(made)]
    unfit: list[UsageError] = []
    for path in config.files:
        named += read_pairs(path, unfit.append)
    if unfit:
        text = f"{len(unfit):,} pairs are left out, the first: {unfit[0]}"
        events.emit("warning", text=text)
    encoded, too_long = [], 0
    for pair in named:
        sides = (pair.prompt, pair.chosen, pair.rejected)
        try:
            encoded.append(encode_pair(tokenizer, *sides, config.row_length, pair.name))
        except UsageError:
            if config.too_long == "error":
                raise
            too_long += 1
    if too_long:
        text = f"{too_long:,} pairs are left out: longer than {config.row_length} tokens"
        events.emit("warning", text=text)
    if not encoded:
        raise UsageError("no pair is left to learn from: raise row_length or give more")
    return encoded
