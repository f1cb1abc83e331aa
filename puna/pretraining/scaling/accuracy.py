"""From compute to a benchmark's accuracy, in two steps.

"The Llama 3 Herd of Models" section 3.2.1: the negative log-likelihood of the right answers is
linear in the logarithm of the compute; accuracy is a sigmoid of it. The first step is fitted on
scaling-law models, the second on those and on larger ones whose compute need not be known.
"""

from dataclasses import dataclass

import numpy as np
from pydantic import Field

from puna.core.config import Config


class Benchmark(Config):
    """Models that were judged on a benchmark, as a file gives them."""

    chance: float = Field(ge=0, lt=1)
    """Accuracy of guessing, e.g. 0.25 of four choices."""
    top: float = Field(default=1.0, gt=0, le=1)
    """Accuracy that is approached."""
    compute: list[tuple[float, float]] = Field(min_length=2)
    """[FLOPs, nats of the right answer] of models whose compute is known."""
    answers: list[tuple[float, float]] = Field(min_length=3)
    """[nats of the right answer, accuracy] of these and of others, some of them above chance."""


@dataclass(frozen=True)
class Accuracy:
    """Accuracy over compute."""

    slope: float
    """Nats per decade of FLOPs, negative."""
    level: float
    """Nats at one FLOP."""
    chance: float
    """Accuracy of guessing."""
    top: float
    """Accuracy that is approached."""
    middle: float
    """Nats halfway."""
    steepness: float
    """Per nat."""

    def nll(self, flops: float) -> float:
        """Nats of the right answer after that much compute."""
        return self.level + self.slope * float(np.log10(flops))

    def of_nll(self, nll: float) -> float:
        """Accuracy of a model with that likelihood of the right answers."""
        rise = 1 / (1 + np.exp(self.steepness * (nll - self.middle)))
        return self.chance + (self.top - self.chance) * float(rise)

    def at(self, flops: float) -> float:
        """Accuracy after that much compute."""
        return self.of_nll(self.nll(flops))


def fit_accuracy(benchmark: Benchmark) -> Accuracy:
    """Fit both steps by least squares."""
    flops, nats = np.array(benchmark.compute).T
    slope, level = np.polyfit(np.log10(flops), nats, 1)
    chance, top = benchmark.chance, benchmark.top
    middle, steepness = _sigmoid(np.array(benchmark.answers), chance, top)
    return Accuracy(float(slope), float(level), chance, top, middle, steepness)


def _sigmoid(answers: np.ndarray, chance: float, top: float) -> tuple[float, float]:
    """(middle, steepness) by a grid, made finer around the best ten times."""
    nats, accuracy = answers.T
    low, high = nats.min() - 1, nats.max() + 1
    small, large = -2.0, 2.0  # of the decadic logarithm of the steepness
    middle = steepness = 0.0
    for _ in range(10):
        middles, powers = np.linspace(low, high, 41), np.linspace(small, large, 41)
        grid = np.power(10.0, powers)[:, None, None] * (nats - middles[:, None])
        missed = chance + (top - chance) / (1 + np.exp(np.clip(grid, -60, 60))) - accuracy
        row, column = divmod(int(np.square(missed).sum(-1).argmin()), 41)
        middle, steepness = float(middles[column]), float(10 ** powers[row])
        reach, turn = (high - low) / 8, (large - small) / 8
        low, high = middle - reach, middle + reach
        small, large = powers[row] - turn, powers[row] + turn
    return middle, steepness
