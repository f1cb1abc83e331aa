"""The objective of pretraining and instruction tuning: predict the next token."""

from puna.data import Batch
from puna.model import Llama, cross_entropy_sum
from puna.training.loop import Outcome


def next_token(model: Llama, batch: Batch) -> Outcome:
    """Cross-entropy summed over the labelled positions of packed rows."""
    hidden = model.hidden(batch.ids, positions_bt=batch.positions, documents_bt=batch.documents)
    loss, count = cross_entropy_sum(hidden, model.head_weight(), batch.labels)
    return Outcome(loss, count)
