"""Micro-batches as a pure function of the step and of the part of it that is asked for."""

from typing import Generic, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from puna.data import WHOLE, Share, rows_of_step
from puna.training.config import LoopConfig

T_co = TypeVar("T_co", covariant=True)


class Rows(Protocol[T_co]):
    """Something to train on, row by row."""

    def __len__(self) -> int: ...

    def rows(self, indices: NDArray[np.int64]) -> T_co:
        """A batch of the rows of these numbers, in their order."""
        ...


class RowSource(Generic[T_co]):
    """Micro-batches of rows in the order fixed by (seed, epoch, step).

    Args:
        rows: what to train on, packed rows or pairs.
        seed: of the order.
        config: gives the rows of a step and of a micro-batch.
    """

    def __init__(self, rows: Rows[T_co], seed: int, config: LoopConfig) -> None:
        self.rows = rows
        self.seed = seed
        self.batch_rows = config.batch_rows
        self.micro_rows = config.micro_rows

    def __call__(self, step: int, share: Share = WHOLE) -> list[T_co]:
        indices = rows_of_step(self.seed, step, self.batch_rows, len(self.rows))
        parts = share.micro_batches(self.batch_rows, self.micro_rows)
        return [self.rows.rows(indices[part.start : part.stop]) for part in parts]
