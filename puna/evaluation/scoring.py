"""Summed log-probabilities of chosen tokens: what likelihood and preferences both stand on."""

from collections.abc import Iterator, Sequence

import torch

from puna.model import IGNORED, Llama, token_logprobs

BATCH_TOKENS = 8192  # padded tokens of one forward pass


@torch.inference_mode()
def summed_logprobs(
    model: Llama, sequences: Sequence[Sequence[int]], scored: Sequence[Sequence[bool]]
) -> list[float]:
    """Sum of ln p(token | tokens before it) over the scored tokens of each sequence, in nats.

    The first token of a sequence has nothing before it and is never scored. Sequences hold at most
    ``context + 1`` tokens.
    """
    sums = [0.0] * len(sequences)
    for rows in _batches([len(sequence) for sequence in sequences]):
        width = max(len(sequences[row]) for row in rows)
        ids = torch.zeros(len(rows), width, dtype=torch.int64)
        labels = torch.full((len(rows), width), IGNORED)
        for place, row in enumerate(rows):
            tokens = torch.tensor(sequences[row], dtype=torch.int64)
            ids[place, : len(tokens)] = tokens
            labels[place, : len(tokens)] = tokens.where(torch.tensor(scored[row]), IGNORED)
        # Padding stands on the right of every row, where a causal model cannot see it.
        ids, labels = ids.to(model.device), labels.to(model.device)
        hidden = model.hidden(ids[:, :-1])
        logprobs = token_logprobs(hidden, model.head_weight(), labels[:, 1:])
        for row, total in zip(rows, logprobs.double().sum(1).tolist(), strict=True):
            sums[row] = total
    return sums


def _batches(lengths: Sequence[int]) -> Iterator[list[int]]:
    """Rows of similar lengths, as many as `BATCH_TOKENS` allow when padded; at least one."""
    rows: list[int] = []
    for row in sorted(range(len(lengths)), key=lengths.__getitem__):
        if rows and (len(rows) + 1) * lengths[row] > BATCH_TOKENS:
            yield rows
            rows = []
        if lengths[row] > 1:
            rows.append(row)
    if rows:
        yield rows
