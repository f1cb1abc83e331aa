"""The loss on rows that are not trained on."""

import torch

from puna.data import PackedRows
from puna.model import Llama
from puna.training import next_token


@torch.no_grad()
def held_out_loss(model: Llama, rows: PackedRows, n_rows: int, at_once: int = 16) -> float:
    """Mean loss of the first ``n_rows`` rows, nats per token."""
    total, count = 0.0, 0
    for start in range(0, min(n_rows, len(rows)), at_once):
        end = min(start + at_once, n_rows, len(rows))
        outcome = next_token(model, rows.rows(range(start, end)).to(model.device))
        total, count = total + float(outcome.loss_sum), count + outcome.count
    return total / count
