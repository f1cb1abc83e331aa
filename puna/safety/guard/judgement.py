"""What a guard finds in a conversation, and what every guard offers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from puna.tokenizer import Message


@dataclass(frozen=True)
class Judgement:
    """What a guard thinks of the last turn of a conversation.

    Attributes:
        unsafe: whether it is harmful, at the guard's own threshold.
        score: how sure the guard is that it is harmful, from 0 to 1; 0 or 1 where it does not say.
        hazards: codes of what is wrong, the likeliest first.
    """

    unsafe: bool
    score: float
    hazards: tuple[str, ...] = ()


class Classifier(Protocol):
    """Judges conversations; slow work is done off the event loop."""

    name: str
    """What the user called it."""

    async def judge(self, messages: Sequence[Message]) -> Judgement:
        """What it thinks of the last turn. Raises `PunaError` when it cannot say."""
        ...

    async def close(self) -> None:
        """Let go of what it holds; nothing is asked afterwards."""
        ...
