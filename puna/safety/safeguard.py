"""What every safeguard offers: it admits prompts and filters answers.

Whoever answers for a model asks it: the server on every path, the chat on the command line, the
evaluations. In the server a blocked prompt is answered with status 400, type ``safety_error``, code
``content_blocked``; a blocked answer ends with finish ``content_filter``, and what was not yet
released, its token ids and log-probabilities included, never leaves the server.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

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


@runtime_checkable
class SlowFilter(OutputFilter, Protocol):
    """An output filter whose judgement takes time, off the event loop."""

    async def settled(self) -> None:
        """The answer is complete: wait until `flush` can release what may be released."""
        ...


@runtime_checkable
class Cleaner(Protocol):
    """A safeguard that takes things out of prompts before the model reads them."""

    def clean(self, text: str) -> str:
        """A text of a prompt without what must not reach the model."""
        ...
