"""From runs at fixed compute to the optimum at any: parabolas, a power law, and their intervals.

"The Llama 3 Herd of Models" section 3.2.1, after Hoffmann et al. 2022 (arXiv 2203.15556), approach
2: at each budget the loss over the logarithm of the tokens is a parabola, whose lowest point is the
best number of tokens; those points follow ``tokens = A * FLOPs ** alpha``.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from puna.core.errors import UsageError

Floats = npt.NDArray[np.float64]
RESAMPLED = 1000
_FEWEST_KEPT = 0.2  # of the resampled: fewer make no interval
_FEWEST_SIZES = 4  # of a budget: three fix a parabola, more say how well
_NEAR = 0.05  # a parabola holds near its lowest point only: runs further above it are left out
_FASTER = 1.2  # the last fall of the loss over the first, beyond what noise of runs does
_FEWEST_FOR_FLOOR = 5  # budgets from which a loss that no compute removes is fitted too


@dataclass(frozen=True)
class Point:
    """A run: compute, what was varied, and the loss it reached."""

    budget: float
    """FLOPs of its group."""
    x: float
    """Tokens, or a hyperparameter: what the loss has its lowest point in."""
    loss: float
    """Held-out loss, nats per token."""


@dataclass(frozen=True)
class Parabola:
    """Loss over log x at one budget: ``lowest + bend * (log x - log best)^2``."""

    budget: float
    best: float
    """x of the lowest point."""
    lowest: float
    """Loss there."""
    bend: float
    bracketed: bool
    """Whether points lie on both sides of it; else it is only a direction."""
    best_run: float
    """Lowest loss of a run."""
    fitted: tuple[float, ...]
    """Loss on the parabola at each point."""


@dataclass(frozen=True)
class Interval:
    """A value with its 95% interval."""

    value: float
    low: float
    high: float

    def holds(self, value: float) -> bool:
        """Whether the interval has it."""
        return self.low <= value <= self.high


@dataclass(frozen=True)
class Law:
    """``x = factor * budget ** power`` for the best x, and the loss that it reaches.

    Attributes:
        power, factor: with bootstrap intervals.
        loss: (floor, scale, power): ``floor + scale * budget ** -power``.
        parabolas: of the budgets it was fitted on.
        samples: (n, 5) resampled log factor, power, floor, log scale, loss power.
    """

    power: Interval
    factor: Interval
    loss: tuple[float, float, float]
    parabolas: tuple[Parabola, ...]
    samples: Floats = field(repr=False, compare=False)

    @property
    def speeds_up(self) -> bool:
        """Whether the loss falls faster over the larger budgets than over the smaller ones.

        No power law does, with a floor or without. Runs so short that some sizes still leave the
        plateau of the first steps do, and then what is foretold is too high.
        """
        found = np.array([(p.budget, p.best_run) for p in self.parabolas])
        falls = -np.diff(np.log(found[:, 1])) / np.diff(np.log(found[:, 0]))
        return len(falls) > 1 and bool(falls[-1] > _FASTER * falls[0])

    def best_x(self, budget: float) -> Interval:
        """The best x at a budget."""
        logs = self.samples[:, 0] + self.samples[:, 1] * np.log(budget)
        return _interval(self.factor.value * budget**self.power.value, np.exp(logs))

    def best_loss(self, budget: float) -> Interval:
        """The loss at that x."""
        floor, scale, power = self.loss
        values = self.samples[:, 2] + np.exp(
            self.samples[:, 3] - self.samples[:, 4] * np.log(budget)
        )
        return _interval(floor + scale * budget**-power, values)  # fmt: skip


def fit_law(points: Sequence[Point], seed: int = 0) -> Law:
    """The law of the best x over budgets.

    Intervals are of the bootstrap: what runs miss their parabola by is drawn again with
    replacement and put on it, `RESAMPLED` times; budgets are weighed alike. As with the runs
    themselves, what has no lowest loss between the sizes tried is left out.

    Raises `UsageError` for fewer than two usable budgets, a budget of fewer than four runs, or runs
    that scatter so much that few draws have a lowest loss.
    """
    groups = _groups(points)
    parabolas = [_parabola(budget, group) for budget, group in groups.items()]
    usable = [p for p in parabolas if _usable(p)]
    if len(usable) < 2:
        raise UsageError(
            f"{len(usable)} of {len(parabolas)} budgets have their lowest loss between the sizes "
            "tried: add smaller or larger sizes until two have"
        )
    log_budgets = np.log([p.budget for p in usable])
    here = np.log([[p.best for p in usable]]), np.array([[p.lowest for p in usable]])
    one = _lines(log_budgets, *here)
    drawn = np.random.default_rng(seed)
    again = [_again(groups[p.budget], p, drawn) for p in usable]
    best, lowest, bend = (np.stack(values, axis=1) for values in zip(*again, strict=True))
    tried = [_logs(groups[p.budget]) for p in usable]
    edges = np.array([[logs.min(), logs.max()] for logs in tried])
    bracketed = (bend > 0) & (edges[:, 0] < best) & (best < edges[:, 1])
    kept = bracketed.all(axis=1)
    if kept.mean() < _FEWEST_KEPT:
        raise UsageError(
            "the runs scatter so much that their lowest loss may lie outside of the sizes tried: "
            "add sizes on both sides"
        )
    samples = _lines(log_budgets, best[kept], lowest[kept])
    log_factor, power, floor, log_scale, fall = one[0].tolist()
    return Law(
        _interval(power, samples[:, 1]),
        _interval(float(np.exp(log_factor)), np.exp(samples[:, 0])),
        (floor, float(np.exp(log_scale)), fall),
        tuple(parabolas),
        samples,
    )


def _usable(parabola: Parabola) -> bool:
    return parabola.bend > 0 and parabola.bracketed


def _groups(points: Sequence[Point]) -> dict[float, list[Point]]:
    groups: dict[float, list[Point]] = {}
    for point in sorted(points, key=lambda p: (p.budget, p.x)):
        groups.setdefault(point.budget, []).append(point)
    for budget, group in groups.items():
        if len(group) < _FEWEST_SIZES:
            raise UsageError(
                f"the budget {budget:.3g} has {len(group)} runs: a parabola needs at least "
                f"{_FEWEST_SIZES}"
            )
    return {budget: _near(group) for budget, group in groups.items()}


def _near(group: Sequence[Point]) -> list[Point]:
    """The runs near the best one in loss, four at least and its neighbours, in the order of x."""
    losses = [point.loss for point in group]
    limit = max(min(losses) * (1 + _NEAR), sorted(losses)[_FEWEST_SIZES - 1])
    best = losses.index(min(losses))
    return [p for n, p in enumerate(group) if p.loss <= limit or abs(n - best) == 1]


def _parabola(budget: float, group: Sequence[Point]) -> Parabola:
    logs, losses = _logs(group), np.array([[p.loss for p in group]])
    best, lowest, bend = (float(value[0]) for value in _vertex(logs, losses))
    fitted = lowest + bend * (logs - best) ** 2
    inside = bool(logs.min() < best < logs.max())
    return Parabola(
        budget, float(np.exp(best)), lowest, bend, inside, float(losses.min()),
        tuple(fitted.tolist()),
    )  # fmt: skip


def _logs(group: Sequence[Point]) -> Floats:
    return np.log([p.x for p in group])


def _vertex(logs: Floats, losses: Floats) -> tuple[Floats, Floats, Floats]:
    """Least squares parabolas through rows of (samples, points): log best, lowest loss, bend."""
    middle = logs.mean()
    table = np.vander(logs - middle, 3)
    bend, slope, level = (losses @ np.linalg.pinv(table).T).T
    return middle - slope / (2 * bend), level - slope**2 / (4 * bend), bend


def _again(
    group: Sequence[Point], parabola: Parabola, drawn: np.random.Generator
) -> tuple[Floats, Floats, Floats]:
    """`_vertex` of resampled losses; what was missed is widened for the three numbers fitted."""
    fitted = np.array(parabola.fitted)
    rest = np.array([p.loss for p in group]) - fitted
    rest *= np.sqrt(len(group) / max(1, len(group) - 3))
    losses = fitted + drawn.choice(rest, (RESAMPLED, len(rest)))
    return _vertex(_logs(group), losses)


def _lines(log_budgets: Floats, log_best: Floats, lowest: Floats) -> Floats:
    """(samples, 5): log factor and power of the best x; floor, log scale, power of the loss.

    The floor is 0 where budgets are too few to find it, else the best of a grid.
    """
    level, power = _line(log_budgets, log_best)
    shares = np.linspace(0, 0.98, 50) if lowest.shape[1] >= _FEWEST_FOR_FLOOR else np.zeros(1)
    floors = shares[:, None, None] * lowest.min(axis=1)[:, None]
    falls, slopes = _line(log_budgets, np.log(lowest - floors))
    curves = floors + np.exp(falls[..., None] + slopes[..., None] * log_budgets)
    chosen = np.square(curves - lowest).sum(-1).argmin(axis=0)
    at = (chosen, np.arange(len(lowest)))
    return np.stack([level, power, floors[..., 0][at], falls[at], -slopes[at]], axis=1)


def _line(x: Floats, y: Floats) -> tuple[Floats, Floats]:
    """(level, slope) of least squares lines through the last axis of ``y``."""
    off = x - x.mean()
    slope = y @ off / (off @ off)
    return y.mean(-1) - slope * x.mean(), slope


def _interval(value: float, samples: Floats) -> Interval:
    low, high = np.quantile(samples, (0.025, 0.975))
    return Interval(float(value), float(min(low, value)), float(max(high, value)))


def law_figures(law: Law) -> Mapping[str, object]:
    """The law as JSON."""
    floor, scale, power = law.loss
    return {
        "power": vars(law.power),
        "factor": vars(law.factor),
        "loss": {"floor": floor, "scale": scale, "power": power},
        "speeds_up": law.speeds_up,
        "resampled": len(law.samples),
        "budgets": [
            {
                "budget": p.budget,
                "best": p.best,
                "lowest_loss": p.lowest,
                "bracketed": p.bracketed,
            }
            for p in law.parabolas
        ],
    }
