"""Needles in haystacks: is a number found again that was said far back in a long row?

A short sentence with a name and a number lies at some depth of other text; the row ends with the
same words up to the number. A needle is found when each of the number's tokens is the likeliest.
"""

from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F

from puna.core.errors import UsageError
from puna.core.random import stream
from puna.model import Llama
from puna.tokenizer import Tokenizer

_NAMES = ("llama", "puna", "condor", "lake", "village", "market", "river", "bridge")
_DIGITS = 3


def needle_row(
    tokenizer: Tokenizer, hay: Sequence[int], length: int, depth: float, seed: int
) -> tuple[list[int], int]:
    """Ids of a row of ``length`` tokens, and how many at its end are the number to find.

    Args:
        hay: ids of other text, repeated where it is too short.
        depth: 0 puts the needle first, 1 right before the question.
        seed: of name, number and where in the hay the row begins.

    Raises `UsageError` when the row is too short for needle and question.
    """
    draw = stream(seed, "needle")
    name = _NAMES[int(draw.integers(len(_NAMES)))]
    number = " ".join(str(digit) for digit in draw.integers(0, 10, _DIGITS))
    said = tokenizer.encode(f" The number of the {name} is")
    answer = tokenizer.encode(f" {number}")
    needle = [*said, *answer, *tokenizer.encode(".\n")]
    start = [] if tokenizer.bos_id is None else [tokenizer.bos_id]
    room = length - len(start) - len(needle) - len(said) - len(answer)
    if room < 0:
        raise UsageError(f"a row of {length} tokens is too short for a needle: at least "
                         f"{length - room}")  # fmt: skip
    first = int(draw.integers(max(1, len(hay) - room)))
    filler = np.resize(np.asarray(hay[first:] if len(hay) > first else hay), room).tolist()
    at = round(depth * room)
    return [*start, *filler[:at], *needle, *filler[at:], *said, *answer], len(answer)


@torch.no_grad()
def needle_accuracy(
    model: Llama, tokenizer: Tokenizer, hay: Sequence[int], length: int, n: int, seed: int = 0
) -> float:
    """Share of ``n`` needles found in rows of ``length`` tokens, at depths from 0 to 1."""
    found = 0
    for number in range(n):
        depth = number / max(1, n - 1)
        ids, tail = needle_row(tokenizer, hay, length, depth, seed * 1000 + number)
        found += _found(model, ids, tail)
    return found / n


def _found(model: Llama, ids: Sequence[int], tail: int) -> bool:
    row = torch.tensor([ids], device=model.device)
    hidden = model.hidden(row)[:, -tail - 1 : -1]
    likeliest = F.linear(hidden, model.head_weight().to(hidden.dtype)).argmax(-1)
    return bool((likeliest == row[:, -tail:]).all())
