"""What goes into the engine and what comes out: requests, deltas, figures of its state."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, Protocol

import torch

from puna.core.errors import PunaError, UsageError
from puna.inference.sampling import Sampling

Finish = Literal["stop", "length", "cancelled", "error", "content_filter"]
"""Why a generation ended: a stop token or text, the limit, the caller, a failure, a safeguard."""


class QueueFull(PunaError):
    """The engine's queue has no room.

    Attributes:
        retry_after_s: seconds after which trying again is worth it.
    """

    def __init__(self, retry_after_s: float) -> None:
        super().__init__(f"the queue is full: try again in {retry_after_s:.0f} s")
        self.retry_after_s = retry_after_s


class Constraint(Protocol):
    """What a text must look like, token after token: a schema, a regular expression, a grammar."""

    def mask(self) -> torch.Tensor:
        """Which tokens may come next: (vocab_size,) bool."""
        ...

    def accept(self, token: int) -> None:
        """Take the chosen token into account."""
        ...

    def finished(self) -> bool:
        """Whether the text is complete, so that nothing can follow, or in error."""
        ...

    @property
    def error(self) -> str | None:
        """Why the text cannot be followed any further, if so: a limit of the grammar's parser."""
        ...


@dataclass(frozen=True)
class Request:
    """One text to go on from."""

    prompt: Sequence[int]
    """Token ids; at least one."""
    sampling: Sampling = field(default_factory=Sampling)
    stop_ids: frozenset[int] = frozenset()
    """Tokens that end the generation; they are not part of it."""
    constraint: Constraint | None = None
    """What the text must look like; the request owns it."""
    adapter: str | None = None
    """Name of a loaded LoRA adapter; None is the model itself."""


@dataclass(frozen=True)
class TokenLogprob:
    """A token's log-probability under the model, before temperature and filters."""

    id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()
    """The most probable tokens here with theirs, best first; as many as were asked."""


@dataclass(frozen=True)
class Delta:
    """What a request has gained since its last delta."""

    ids: tuple[int, ...] = ()
    """New tokens; stop tokens are not among them."""
    text: str = ""
    """New text: never half a character, never the beginning of a stop text that came true."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each of ``ids``, where asked."""
    prompt_logprobs: tuple[TokenLogprob | None, ...] | None = None
    """One for each token of the prompt, the first None; in the first delta, where asked."""
    cached_tokens: int = 0
    """Prompt tokens found in the prefix cache; in the first delta."""
    finish: Finish | None = None
    """Set in the last delta."""
    matched: str | None = None
    """The stop text that ended it, if one did."""
    error: str | None = None
    """What failed, in a last delta whose finish is "error"."""


@dataclass(frozen=True)
class Stats:
    """The engine at this moment; counters since its start."""

    running: int
    waiting: int
    waiting_tokens: int
    """Prompt tokens still to prefill, of waiting and running requests."""
    pages: int
    pages_used: int
    """Pages that running requests hold."""
    pages_cached: int
    """Pages kept for prompts to come; given up when room is needed."""
    page_size: int
    prompt_tokens: int
    cached_tokens: int
    """Prompt tokens that the prefix cache saved."""
    generated_tokens: int
    finished: int
    cancelled: int
    failed: int
    drafted_tokens: int
    """Tokens proposed by speculation."""
    accepted_tokens: int
    """Of those, the ones the model would have written itself."""


def check_fits(prompt: Sequence[int], context: int) -> None:
    """Raise `UsageError` when a prompt is empty or leaves no room for a new token."""
    if not prompt:
        raise UsageError("the prompt is empty: give at least one token")
    if len(prompt) >= context:
        raise UsageError(
            f"the prompt has {len(prompt)} tokens and this model's context is {context}: "
            "shorten it, or start a new conversation"
        )
