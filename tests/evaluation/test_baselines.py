"""Baselines: the n-gram model against brute force, the compressor on texts that repeat."""

import math
from collections import Counter, defaultdict

import numpy as np
import pytest

from puna.evaluation import measure_baselines
from puna.evaluation.ngram import kneser_ney_bits
from puna.tokenizer import Tokenizer

V = 7


def _documents(seed: int, n: int, longest: int) -> list[list[int]]:
    """Random documents of a skewed language; 0 begins each, 1 ends it."""
    rng = np.random.default_rng(seed)
    weights = np.array([0, 0, 8, 4, 2, 1, 0.5])[None].repeat(V, 0)
    weights = weights * rng.random((V, V)) ** 2
    documents = []
    for _ in range(n):
        ids = [0]
        for _ in range(1 + rng.integers(longest)):
            row = weights[ids[-1]]
            ids.append(int(rng.choice(V, p=row / row.sum())))
        documents.append([*ids, 1])
    return documents


class _BruteForce:
    """Interpolated modified Kneser-Ney by definition, one dictionary look-up after the other."""

    def __init__(self, documents: list[list[int]], order: int) -> None:
        self.order = order
        spans = [
            tuple(ids[end - length : end])
            for ids in documents
            for length in range(1, order + 1)
            for end in range(length, len(ids) + 1)
        ]
        raw = Counter(spans)
        before: dict[tuple[int, ...], set[int]] = defaultdict(set)
        for span in raw:
            before[span[1:]].add(span[0])
        self.counts = {}
        for span, count in raw.items():
            whole = len(span) == order or span[0] == 0
            if span != (0,):  # the begin token is never predicted
                self.counts[span] = count if whole else len(before[span])
        self.discounts = {n: self._discount(n) for n in range(1, order + 1)}

    def _discount(self, length: int) -> list[float]:
        n = Counter(count for span, count in self.counts.items() if len(span) == length)
        if not all(n[j] for j in (1, 2, 3, 4)):
            return [0, 0.5, 1.0, 1.5]
        y = n[1] / (n[1] + 2 * n[2])
        raw = [j - (j + 1) * y * n[j + 1] / n[j] for j in (1, 2, 3)]
        return [0, *raw] if min(raw) > 0 else [0, 0.5, 1.0, 1.5]

    def probability(self, history: tuple[int, ...], token: int) -> float:
        history = history[max(0, len(history) - self.order + 1) :]
        lower = self.probability(history[1:], token) if history else 1 / V
        discount = self.discounts[len(history) + 1]
        next_counts = [self.counts.get((*history, w), 0) for w in range(V)]
        total = sum(next_counts)
        if not total:
            return lower
        kept = next_counts[token] - discount[min(next_counts[token], 3)]
        removed = sum(discount[min(count, 3)] for count in next_counts)
        return (kept + removed * lower) / total

    def bits(self, ids: list[int]) -> float:
        steps = range(1, len(ids))
        return -sum(math.log2(self.probability(tuple(ids[:i]), ids[i])) for i in steps)


@pytest.mark.parametrize("order", [1, 2, 3, 5])
@pytest.mark.parametrize("n_train", [3, 300])  # fallback discounts, and estimated ones
def test_kneser_ney_equals_its_definition(order: int, n_train: int) -> None:
    train, validation = _documents(1, n_train, 12), _documents(2, 20, 12)
    reference = _BruteForce(train, order)
    expected = [reference.bits(ids) for ids in validation]
    assert kneser_ney_bits(train, validation, V, order) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("history", [[0], [0, 2], [0, 2, 3, 2, 2], [0, 6, 6, 6, 6, 6, 6]])
def test_probabilities_after_any_history_sum_to_one(history: list[int]) -> None:
    train = _documents(3, 50, 12)
    before = kneser_ney_bits(train, [history], V)[0]
    after = kneser_ney_bits(train, [[*history, token] for token in range(V)], V)
    assert sum(2 ** (before - bits) for bits in after) == pytest.approx(1, rel=1e-9)


def test_a_token_never_seen_has_a_probability() -> None:
    bits = kneser_ney_bits([[0, 2, 3, 1]] * 5, [[0, 5, 1]], V)
    assert math.isfinite(bits[0])


def test_more_context_helps_on_text_that_has_it() -> None:
    pattern = [0, *[2, 3, 2, 4, 2, 5] * 6, 1]
    costs = [kneser_ney_bits([pattern] * 20, [pattern], V, order)[0] for order in (1, 2, 3)]
    assert costs == sorted(costs, reverse=True)


def test_training_text_primes_the_compressor(tokenizer: Tokenizer) -> None:
    words = ["puna", "is", "high", "grassland", "where", "llamas", "live", "and", "wind", "blows"]
    rng = np.random.default_rng(0)
    train = [" ".join(rng.permutation(words)) for _ in range(200)]
    new = [" ".join(rng.permutation(words)) for _ in range(20)]
    repeated = measure_baselines(train, train[:20], tokenizer)
    unseen = measure_baselines(train, new, tokenizer)
    assert repeated.xz_primed < unseen.xz_primed < unseen.xz_alone
    assert repeated.five_gram < unseen.five_gram
    assert unseen.n_bytes == sum(len(text.encode()) for text in new)
