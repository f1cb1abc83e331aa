"""The stage that teaches preferences directly."""

from itertools import islice
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
from puna.alignment.rejection import PAIRS
from puna.core.errors import UsageError
from puna.core.random import stable_seed
from puna.data import NamedPair, read_pairs
from puna.data.generators import generate_pairs
from puna.tokenizer import Tokenizer
from puna.training import LoopConfig, RowSource
from puna.training.loop import compute_dtype
from puna.workflow.stage import SCRATCH
from puna.workflow.stages.training import FromModel, Given, open_base, train_and_save


class DPOStage(FromModel):
    """Preferences: make the better of two answers more likely."""

    generated_pairs: int = Field(default=0, ge=0)
    """Pairs made by the generators."""
    generated_from: int = Field(default=0, ge=0)
    """The first of them, when earlier ones were learned from before."""
    from_sample: bool = False
    """Whether the pairs of stages.sample, best and worst answers, are learned from."""
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
        if not (self.files or self.generated_pairs or self.from_sample):
            raise ValueError("no pairs: set files, generated_pairs or from_sample")
        return self

    def reads(self) -> list[Path]:
        """Its files."""
        return list(self.files)

    def needs(self) -> list[str]:
        """What was sampled, where it is learned from."""
        return ["sample"] if self.from_sample else []


def run_dpo(config: DPOStage, given: Given, folder: Path) -> dict[str, Any]:
    """Teach preferences; the model it starts from is the frozen reference."""
    model, tokenizer = open_base(config, given)
    seed, events = given.seed, given.events
    pairs = _pairs(config, given, tokenizer)
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


def _pairs(config: DPOStage, given: Given, tokenizer: Tokenizer) -> list[Comparison]:
    """Pairs of the generators, of stages.sample and of the user's files, as tokens."""
    drawn, events = given.drawn, given.events
    last = config.generated_from + config.generated_pairs
    made = generate_pairs(given.seed, last, drawn.countries, drawn.kinds, held_out=False)
    named = [
        NamedPair(f"pair {i}", p.prompt, p.chosen, p.rejected)
        for i, p in islice(enumerate(made), config.generated_from, None)
    ]
    files = list(config.files)
    if config.from_sample:
        files.append(given.earlier["sample"].folder / PAIRS)
    unfit: list[UsageError] = []
    for path in files:
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
