"""Speculation: tokens proposed ahead, which one pass of the model then checks together.

A proposal is kept only when it is what the row's own choice gives, so text does not change.
"""

from collections.abc import Callable, Sequence
from typing import Protocol
from weakref import WeakKeyDictionary

from puna.inference.rows import Row
from puna.inference.runner import Runner
from puna.inference.weights import Weights
from puna.model import Llama

LONGEST_MATCH = 4
MOST_PLACES = 32
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

    def __init__(self) -> None:
        self._seen: WeakKeyDictionary[Row, Repeats] = WeakKeyDictionary()

    def propose(self, rows: Sequence[Row], n: int, reserve: Reserve) -> None:  # noqa: ARG002
        """As `Drafter.propose`."""
        for row in rows:
            repeats = self._seen.get(row)
            if repeats is None:
                repeats = self._seen[row] = Repeats()
            most = min(n, row.limit - len(row.tokens) - 1)
            row.draft = repeats.continuation(row.tokens, most) if most > 0 else []

    def follow(
        self,
        tokens: Sequence[Sequence[int]],
        pages: Sequence[Sequence[int]],
        starts: Sequence[int],
    ) -> None:
        """Nothing: the text is all there is to it."""


class Repeats:
    """Where each pair of neighbouring tokens of a growing text stood, so that its end is found
    again without reading the text from the start."""

    def __init__(self) -> None:
        self._newest: dict[tuple[int, int], int] = {}
        self._before: list[int] = [0, 0]  # end of a pair -> end of the same pair before it, or 0

    def continuation(self, tokens: Sequence[int], n: int) -> list[int]:
        """At most ``n`` tokens that followed the newest ones at an earlier place.

        Args:
            tokens: the whole text; it only ever grows.
            n: 1 or more.

        The longest match of 2 to `LONGEST_MATCH` tokens counts, of equal ones the latest; as
        many places as `MOST_PLACES` are compared.
        """
        for end in range(len(self._before), len(tokens)):
            pair = (tokens[end - 2], tokens[end - 1])
            self._before.append(self._newest.get(pair, 0))
            self._newest[pair] = end
        if len(tokens) < 3:
            return []
        best, longest = 0, 0
        place = self._newest.get((tokens[-2], tokens[-1]), 0)
        for _ in range(MOST_PLACES):
            if not place or longest == LONGEST_MATCH:
                break
            length = _match(tokens, place)
            if length > longest:
                best, longest = place, length
            place = self._before[place]
        return list(tokens[best : best + n]) if best else []


class DraftModel:
    """Proposes what a smaller model would write.

    It keeps its keys and values in pages of the same numbers as the large model's, so prefix cache
    and preemption hold for both.
    """

    def __init__(self, model: Llama, weights: Weights, sizes: tuple[int, int]) -> None:
        self._runner = Runner(model, weights, *sizes)

    def propose(self, rows: Sequence[Row], n: int, reserve: Reserve) -> None:
        """As `Drafter.propose`."""
        room = {row: max(0, min(n, row.limit - len(row.tokens) - 1)) for row in rows}
        kept = reserve(rows, [1 + most for most in room.values()])
        for row in kept:
            row.draft = []
        for step in range(n):
            active = [row for row in kept if step < room[row]]
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


def _match(tokens: Sequence[int], end: int) -> int:
    """How many tokens before ``end`` equal those at the end of the text, up to the longest."""
    length = 0
    while length < min(LONGEST_MATCH, end) and tokens[end - 1 - length] == tokens[-1 - length]:
        length += 1
    return length
