"""Speculation: tokens proposed ahead, which one pass of the model then checks together.

A proposal is kept only when it is what the row's own choice gives, so text does not change.
"""

from collections.abc import Callable, Sequence
from typing import Protocol

from puna.inference.rows import Row
from puna.inference.runner import Runner
from puna.inference.weights import Weights
from puna.model import Llama

LONGEST_MATCH = 4
Reserve = Callable[[Sequence[Row], Sequence[int]], list[Row]]


class Drafter(Protocol):
    """Proposes tokens for rows."""

    def propose(self, rows: Sequence[Row], n: int, reserve: Reserve) -> None:
        """Set each row's ``draft`` to at most ``n`` tokens, within its limit."""
        ...

    def follow(
        self,
        tokens: Sequence[Sequence[int]],
        pages: Sequence[Sequence[int]],
        starts: Sequence[int],
    ) -> None:
        """See what has just passed through the model."""
        ...


class LookUp:
    """Proposes what followed the last tokens when they stood in this text before.

    Good for answers that repeat their prompt: summaries, edits, code (Saxena 2023).
    """

    def propose(self, rows: Sequence[Row], n: int, reserve: Reserve) -> None:  # noqa: ARG002
        """As `Drafter.propose`."""
        for row in rows:
            row.draft = _continuation(row.tokens, min(n, row.limit - len(row.tokens) - 1))

    def follow(
        self,
        tokens: Sequence[Sequence[int]],
        pages: Sequence[Sequence[int]],
        starts: Sequence[int],
    ) -> None:
        """Nothing: the text is all there is to it."""


class DraftModel:
    """Proposes what a smaller model would write.

    It keeps its keys and values in pages of the same numbers as the large model's, so prefix cache
    and preemption hold for both.
    """

    def __init__(self, model: Llama, weights: Weights, sizes: tuple[int, int]) -> None:
        self._runner = Runner(model, weights, *sizes)

    def propose(self, rows: Sequence[Row], n: int, reserve: Reserve) -> None:
        """As `Drafter.propose`."""
        room = [max(0, min(n, row.limit - len(row.tokens) - 1)) for row in rows]
        kept = reserve(rows, [1 + each for each in room])
        for row in kept:
            row.draft = []
        for step in range(max(room, default=0)):
            active = [
                row for row, most in zip(rows, room, strict=True) if row in kept and step < most
            ]
            if not active:
                return
            newest = [[row.draft[-1] if row.draft else row.tokens[-1]] for row in active]
            pages = [row.prefix.pages for row in active]
            starts = [row.computed + step for row in active]
            hidden = self._runner.hidden(newest, pages, starts)
            chosen = self._runner.logits(hidden[:, -1]).argmax(-1).tolist()
            for row, token in zip(active, chosen, strict=True):
                row.draft.append(token)

    def follow(
        self,
        tokens: Sequence[Sequence[int]],
        pages: Sequence[Sequence[int]],
        starts: Sequence[int],
    ) -> None:
        """Bring the draft's cache to where the model's is."""
        self._runner.hidden(tokens, pages, starts)


def _continuation(tokens: Sequence[int], n: int) -> list[int]:
    """What followed the newest tokens at their last earlier place; longer matches first."""
    if n <= 0:
        return []
    for length in range(min(LONGEST_MATCH, len(tokens) - 1), 1, -1):
        tail = list(tokens[-length:])
        for start in range(len(tokens) - length - 1, -1, -1):
            if list(tokens[start : start + length]) == tail:
                return list(tokens[start + length : start + length + n])
    return []
