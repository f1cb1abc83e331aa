"""How far a share that was measured on a few items may be from the true one."""

import math
from collections.abc import Hashable, Sequence
from statistics import NormalDist

import numpy as np

from puna.core.random import stream


def wilson_interval(successes: float, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Interval of a share of independent items (Wilson 1927, eq. 8): (low, high) within [0, 1].

    Unlike the normal approximation it is of use for small ``n`` and shares near 0 and 1.
    """
    assert n > 0
    assert 0 <= successes <= n
    z = NormalDist().inv_cdf((1 + confidence) / 2)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n)) / (1 + z * z / n)
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap_interval(
    values: Sequence[float],
    groups: Sequence[Hashable],
    confidence: float = 0.95,
    *,
    resamples: int = 10_000,
) -> tuple[float, float]:
    """Interval of the mean of ``values`` whose items depend on each other within a group.

    Whole groups are drawn anew, with replacement (the percentile bootstrap over clusters: Davison
    and Hinkley, "Bootstrap Methods and their Application", 1997, sections 3.8 and 5.3.1). With
    differences of two measurements as values it is the interval of a paired comparison.

    Args:
        values: one for each item.
        groups: to which each item belongs, e.g. its prompt.
    """
    assert len(values) == len(groups) > 0
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
    members = np.array([numbers[group] for group in groups])
    counts = np.bincount(members)
    sums = np.bincount(members, weights=np.asarray(values, np.float64))
    rng = stream("bootstrap", len(values), len(counts))
    drawn = rng.multinomial(len(counts), np.full(len(counts), 1 / len(counts)), resamples)
    means = (drawn @ sums) / (drawn @ counts)
    low, high = np.quantile(means, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)
