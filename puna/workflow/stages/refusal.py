"""The stage that teaches when to refuse, by the beginnings of answers.

Requests are those of `puna.safety.requests`: acts in frames, met once at most in a pass, and
questions as people ask them, each met several times. What is held out is only looked at.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from puna.alignment import RefusalConfig, RefusalObjective, RefusalRows, prompt_ids, refusing
from puna.core.random import stable_seed, stream
from puna.model import LoraConfig, weaken
from puna.safety.requests import (
    SafetyRequest,
    asked,
    borderline,
    drawn,
    everyday,
    harmful,
    harmless,
    refusal_to,
)
from puna.tokenizer import Tokenizer
from puna.training import LoopConfig, RowSource
from puna.training.loop import compute_dtype
from puna.workflow.stages.training import (
    FromModel,
    Given,
    adapt,
    check_whole,
    open_base,
    train_and_save,
)

_LOOKED_AT = 60  # held-out requests of each kind
_REQUEST = 32  # tokens, about, of a request with its system turn shared


class RefusalStage(FromModel):
    """Refusals where harm is asked for; everything else as before."""

    benign: int = Field(default=1, ge=1)
    """Benign requests beside each harmful one."""
    questions: float = Field(default=0.25, ge=0, le=1)
    """Share of both that are questions as people ask them: harmful ones, and such as only sound so
    or are everyday ones. The others are harmful and harmless acts in the same frames."""
    refusal: RefusalConfig = RefusalConfig()
    """The method's own knobs."""
    lora: LoraConfig = LoraConfig()
    """The adapter that learns; the model without it says what must not change."""
    loop: LoopConfig
    """The training loop; a row is a harmful request with its benign ones."""

    @model_validator(mode="after")
    def _strength_fits(self) -> Self:
        if self.refusal.strength < 1 and self.lora.dora:
            raise ValueError("refusal.strength below 1 needs lora.dora: false")
        return self

    @property
    def row_length(self) -> int:
        """About the tokens of a row, for what counts on them: rows are as long as they come."""
        return _REQUEST * (1 + self.benign) + self.refusal.tokens


def run_refusal(config: RefusalStage, given: Given, folder: Path) -> dict[str, Any]:
    """Tune an adapter, and say what of the held-out requests is declined before and after."""
    check_whole(config.loop, "refusals are learned with the whole model in each process")
    model, tokenizer = open_base(config, given, config.lora)
    adapt(model, config.lora, given)
    model.compute_dtype = compute_dtype(config.loop, model.device)
    rows = refusal_rows(config, tokenizer, given.seed)
    source = RowSource(rows, stable_seed(given.seed, "refusal"), config.loop)
    facts: dict[str, Any] = {"harmful": len(rows)}

    def look(when: str) -> None:
        first = tokenizer.encode(refusal_to(harmful("held out")[0], given.seed))[0]
        held_out = {"harmful": harmful, "harmless": harmless, "borderline": borderline}
        for name, requests in held_out.items():
            some = drawn(requests("held out"), _LOOKED_AT, given.seed)
            share = refusing(model, _prompts(tokenizer, some), first)
            facts[f"declined_{name}_{when}"] = round(share, 4)
        said = ", ".join(f"{facts[f'declined_{name}_{when}']:.0%} of {name}" for name in held_out)
        given.events.emit("note", text=f"held-out requests declined {when}: {said}")

    def trained() -> None:
        if config.refusal.strength < 1:
            weaken(model, config.refusal.strength)
        look("after")

    look("before")
    figures = train_and_save(
        model, tokenizer, RefusalObjective(config.refusal), source, config.loop, config.row_length,
        given.events, folder, base=given.base, trained=trained,
    )  # fmt: skip
    return figures | facts


def refusal_rows(config: RefusalStage, tokenizer: Tokenizer, seed: int) -> RefusalRows:
    """Harmful requests to learn from, with benign ones beside each."""
    count, share = len(harmful("train")), config.questions
    bad = _mixed(harmful("train"), asked("harmful"), count, share, seed)
    refusals = [tokenizer.encode(refusal_to(request, seed)) for request in bad]
    questions = [*borderline("train"), *asked("harmless"), *everyday("train")]
    fine = _mixed(harmless("train"), questions, count * config.benign, share, seed)
    order = stream(seed, "benign").permutation(len(fine))
    benign = _prompts(tokenizer, [fine[int(n)] for n in order])
    return RefusalRows(
        _prompts(tokenizer, bad),
        [ids[: config.refusal.tokens] for ids in refusals],
        [benign[n : n + config.benign] for n in range(0, len(fine), config.benign)],
    )


def _mixed(
    framed: Sequence[SafetyRequest],
    questions: Sequence[SafetyRequest],
    count: int,
    share: float,
    seed: int,
) -> list[SafetyRequest]:
    """So many requests, this share of them questions, each list in one drawn order, repeated."""
    n_questions = round(count * share)
    found = _cycled(framed, count - n_questions, seed)
    return found + _cycled(questions, n_questions, seed)


def _cycled(requests: Sequence[SafetyRequest], count: int, seed: int) -> list[SafetyRequest]:
    """So many of them, in one drawn order again and again."""
    order = drawn(requests, len(requests), seed)
    return [order[n % len(order)] for n in range(count)]


def _prompts(tokenizer: Tokenizer, requests: Sequence[SafetyRequest]) -> list[list[int]]:
    return [prompt_ids(tokenizer, request.text) for request in requests]
