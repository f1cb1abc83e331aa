"""The loss on rows that are not trained on."""

from puna.data import PackedRows
from puna.model import Llama
from puna.training.look import mean_loss


def held_out_loss(model: Llama, rows: PackedRows, n_rows: int, at_once: int = 16) -> float:
    """Mean loss of the first ``n_rows`` rows, nats per token; of a spread model all call it."""
    return mean_loss(model, rows, min(n_rows, len(rows)), at_once)
