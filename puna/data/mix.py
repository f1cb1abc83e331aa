"""Several sets of items in one stream of packed rows, each with its share of the tokens.

What a pass holds and in which order is a pure function of the seed and the number of the pass.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache, reduce
from itertools import count, groupby

import numpy as np

from puna.core.errors import UsageError
from puna.core.random import stream
from puna.data.order import WHOLE, Share, permutation
from puna.data.packing import Batch, PackedRows
from puna.data.tokens import Ints, TokenFile


@dataclass(frozen=True)
class Group:
    """Items of a token file that are mixed as one.

    Attributes:
        items: their numbers.
        weight: its share against the other groups with a weight; None: each item once a pass.
    """

    items: Ints
    weight: float | None = None


class MixedRows:
    """Rows of weighted groups, pass after pass, each pass packed when it is reached.

    A pass holds as many tokens of the weighted groups as they have together, divided by weight: a
    group may be repeated, or be drawn from, another part of it in each pass.

    Args:
        tokens: what the items' numbers point into.
        groups: what is mixed; those without a weight come whole.
        row_length: tokens of a row.
        seed: of what is drawn, and of the order.
    """

    def __init__(
        self, tokens: TokenFile, groups: Sequence[Group], row_length: int, seed: int
    ) -> None:
        self.tokens = tokens
        self.groups = [group for group in groups if len(group.items)]
        self.row_length = row_length
        self.seed = seed
        if not self.groups:
            raise UsageError("there is no item to train on: every one is held out or left out")
        self._sizes: list[int] = []
        self.packed = lru_cache(maxsize=2)(self._packed)

    def _packed(self, number: int) -> PackedRows:
        """The rows of a pass, in the order in which they were packed."""
        return PackedRows(self.tokens, self.row_length, self.items(number))

    def items(self, number: int) -> Ints:
        """What a pass holds; the numbers of a repeated item stand several times."""
        weighted = [group for group in self.groups if group.weight is not None]
        total = sum(self._n_tokens(group.items) for group in weighted)
        shares = sum(group.weight or 0 for group in weighted)
        parts = []
        for place, group in enumerate(self.groups):
            if group.weight is None:
                parts.append(group.items)
            else:
                wanted = total * group.weight / shares
                parts.append(self._drawn(group.items, wanted, number, place))
        return np.concatenate(parts)

    def _n_tokens(self, items: Ints) -> int:
        return int(self.tokens.lengths[items].sum())

    def _drawn(self, items: Ints, wanted: float, number: int, place: int) -> Ints:
        """As many passes over ``items`` as ``wanted`` tokens hold, going on where the last ended.

        Passes of the mix walk through shuffled passes of the group end to end, so that every item
        is seen equally often, whatever its share.
        """
        has = self._n_tokens(items)
        found: list[Ints] = []
        at, first = wanted * number, int(wanted * number // has)
        for turn in count(first):
            order = items[stream(self.seed, "mix", place, turn).permutation(len(items))]
            ends = np.cumsum(self.tokens.lengths[order]) + turn * has
            # An item belongs to the pass in which it ends.
            found.append(order[(ends > at) & (ends <= at + wanted)])
            if (turn + 1) * has >= at + wanted:
                return np.concatenate(found)
        raise AssertionError("an endless count was left")

    def rows_of(self, first: int, n_rows: int) -> Batch:
        """Rows ``first`` to ``first + n_rows`` of the stream of all passes."""
        places = [self._locate(place) for place in range(first, first + n_rows)]
        batches = [
            self.packed(number).rows(
                permutation(self.seed, number, self._sizes[number])[[row for _, row in rows]]
            )
            for number, rows in groupby(places, key=lambda found: found[0])
        ]
        return reduce(Batch.with_rows, batches)

    def _locate(self, place: int) -> tuple[int, int]:
        """(pass, place in it) of a row of the stream."""
        for number in count():
            if number == len(self._sizes):
                self._sizes.append(len(self.packed(number)))
            if place < self._sizes[number]:
                return number, place
            place -= self._sizes[number]
        raise AssertionError("an endless count was left")


class MixSource:
    """Micro-batches of a step: what `RowSource` is for rows that are the same in each pass.

    Args:
        rows: the stream.
        batch_rows: rows of a step.
        micro_rows: rows of a micro-batch, 0 for all.
    """

    def __init__(self, rows: MixedRows, batch_rows: int, micro_rows: int) -> None:
        self.rows = rows
        self.batch_rows = batch_rows
        self.micro_rows = micro_rows

    def __call__(self, step: int, share: Share = WHOLE) -> list[Batch]:
        first = step * self.batch_rows
        parts = share.micro_batches(self.batch_rows, self.micro_rows)
        return [self.rows.rows_of(first + part.start, len(part)) for part in parts]
