"""What one request did: its line in the log, its share in the figures, its cost to the key."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from puna.inference import Delta, Request
from puna.serving.auth import Holder
from puna.serving.errors import ApiError
from puna.serving.hub import Served
from puna.serving.limits import Bucket
from puna.serving.stats import ModelFigures


@dataclass
class Record:
    """Facts of one request, for the log."""

    keep_text: bool = False
    """Whether prompts and answers are kept too."""
    model: str | None = None
    prompt_tokens: int = 0
    cached_tokens: int = 0
    generated_tokens: int = 0
    ttft_s: float | None = None
    """Time from the request's arrival to its first token."""
    finish: str | None = None
    prompts: list[str] = field(default_factory=list)
    answers: dict[int, str] = field(default_factory=dict)

    def facts(self) -> dict[str, Any]:
        """The facts as JSON; text only where it is kept."""
        facts: dict[str, Any] = {
            "model": self.model,
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "generated_tokens": self.generated_tokens,
            "ttft_ms": None if self.ttft_s is None else round(1000 * self.ttft_s, 1),
            "finish": self.finish,
        }
        if self.keep_text:
            facts |= {"prompts": self.prompts, "answers": list(self.answers.values())}
        return facts


def take(bucket: Bucket, amount: int, what: str) -> None:
    """Take from a key's allowance; raises `ApiError` 429 when it is used up."""
    wait_s = bucket.take(amount)
    if wait_s > 0:
        raise ApiError(
            429,
            f"this key's {what} per minute are used up: try again in {wait_s:.0f} s",
            type=what,
            code="rate_limit_exceeded",
            retry_after_s=wait_s,
        )


class Measure:
    """Measures one generation: tokens and times, for the record, the model and the key.

    Args:
        record: of the request.
        figures: of the model.
        started: `time.perf_counter` at the request's arrival.
        holder: of the key that pays.
    """

    def __init__(
        self, record: Record, figures: ModelFigures, started: float, holder: Holder | None
    ) -> None:
        self._record = record
        self._figures = figures
        self._started = started
        self._holder = holder
        self._last: dict[int, float] = {}

    def read(self, served: Served, requests: Sequence[Request]) -> None:
        """Count prompts, before they go to the engine; raises `ApiError` 429 for a used-up key."""
        tokens = sum(len(request.prompt) for request in requests)
        if self._holder is not None:
            take(self._holder.requests, 1, "requests")
            take(self._holder.tokens, tokens, "tokens")
        self._figures.requests += 1
        self._figures.prompt_tokens += tokens
        self._record.prompt_tokens += tokens
        if self._record.keep_text:
            self._record.prompts += [served.tokenizer.decode(r.prompt) for r in requests]

    def refund(self, requests: Sequence[Request]) -> None:
        """Give the prompts' tokens back to the key: the engine had no room for them."""
        if self._holder is not None:
            self._holder.tokens.spend(-sum(len(request.prompt) for request in requests))

    def took(self, index: int, delta: Delta) -> None:
        """Count a delta of the answer ``index``, now."""
        now = time.perf_counter()
        n_new = len(delta.ids)
        last = self._last.get(index)
        if last is None:
            self._figures.first_token.add(now - self._started)
            self._record.cached_tokens += delta.cached_tokens
            if self._record.ttft_s is None:
                self._record.ttft_s = now - self._started
        elif n_new:
            self._figures.inter_token.add((now - last) / n_new, n_new)
        self._last[index] = now
        if n_new:
            self._figures.generated_tokens += n_new
            self._figures.rate.add(n_new, now)
            self._record.generated_tokens += n_new
            if self._holder is not None:
                self._holder.tokens.spend(n_new)
        if self._record.keep_text:
            self._record.answers[index] = self._record.answers.get(index, "") + delta.text
