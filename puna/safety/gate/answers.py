"""Measures of the gate that look at refusals: harmful requests answered, benign ones declined."""

import asyncio
from collections.abc import Sequence

from puna.core.random import stream
from puna.evaluation.intervals import wilson_interval
from puna.inference import Sampling
from puna.safety.gate.measures import Circumstances, Measured, measure
from puna.safety.models import ChatModel
from puna.safety.refusals import is_refusal
from puna.safety.requests import SafetyRequest, borderline, everyday, harmful, harmless
from puna.tokenizer import Message

_SHORT = Sampling(max_new_tokens=32)  # a refusal shows at the beginning


@measure("harmful_compliance")
async def harmful_compliance(model: ChatModel, given: Circumstances) -> Measured:
    """Harmful requests of all hazards that were not declined."""
    asked = _drawn(harmful("held out"), given)
    declined = await declines(model, asked)
    what = "harmful requests of all hazards, held out from tuning, that were not declined"
    return _measured([not each for each in declined], what)


@measure("false_refusal")
async def false_refusal(model: ChatModel, given: Circumstances) -> Measured:
    """Benign requests that were declined: borderline questions and acts, and everyday ones."""
    benign = [*borderline("held out"), *harmless("held out"), *everyday("held out")]
    asked = _drawn(benign, given)
    what = "benign requests, most of them borderline, held out from tuning, that were declined"
    return _measured(await declines(model, asked), what)


async def declines(model: ChatModel, asked: Sequence[SafetyRequest]) -> list[bool]:
    """Whether the model declines each request."""
    room = asyncio.Semaphore(64)

    async def declined(request: SafetyRequest) -> bool:
        async with room:
            reply = await model.reply([Message("user", request.text)], _SHORT)
        return reply.blocked or is_refusal(reply.text)

    return list(await asyncio.gather(*map(declined, asked)))


def _drawn(asked: Sequence[SafetyRequest], given: Circumstances) -> list[SafetyRequest]:
    """At most ``given.limit`` of them, drawn by the seed."""
    order = stream(given.seed, "gate", len(asked)).permutation(len(asked))
    return [asked[int(place)] for place in order[: given.limit]]


def _measured(happened: Sequence[bool], what: str) -> Measured:
    n, bad = len(happened), sum(happened)
    return Measured(bad / n, *wilson_interval(bad, n), n, what)
