"""Looks at a model as it stands, spread over processes or not: all of them take part."""

from typing import Any

import torch

from puna.model import Llama
from puna.parallel.parallelize import as_it_is
from puna.training.loop import Objective
from puna.training.objectives import next_token
from puna.training.source import Rows


def set_dtype(model: Llama, dtype: torch.dtype | None) -> None:
    """Compute in ``dtype`` from now on, in every part of ``model``; None is that of the weights."""
    for part in (model, *as_it_is(model).parts):
        part.compute_dtype = dtype


@torch.no_grad()
def mean_loss(
    model: Llama, rows: Rows[Any], n_rows: int, at_once: int, objective: Objective = next_token
) -> float:
    """Mean over what ``objective`` counts in the first ``n_rows`` rows, nats per token as a rule.

    Of a model that is spread all processes call it; each takes its share of the rows.

    Args:
        at_once: rows in one forward pass of a process.
    """
    parallel, sums = as_it_is(model), [0.0, 0.0]
    share = parallel.mesh.share
    for start in range(0, n_rows, at_once * share.of):
        first = start + share.number * at_once
        numbers = list(range(first, min(first + at_once, n_rows)))
        for outcome in parallel.look(objective, rows.rows(numbers or [0])):  # type: ignore[arg-type]
            if numbers:  # else it only takes part
                sums[0] += float(outcome.loss_sum)
                sums[1] += outcome.count
    total, count = parallel.mesh.total(sums)
    return total / count
