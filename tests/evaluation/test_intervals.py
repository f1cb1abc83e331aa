"""Intervals of shares: against closed forms, and against counting how often they hold."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from puna.evaluation.intervals import bootstrap_interval, wilson_interval


@given(st.integers(1, 500), st.floats(0, 1))
def test_wilsons_ends_are_the_shares_one_critical_value_away(n: int, fraction: float) -> None:
    successes = round(n * fraction)
    for end in wilson_interval(successes, n):
        # the definition: |p_hat - p| = z * sqrt(p (1 - p) / n)
        away = 1.959963984540054 * math.sqrt(end * (1 - end) / n)
        assert abs(successes / n - end) == pytest.approx(away, abs=1e-6)


def test_wilson_of_published_counts() -> None:
    # Newcombe 1998 (Statistics in Medicine 17, 857), table I, method 3
    assert wilson_interval(81, 263) == pytest.approx((0.2553, 0.3662), abs=5e-5)
    assert wilson_interval(0, 20) == pytest.approx((0.0, 0.1611), abs=5e-5)


def test_with_an_item_a_group_the_bootstrap_is_the_normal_interval_of_a_mean() -> None:
    values = np.random.default_rng(3).normal(2.0, 1.0, 400)
    low, high = bootstrap_interval(values.tolist(), range(400))
    half = 1.959964 * values.std() / math.sqrt(400)
    # 10,000 resamples place an end within about 0.03 of a half width
    assert low == pytest.approx(values.mean() - half, abs=0.08 * half)
    assert high == pytest.approx(values.mean() + half, abs=0.08 * half)


def test_copies_of_an_item_in_its_group_add_no_certainty() -> None:
    values = (np.random.default_rng(4).random(100) < 0.6).astype(float).tolist()
    once = bootstrap_interval(values, range(100))
    copied = bootstrap_interval(values * 4, [*range(100)] * 4)
    apart = bootstrap_interval(values * 4, range(400))
    # of the same groups; the draws differ, so the ends may by a step of a share
    assert copied == pytest.approx(once, abs=0.011)
    assert apart[1] - apart[0] == pytest.approx((once[1] - once[0]) / 2, rel=0.1)


def test_the_interval_holds_the_truth_about_as_often_as_it_says() -> None:
    rng, held = np.random.default_rng(5), 0
    for _ in range(200):
        # 60 prompts of 3 pairs, right or wrong together: a share of 0.7
        right = np.repeat(rng.random(60) < 0.7, 3).astype(float)
        low, high = bootstrap_interval(
            right.tolist(), np.repeat(np.arange(60), 3).tolist(), resamples=500
        )
        held += low <= 0.7 <= high
    # 190 expected with a deviation of 3; the percentile bootstrap of 60 groups is a little short
    assert held >= 178
