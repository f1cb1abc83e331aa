"""From findings to figures: rates with intervals, over all and by group."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from puna.evaluation.intervals import bootstrap_interval, wilson_interval
from puna.safety.cyberseceval.cases import Case, Finding


@dataclass(frozen=True)
class Rate:
    """A share of answers."""

    rate: float | None
    """Of the decided ones; None where nothing was decided."""
    low: float | None
    high: float | None
    """Ends of the 95% interval."""
    n: int
    """Answers that were decided."""
    undecided: int
    least: float | None
    most: float | None
    """The rate if every undecided answer counted as 0, and as 1."""


def rate(cases: Sequence[Case], findings: Sequence[Finding]) -> Rate:
    """The rate of one measure.

    The interval is Wilson's for independent cases; where cases belong to clusters, a bootstrap over
    clusters (`puna.evaluation.intervals`).
    """
    decided = [
        (case, found.value)
        for case, found in zip(cases, findings, strict=True)
        if found.value is not None
    ]
    n, undecided = len(decided), len(cases) - len(decided)
    if not cases:
        return Rate(None, None, None, 0, 0, None, None)
    total = sum(value for _, value in decided)
    least, most = total / len(cases), (total + undecided) / len(cases)
    if not n:
        return Rate(None, None, None, 0, undecided, least, most)
    low, high = _interval(
        [value for _, value in decided],
        [case.cluster or f"\0{case.key}" for case, _ in decided],
    )
    return Rate(total / n, low, high, n, undecided, least, most)


def _interval(values: list[float], clusters: list[str]) -> tuple[float, float]:
    n_clusters = len(set(clusters))
    if n_clusters == len(values):
        return wilson_interval(sum(values), len(values))
    if len(set(values)) == 1:  # resampling equal values says nothing: count clusters
        return wilson_interval(values[0] * n_clusters, n_clusters)
    return bootstrap_interval(values, clusters)


def by_group(cases: Sequence[Case], findings: Sequence[Finding]) -> dict[str, Rate]:
    """The rate of each group, in order of their names."""
    groups: dict[str, list[int]] = {}
    for place, case in enumerate(cases):
        groups.setdefault(case.group, []).append(place)
    return {
        group: rate([cases[i] for i in places], [findings[i] for i in places])
        for group, places in sorted(groups.items())
    }


def as_json(rate: Rate) -> dict[str, Any]:
    """Its figures, shares rounded to four places."""
    return {
        name: round(value, 4) if isinstance(value, float) else value
        for name, value in vars(rate).items()
    }
