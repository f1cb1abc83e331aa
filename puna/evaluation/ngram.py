"""A 5-gram model over tokens: interpolated, modified Kneser-Ney.

Chen and Goodman 1999, "An empirical study of smoothing techniques for language modeling", sections
3 and 4.1.3. Its own 100 lines, because no library does it in the time of a demo: see
docs/dependencies.md. All counting is sorting, so 2 million tokens take a few seconds.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]

# Discounts of counts 0, 1, 2 and 3+ where the text is too small to estimate them; KenLM's.
_FALLBACK = np.array([0.0, 0.5, 1.0, 1.5])


def kneser_ney_bits(
    train: Sequence[Sequence[int]],
    validation: Sequence[Sequence[int]],
    vocab_size: int,
    order: int = 5,
) -> list[float]:
    """Bits that each validation document costs under the n-gram model of the training documents.

    The first id of every document (its begin token) is given, not predicted. N-grams do not reach
    across documents. Every id below ``vocab_size`` has a probability above 0.
    """
    documents = [*train, *validation]
    lengths = np.array([len(ids) for ids in documents])
    tokens = np.concatenate([np.asarray(ids, dtype=np.int64) for ids in documents])
    starts = np.cumsum(lengths) - lengths
    offsets = np.arange(len(tokens)) - np.repeat(starts, lengths)
    n_train = int(lengths[: len(train)].sum())

    grams = _grams(tokens, offsets, vocab_size, order + 1)
    probabilities = np.full(len(tokens), 1 / vocab_size)
    for length in range(1, order + 1):
        _interpolate(probabilities, grams, offsets, n_train, length, order)
    costs = np.where(offsets > 0, -np.log2(probabilities), 0.0)
    return [float(c) for c in np.add.reduceat(costs, starts)[len(train) :]]


def _grams(tokens: Ints, offsets: Ints, vocab_size: int, longest: int) -> list[Ints]:
    """Item ``k``: a dense number for the ``k`` tokens that end at each place, -1 where too few."""
    grams = [np.zeros_like(tokens), tokens]
    for length in range(2, longest):
        fits = offsets >= length - 1
        pairs = grams[-1][np.flatnonzero(fits) - 1] * vocab_size + tokens[fits]
        numbers = np.full(len(tokens), -1)
        numbers[fits] = np.unique(pairs, return_inverse=True)[1]
        grams.append(numbers)
    return grams


def _interpolate(
    probabilities: Floats,
    grams: list[Ints],
    offsets: Ints,
    n_train: int,
    length: int,
    order: int,
) -> None:
    """Mix the n-grams of ``length`` into the probabilities of the shorter ones, in place."""
    # The begin token is given, so it is counted in histories only.
    fits = offsets >= max(length - 1, 1)
    histories = np.concatenate([[0], grams[length - 1][:-1]]) if length > 1 else grams[0]
    numbers = grams[length]
    counts, places = _counts(grams, fits, offsets, n_train, length, order)
    discounts = _discounts(counts[counts > 0])

    size = int(histories.max()) + 1
    seen = counts > 0
    owners = histories[places[seen]]
    totals = np.bincount(owners, weights=counts[seen], minlength=size)
    removed = np.bincount(owners, weights=discounts[np.minimum(counts[seen], 3)], minlength=size)

    asked = np.flatnonzero(fits)
    asked = asked[asked >= n_train]
    asked = asked[totals[histories[asked]] > 0]  # elsewhere the shorter history decides alone
    history, count = histories[asked], counts[numbers[asked]]
    kept = count - discounts[np.minimum(count, 3)]
    probabilities[asked] = (kept + removed[history] * probabilities[asked]) / totals[history]


def _counts(
    grams: list[Ints], fits: NDArray[np.bool_], offsets: Ints, n_train: int, length: int, order: int
) -> tuple[Ints, Ints]:
    """(count, a training place) of each n-gram of ``length``; 0 where training has none.

    The longest n-grams, and those that begin a document, count how often they occur; the others in
    how many contexts: the number of different tokens before them.
    """
    numbers = grams[length]
    size = int(numbers.max()) + 1
    train = np.flatnonzero(fits[:n_train])
    places = np.full(size, -1)
    places[numbers[train]] = train
    if length == order:
        return np.bincount(numbers[train], minlength=size), places
    longer = grams[length + 1][:n_train]
    extended = np.flatnonzero(longer >= 0)
    representative = np.full(int(longer.max(initial=0)) + 1, -1)
    representative[longer[extended]] = extended
    contexts = numbers[representative[representative >= 0]]
    beginnings = numbers[train[offsets[train] == length - 1]]
    return np.bincount(contexts, minlength=size) + np.bincount(beginnings, minlength=size), places


def _discounts(counts: Ints) -> Floats:
    """What is taken from counts 0, 1, 2 and 3 or more (Chen and Goodman's equation 26)."""
    n = np.bincount(np.minimum(counts, 5), minlength=6).astype(float)
    if not all(n[1:5]):
        return _FALLBACK
    y = n[1] / (n[1] + 2 * n[2])
    estimated = np.array([0, *(j - (j + 1) * y * n[j + 1] / n[j] for j in (1, 2, 3))])
    # Nothing taken would leave nothing for what was never seen.
    return estimated if (estimated[1:] > 0).all() else _FALLBACK
