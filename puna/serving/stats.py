"""Figures of a running server, kept once and shown twice: to Prometheus and to the dashboard.

Everything is counted on the event loop's thread, with a few list operations a token, since the
engine wants the processor.
"""

import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Iterable
from dataclasses import dataclass, field

RECENT = 1_000
RATE_SECONDS = 10
# Seconds: from a tiny model's token to a prompt that waits behind a full queue.
FIRST_TOKEN_BOUNDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
INTER_TOKEN_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)


class Durations:
    """A histogram of seconds, and the last thousand of them."""

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0
        self.recent: deque[float] = deque(maxlen=RECENT)

    def add(self, seconds: float, times: int = 1) -> None:
        """Count a duration that happened ``times`` times."""
        self.counts[bisect_left(self.bounds, seconds)] += times
        self.sum += seconds * times
        self.recent.append(seconds)

    def percentiles_ms(self) -> dict[str, float | None]:
        """Median and 95th percentile of the last thousand, in milliseconds."""
        ordered = sorted(self.recent)
        if not ordered:
            return {"p50": None, "p95": None}
        last = len(ordered) - 1
        return {
            f"p{percent}": round(1000 * ordered[round(last * percent / 100)], 3)
            for percent in (50, 95)
        }


class Rate:
    """Events a second over the last few seconds."""

    def __init__(self) -> None:
        self._seconds: deque[tuple[int, int]] = deque(maxlen=RATE_SECONDS + 1)

    def add(self, amount: int, now: float) -> None:
        """Count ``amount`` events at ``now``, in seconds of `time.perf_counter`."""
        second = int(now)
        if self._seconds and self._seconds[-1][0] == second:
            self._seconds[-1] = (second, self._seconds[-1][1] + amount)
        else:
            self._seconds.append((second, amount))

    def per_second(self, now: float) -> float:
        """Mean over the whole seconds before this one."""
        first = int(now) - RATE_SECONDS
        return sum(n for second, n in self._seconds if first <= second < int(now)) / RATE_SECONDS


@dataclass
class ModelFigures:
    """What was served under one name."""

    requests: int = 0
    prompt_tokens: int = 0
    generated_tokens: int = 0
    first_token: Durations = field(default_factory=lambda: Durations(FIRST_TOKEN_BOUNDS))
    inter_token: Durations = field(default_factory=lambda: Durations(INTER_TOKEN_BOUNDS))
    rate: Rate = field(default_factory=Rate)


class Figures:
    """What the server did since its start."""

    def __init__(self, models: Iterable[str] = ()) -> None:
        self.started = time.monotonic()
        self.answers: Counter[tuple[str, str, int]] = Counter()
        """By method, endpoint and status."""
        self.rejected: Counter[str] = Counter()
        """By the error's code."""
        self.verdicts: Counter[tuple[str, str]] = Counter()
        """By stage ("input", "output") and decision."""
        self.models: dict[str, ModelFigures] = {name: ModelFigures() for name in models}

    def of(self, model: str) -> ModelFigures:
        """Figures of one model name."""
        return self.models.setdefault(model, ModelFigures())

    @property
    def uptime_s(self) -> float:
        """Seconds since the start."""
        return time.monotonic() - self.started
