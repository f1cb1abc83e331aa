"""Token buckets: how much a key may use a minute."""

import time
from collections.abc import Callable


class Bucket:
    """Holds at most a minute's allowance and refills evenly; it may be overdrawn by work in hand.

    Args:
        per_minute: the allowance; None is no limit.
        clock: seconds that only grow.
    """

    def __init__(self, per_minute: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self.per_minute = per_minute
        self._clock = clock
        self._level = float(per_minute or 0)
        self._at = clock()

    @property
    def level(self) -> float:
        """What is left now; below 0 when overdrawn."""
        if self.per_minute is None:
            return float("inf")
        now = self._clock()
        refilled = self._level + (now - self._at) * self.per_minute / 60
        self._level, self._at = min(float(self.per_minute), refilled), now
        return self._level

    def take(self, amount: int) -> float:
        """Take ``amount`` if it is there; else leave the bucket and return the seconds until it is.

        More than the bucket can ever hold is let through when it is full.
        """
        if self.per_minute is None:
            return 0.0
        missing = min(amount, self.per_minute) - self.level
        if missing > 0:
            return self._seconds(missing)
        self._level -= amount
        return 0.0

    def spend(self, amount: int) -> None:
        """Take ``amount`` of what is already being done, overdrawing if need be."""
        if self.per_minute is not None:
            self._level -= amount

    def headers(self, kind: str) -> list[tuple[bytes, bytes]]:
        """``x-ratelimit-*`` headers for ``kind`` ("requests", "tokens"); none without a limit."""
        if self.per_minute is None:
            return []
        level = self.level
        values = {
            "limit": str(self.per_minute),
            "remaining": str(max(0, int(level))),
            "reset": f"{self._seconds(self.per_minute - level):.3f}s",
        }
        return [
            (f"x-ratelimit-{name}-{kind}".encode(), value.encode())
            for name, value in values.items()
        ]

    def _seconds(self, amount: float) -> float:
        assert self.per_minute is not None, "without a limit nothing is waited for"
        return amount * 60 / self.per_minute
