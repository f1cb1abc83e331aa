"""How well scores tell harmful turns from harmless ones."""

from collections.abc import Sequence

import numpy as np


def auc(unsafe: Sequence[float], safe: Sequence[float]) -> float:
    """Chance that a harmful turn scores above a harmless one; ties count half.

    The area under the ROC curve, as the Mann-Whitney statistic.
    """
    assert unsafe
    assert safe
    scores = np.array([*unsafe, *safe], np.float64)
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    n, m = len(unsafe), len(safe)
    return float((ranks[:n].sum() - n * (n + 1) / 2) / (n * m))


def threshold_at(safe: Sequence[float], share: float) -> float:
    """The smallest score of which at most ``share`` of the harmless turns lie at or above."""
    ordered = np.sort(np.asarray(safe, np.float64))[::-1]
    allowed = int(share * len(ordered))
    return float(np.nextafter(ordered[allowed], np.inf)) if allowed < len(ordered) else 0.0


def share_from(scores: Sequence[float], threshold: float) -> float:
    """Share of scores at or above the threshold: recall, or false positives."""
    return float(np.mean(np.asarray(scores, np.float64) >= threshold))


def recall_at(unsafe: Sequence[float], safe: Sequence[float], share: float = 0.01) -> float:
    """Share of harmful turns found where at most ``share`` of the harmless ones are."""
    return share_from(unsafe, threshold_at(safe, share))
