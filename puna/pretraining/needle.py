"""Needles in haystacks: is a number found again that was said far back in a long row?

A short sentence with a name and a number lies at some depth of other text; the row ends with the
same words up to the number. A needle is found when each of the number's tokens is the likeliest.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from puna.core.errors import UsageError
from puna.core.random import stream
from puna.model import Llama
from puna.tokenizer import Tokenizer

_NAMES = ("llama", "puna", "condor", "lake", "village", "market", "river", "bridge")
_DIGITS = 3


@dataclass(frozen=True)
class Haystack:
    """A row with needles in it, that asks for each of them at its end."""

    ids: list[int]
    answers: list[slice]
    """Where the number asked for lies at the end, of each needle in the order of their depths."""


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
    said, answer = _said(tokenizer, name, draw)
    needle = [*said, *answer, *tokenizer.encode(".\n")]
    start = _start(tokenizer)
    room = _room(length, len(start) + len(needle) + len(said) + len(answer))
    filler = _filler(hay, room, draw)
    at = round(depth * room)
    return [*start, *filler[:at], *needle, *filler[at:], *said, *answer], len(answer)


def needles_row(
    tokenizer: Tokenizer, hay: Sequence[int], length: int, n: int, seed: int
) -> Haystack:
    """A row of ``length`` tokens with ``n`` needles, at depths from 0 to 1, asked for in any order.

    One forward pass tries them all. What was asked before stands with its right answer, so the
    form of an answer can be seen there, its number cannot.

    Raises `UsageError` for more needles than names, and when the row is too short for them.
    """
    if n > len(_NAMES):
        raise UsageError(f"{n} needles in a row are more than there are names: {len(_NAMES)}")
    draw = stream(seed, "needles")
    names = [_NAMES[i] for i in draw.permutation(len(_NAMES))[:n]]
    said = [_said(tokenizer, name, draw) for name in names]
    end, start = tokenizer.encode(".\n"), _start(tokenizer)
    told = [[*words, *number, *end] for words, number in said]
    room = _room(length, len(start) + 2 * sum(map(len, told)))
    filler = _filler(hay, room, draw)
    marks = [round(room * i / max(1, n - 1)) for i in range(n)]
    ids = list(start)
    for before, mark, needle in zip([0, *marks], marks, told, strict=False):
        ids += [*filler[before:mark], *needle]
    ids += filler[marks[-1] :]
    answers = [slice(0)] * n
    for i in draw.permutation(n).tolist():
        words, number = said[i]
        answers[i] = slice(len(ids) + len(words), len(ids) + len(words) + len(number))
        ids += [*words, *number, *end]
    return Haystack(ids, answers)


def needle_accuracy(
    model: Llama, tokenizer: Tokenizer, hay: Sequence[int], length: int, n: int, seed: int = 0
) -> float:
    """Share of ``n`` needles found in rows of ``length`` tokens, at depths from 0 to 1."""
    found = 0
    for number in range(n):
        depth = number / max(1, n - 1)
        ids, tail = needle_row(tokenizer, hay, length, depth, seed * 1000 + number)
        found += needles_found(model, Haystack(ids, [slice(length - tail, length)]))[0]
    return found / n


@torch.no_grad()
def needles_found(model: Llama, row: Haystack) -> list[bool]:
    """Whether each needle is found, in the order of their depths."""
    ids_bt = torch.tensor([row.ids], device=model.device)
    hidden = model.hidden(ids_bt)
    first = min(answer.start for answer in row.answers)
    tail = hidden[0, first - 1 : -1]  # what tells each token from the first answer on
    likeliest = F.linear(tail, model.head_weight().to(tail.dtype)).argmax(-1)
    right = likeliest == ids_bt[0, first:]
    return [bool(right[a.start - first : a.stop - first].all()) for a in row.answers]


def _said(
    tokenizer: Tokenizer, name: str, draw: np.random.Generator
) -> tuple[list[int], list[int]]:
    """Ids of the words that ask, and of a fresh number."""
    number = " ".join(str(digit) for digit in draw.integers(0, 10, _DIGITS))
    return tokenizer.encode(f" The number of the {name} is"), tokenizer.encode(f" {number}")


def _start(tokenizer: Tokenizer) -> list[int]:
    return [] if tokenizer.bos_id is None else [tokenizer.bos_id]


def _room(length: int, taken: int) -> int:
    if length < taken:
        raise UsageError(f"a row of {length} tokens is too short for a needle: at least {taken}")
    return length - taken


def _filler(hay: Sequence[int], room: int, draw: np.random.Generator) -> list[int]:
    """``room`` ids from somewhere in the hay."""
    first = int(draw.integers(max(1, len(hay) - room)))
    found: list[int] = np.resize(np.asarray(hay[first : first + room]), room).tolist()
    return found
