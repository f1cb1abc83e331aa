"""Where a safeguard stands on every path: it admits prompts and filters answers.

No safeguard is built here: this is what one must offer. `Call.generate` asks it whenever one is
configured. A blocked prompt is answered with status 400, type ``safety_error``, code
``content_blocked``; a blocked answer ends with finish ``content_filter``, and what was not yet
released, its token ids and log-probabilities included, never leaves the server.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal, Protocol

from puna.inference import Delta, TokenLogprob
from puna.tokenizer import Message

Decision = Literal["allow", "warn", "block"]


@dataclass(frozen=True)
class Verdict:
    """What a safeguard thinks."""

    decision: Decision = "allow"
    reason: str = ""
    """Why, in a line that may be shown to the client."""


@dataclass(frozen=True)
class Subject:
    """What is to be admitted."""

    text: str
    """The whole prompt as the model reads it, template included."""
    messages: Sequence[Message]
    """The conversation, where the endpoint knows one."""
    model: str
    key: str | None
    """Name of the client's API key."""


class OutputFilter(Protocol):
    """Watches one answer."""

    verdict: Verdict
    """What it thinks so far; after "block" nothing more is pushed or released."""

    def push(self, text: str) -> str:
        """Take new text; the text that may be released now."""
        ...

    def flush(self) -> str:
        """The answer is complete; the rest that may be released."""
        ...


class Safeguard(Protocol):
    """Watches prompts and answers. It is called on the event loop: slow work belongs elsewhere."""

    async def admit(self, subject: Subject) -> Verdict:
        """Whether a prompt may be answered."""
        ...

    def output_filter(self, subject: Subject) -> OutputFilter:
        """A filter for one answer."""
        ...


class Filtered:
    """Passes one answer's deltas through a filter, holding back ids as long as their text."""

    def __init__(self, output_filter: OutputFilter) -> None:
        self._filter = output_filter
        self._ids: tuple[int, ...] = ()
        self._logprobs: tuple[TokenLogprob, ...] = ()
        self._held = 0
        """Characters pushed and not yet released."""

    @property
    def verdict(self) -> Verdict:
        """What the filter thinks so far."""
        return self._filter.verdict

    def push(self, delta: Delta) -> Delta:
        """What of ``delta``, and of earlier ones, may leave; a block ends the answer."""
        text = self._filter.push(delta.text)
        if delta.finish is not None and self.verdict.decision != "block":
            text += self._filter.flush()
        if self.verdict.decision == "block":
            return replace(delta, ids=(), text=text, logprobs=(), finish="content_filter")
        self._held += len(delta.text) - len(text)
        ids, logprobs = self._ids + delta.ids, self._logprobs + delta.logprobs
        if self._held and delta.finish is None:
            self._ids, self._logprobs = ids, logprobs
            return replace(delta, ids=(), text=text, logprobs=())
        self._ids, self._logprobs = (), ()
        return replace(delta, ids=ids, text=text, logprobs=logprobs)
