"""Texts from start to end: the engine for callers who just want the result."""

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from puna.core.errors import PunaError, UsageError
from puna.inference.engine import Engine
from puna.inference.request import Delta, QueueFull, Request, TokenLogprob, check_fits


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
    """Deltas of one request as they come; leaving the loop cancels it.

    Raises `UsageError` for a request that cannot be run, and while the engine runs others.
    """
    _check_idle(engine)
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

    Raises `UsageError` when one does not fit the context, before any has started, and while the
    engine runs others.
    """
    _check_idle(engine)
    for request in requests:
        check_fits(request.prompt, engine.context)
    results: dict[int, list[Delta]] = {}
    pending = deque(requests)
    try:
        while pending or not engine.idle:
            _submit_some(engine, pending, results)
            for owner, delta in engine.step():
                results[owner].append(_checked(delta))
    finally:
        for handle in results:
            engine.cancel(handle)
    return [joined(deltas) for deltas in results.values()]


def _check_idle(engine: Engine) -> None:
    """Else each caller would take the other's deltas."""
    if not engine.idle:
        raise UsageError("this engine is running other requests: share it through AsyncEngine")


def _submit_some(engine: Engine, pending: deque[Request], results: dict[int, list[Delta]]) -> None:
    """Keep as many waiting as could start together, where the queue is not smaller."""
    while pending and engine.stats().waiting < engine.config.max_rows:
        try:
            handle = engine.submit(pending[0])
        except QueueFull:
            return  # those before it make room
        pending.popleft()
        results[handle] = []


def _checked(delta: Delta) -> Delta:
    if delta.error is not None:
        raise PunaError(f"generation failed: {delta.error}")
    return delta


def joined(deltas: Sequence[Delta]) -> Generation:
    """All deltas of one request as its result."""
    prompt = next((d.prompt_logprobs for d in deltas if d.prompt_logprobs is not None), None)
    return Generation(
        ids=[i for delta in deltas for i in delta.ids],
        text="".join(delta.text for delta in deltas),
        stopped=bool(deltas) and deltas[-1].finish == "stop",
        logprobs=[entry for delta in deltas for entry in delta.logprobs],
        prompt_logprobs=None if prompt is None else list(prompt),
    )
