"""Needles looked for by a model that is spread over processes: see `puna.pretraining.needle`."""

from collections.abc import Sequence
from functools import partial

import torch

from puna.data import Batch
from puna.model import Llama
from puna.model.loss import IGNORED, likeliest
from puna.parallel.parallelize import as_it_is
from puna.pretraining.needle import needle_row
from puna.tokenizer import Tokenizer
from puna.training import Outcome


@torch.no_grad()
def spread_needle_accuracy(
    model: Llama, tokenizer: Tokenizer, hay: Sequence[int], length: int, n: int, seed: int = 0
) -> float:
    """`needle_accuracy` of the same rows; all processes call it, each takes its share of them."""
    parallel = as_it_is(model)
    share, layout = parallel.mesh.share, parallel.mesh.layout
    wrong_tokens = partial(_wrong_tokens, with_documents=layout.cp * layout.pp > 1)
    missed = [0.0] * n
    for start in range(0, n, share.of):
        number = min(start + share.number, n - 1)
        depth = number / max(1, n - 1)
        row = needle_row(tokenizer, hay, length, depth, seed * 1000 + number)
        for outcome in parallel.look(wrong_tokens, _as_batch(*row)):
            if start + share.number < n:  # else it only takes part
                missed[number] = float(outcome.loss_sum)
    return sum(each == 0 for each in parallel.mesh.total(missed)) / n


def _as_batch(ids: Sequence[int], tail: int) -> Batch:
    """A row whose labels are its last ``tail`` tokens."""
    row = torch.tensor([ids])
    labels = torch.full_like(row, IGNORED)
    labels[:, -tail - 1 : -1] = row[:, -tail:]
    return Batch(row, labels, torch.zeros_like(row), torch.arange(len(ids))[None])


def _wrong_tokens(model: Llama, batch: Batch, *, with_documents: bool) -> Outcome:
    """How many labels are not the likeliest token; documents are named where a row is cut."""
    documents = batch.documents if with_documents else None
    hidden = model.hidden(batch.ids, positions_bt=batch.positions, documents_bt=documents)
    right = likeliest(hidden, model.head_weight(), batch.labels)
    return Outcome((~right).sum().float(), len(right))
