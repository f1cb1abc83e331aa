"""Texts from start to end: the engine for callers who just want the result."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from puna.core.errors import PunaError
from puna.inference.engine import Engine
from puna.inference.request import Delta, Request, TokenLogprob, check_fits


@dataclass(frozen=True)
class Generation:
    """What the model wrote after a prompt."""

    ids: list[int]
    """The new tokens, without the stop token."""
    text: str
    """Their text, up to a stop text."""
    stopped: bool
    """Whether it ended by itself, with a stop token or a stop text."""
    logprobs: list[TokenLogprob]
    """One for each token, where asked."""
    prompt_logprobs: list[TokenLogprob | None] | None = None
    """One for each token of the prompt, where asked."""


def stream(engine: Engine, request: Request) -> Iterator[Delta]:
    """Deltas of one request as they come; leaving the loop cancels it."""
    handle = engine.submit(request)
    try:
        while not engine.idle:
            for owner, delta in engine.step():
                if owner == handle:
                    yield _checked(delta)
                    if delta.finish is not None:
                        return
    finally:
        engine.cancel(handle)


def generate(engine: Engine, requests: Sequence[Request]) -> list[Generation]:
    """Run all requests to their ends; results are in their order.

    Raises `UsageError` when one does not fit the context, before any has started.
    """
    for request in requests:
        check_fits(request.prompt, engine.context)
    results: dict[int, list[Delta]] = {}
    handles: list[int] = []
    pending = list(reversed(requests))
    try:
        while pending or not engine.idle:
            while pending and engine.stats().waiting < engine.config.max_rows:
                handles.append(engine.submit(pending.pop()))
                results[handles[-1]] = []
            for owner, delta in engine.step():
                if owner in results:
                    results[owner].append(_checked(delta))
    finally:
        for handle in handles:
            engine.cancel(handle)
    return [_joined(results[handle]) for handle in handles]


def _checked(delta: Delta) -> Delta:
    if delta.error is not None:
        raise PunaError(f"generation failed: {delta.error}")
    return delta


def _joined(deltas: Sequence[Delta]) -> Generation:
    prompt = next((d.prompt_logprobs for d in deltas if d.prompt_logprobs is not None), None)
    return Generation(
        ids=[i for delta in deltas for i in delta.ids],
        text="".join(delta.text for delta in deltas),
        stopped=bool(deltas) and deltas[-1].finish == "stop",
        logprobs=[entry for delta in deltas for entry in delta.logprobs],
        prompt_logprobs=None if prompt is None else list(prompt),
    )
