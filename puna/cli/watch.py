"""A safeguard between a model and a terminal: prompts are admitted, answers filtered."""

import asyncio
import atexit
from collections.abc import Coroutine, Iterable, Iterator
from dataclasses import replace
from typing import Any, TypeVar

from puna.inference import Delta
from puna.safety import OutputFilter, Safeguard, SlowFilter, Subject, Verdict

_Result = TypeVar("_Result")
# One loop for all calls: a guard behind an address keeps its connections on the loop they began on.
_RUNNER = asyncio.Runner()
atexit.register(_RUNNER.close)


def run(coroutine: Coroutine[Any, Any, _Result]) -> _Result:
    """The result of ``coroutine``, on the loop of all calls here."""
    return _RUNNER.run(coroutine)


def admitted(safeguard: Safeguard | None, subject: Subject) -> Verdict:
    """Whether a prompt may be answered."""
    return Verdict() if safeguard is None else run(safeguard.admit(subject))


class Watched:
    """One answer as far as a safeguard releases it; iterate over it once."""

    def __init__(
        self, deltas: Iterable[Delta], safeguard: Safeguard | None, subject: Subject
    ) -> None:
        self._deltas = deltas
        self._filter = None if safeguard is None else safeguard.output_filter(subject)

    @property
    def verdict(self) -> Verdict:
        """What the safeguard thinks so far."""
        return Verdict() if self._filter is None else self._filter.verdict

    def __iter__(self) -> Iterator[Delta]:
        """The released text, piece by piece; it ends where the safeguard blocks."""
        last: Delta | None = None
        for delta in self._deltas:
            if self._filter is None:
                yield delta
                continue
            last = replace(delta, text=self._filter.push(delta.text))
            yield last
            if self.verdict.decision == "block":
                return
        if self._filter is not None and last is not None:
            yield replace(last, text=_rest(self._filter), ids=(), cached_tokens=0)


def _rest(watch: OutputFilter) -> str:
    if isinstance(watch, SlowFilter):
        run(watch.settled())
    return watch.flush()
