"""Batches of packed rows as a pure function of the step."""

from puna.data import Batch, PackedRows, rows_of_step
from puna.training.config import LoopConfig


class PackedSource:
    """Micro-batches of packed rows in the order fixed by (seed, epoch, step).

    Args:
        rows: the packed token file.
        seed: of the order.
        config: gives the rows of a step and of a micro-batch.
    """

    def __init__(self, rows: PackedRows, seed: int, config: LoopConfig) -> None:
        self.rows = rows
        self.seed = seed
        self.batch_rows = config.batch_rows
        self.micro_rows = config.micro_rows or config.batch_rows

    def __call__(self, step: int) -> list[Batch]:
        indices = rows_of_step(self.seed, step, self.batch_rows, len(self.rows))
        starts = range(0, self.batch_rows, self.micro_rows)
        return [self.rows.rows(indices[start : start + self.micro_rows]) for start in starts]
