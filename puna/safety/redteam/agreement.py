"""How far two opinions agree beyond chance."""

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Agreement:
    """Two raters on the same items."""

    n: int
    """Items that both rated."""
    same: float
    """Share on which they agree; 0 for no items."""
    kappa: float | None
    """Cohen's kappa; None where it is undefined: no items, or both always say the same thing."""


def agreement(first: Sequence[bool | None], second: Sequence[bool | None]) -> Agreement:
    """Cohen's kappa of two raters' yes and no (Cohen 1960, "A coefficient of agreement", eq. 1).

    ``(p_o - p_e) / (1 - p_e)``: the observed share of equal ratings, and the one expected of raters
    who keep their own frequencies of yes and rate independently. Items that one of them left out
    are left out.
    """
    assert len(first) == len(second)
    both = [(a, b) for a, b in zip(first, second, strict=True) if a is not None and b is not None]
    if not both:
        return Agreement(0, 0.0, None)
    n = len(both)
    same = sum(a == b for a, b in both) / n
    yes_first, yes_second = (sum(pair[place] for pair in both) / n for place in (0, 1))
    chance = yes_first * yes_second + (1 - yes_first) * (1 - yes_second)
    return Agreement(n, same, None if chance == 1 else (same - chance) / (1 - chance))
