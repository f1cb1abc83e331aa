"""Data order: a pure function of (seed, epoch, step), so that resuming needs no state.

A rank takes its slice of the step's rows; their number never changes which rows a step has.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from puna.core.errors import UsageError
from puna.core.random import stream
from puna.data.tokens import Ints


@dataclass(frozen=True)
class Share:
    """One of several parts of every batch: that of a process among others."""

    number: int = 0
    """Which part, from 0."""
    of: int = 1
    """How many parts there are."""

    def micro_batches(self, batch_rows: int, micro_rows: int) -> list[range]:
        """Places in a batch of ``batch_rows`` that are this part's, ``micro_rows`` at a time.

        Parts differ by at most one row. ``micro_rows`` 0 takes all at once. Raises `UsageError`
        when a part would be empty.
        """
        if batch_rows < self.of:
            raise UsageError(
                f"batch_rows {batch_rows} is fewer than the {self.of} processes: raise it to at "
                f"least {self.of}, or start fewer processes"
            )
        first, end = (batch_rows * n // self.of for n in (self.number, self.number + 1))
        size = micro_rows or end - first
        return [range(start, min(start + size, end)) for start in range(first, end, size)]


WHOLE = Share()


def rows_of_step(seed: int, step: int, batch_rows: int, n_rows: int) -> Ints:
    """(batch_rows,) the row numbers of the global batch of ``step``.

    Steps walk through epochs end to end, each epoch its own permutation of all rows; a batch may
    straddle two, or hold several where there are fewer rows than a batch takes.
    """
    if n_rows < 1:
        raise UsageError("there are no rows to train on: give a corpus with at least one document")
    places = np.arange(step * batch_rows, (step + 1) * batch_rows)
    epochs, within = np.divmod(places, n_rows)
    rows = np.empty_like(places)
    for epoch in np.unique(epochs):
        here = epochs == epoch
        rows[here] = permutation(seed, int(epoch), n_rows)[within[here]]
    return rows


@lru_cache(maxsize=4)
def permutation(seed: int, epoch: int, n_rows: int) -> Ints:
    """(n_rows,) the order of an epoch's rows."""
    order = stream(seed, "order", epoch).permutation(n_rows)
    order.setflags(write=False)
    return order
