"""Several safeguards as one: each sees every prompt and answer, the strictest verdict wins."""

from collections.abc import Sequence

from puna.safety.safeguard import (
    Cleaner,
    Decision,
    OutputFilter,
    Safeguard,
    SlowFilter,
    Subject,
    Verdict,
)

_RANKS: dict[Decision, int] = {"allow": 0, "warn": 1, "block": 2}


def chained(safeguards: Sequence[Safeguard]) -> Safeguard | None:
    """One safeguard of several; None of none."""
    if len(safeguards) < 2:
        return safeguards[0] if safeguards else None
    return Chain(safeguards)


def strictest(verdicts: Sequence[Verdict]) -> Verdict:
    """The verdict that asks for most; of equal ones the first. ``allow`` when there is none."""
    return max(verdicts, key=lambda verdict: _RANKS[verdict.decision], default=Verdict())


class Chain:
    """A `Safeguard` made of others.

    A prompt is shown to each in turn until one blocks. An answer runs through their filters one
    after the other, so that a later one sees only what those before it released.
    """

    def __init__(self, safeguards: Sequence[Safeguard]) -> None:
        self._safeguards = tuple(safeguards)

    async def admit(self, subject: Subject) -> Verdict:
        """The strictest of all verdicts; those behind a block are not asked."""
        verdicts: list[Verdict] = []
        for safeguard in self._safeguards:
            verdicts.append(await safeguard.admit(subject))
            if verdicts[-1].decision == "block":
                break
        return strictest(verdicts)

    def clean(self, text: str) -> str:
        """A text of a prompt, after every safeguard that takes things out of prompts."""
        for safeguard in self._safeguards:
            if isinstance(safeguard, Cleaner):
                text = safeguard.clean(text)
        return text

    def output_filter(self, subject: Subject) -> OutputFilter:
        """The filters of all, one behind the other."""
        return _FilterChain([guard.output_filter(subject) for guard in self._safeguards])


class _FilterChain:
    def __init__(self, filters: Sequence[OutputFilter]) -> None:
        self._filters = tuple(filters)
        self._ended = 0
        """Filters that were flushed."""
        self._rest = ""
        """What came out of the last one then."""

        self.verdict = Verdict()
        """The strictest of all."""

    def push(self, text: str) -> str:
        """What every filter releases."""
        return self._from(0, text)

    async def settled(self) -> None:
        """End the filters in order, waiting for each; `flush` gives what came out."""
        while self._ended < len(self._filters) and self.verdict.decision != "block":
            one = self._filters[self._ended]
            if isinstance(one, SlowFilter):
                await one.settled()
            self._end_next()

    def flush(self) -> str:
        """End the filters that are not ended; the rest that may be released."""
        while self._ended < len(self._filters) and self.verdict.decision != "block":
            self._end_next()
        rest, self._rest = self._rest, ""
        return rest

    def _end_next(self) -> None:
        """Flush the next filter: what it held runs through those behind it."""
        text = self._filters[self._ended].flush()
        self._ended += 1
        self._rest += self._from(self._ended, text)

    def _from(self, start: int, text: str) -> str:
        """What the filters from ``start`` on release of a text."""
        for one in self._filters[start:]:
            text = one.push(text) if text else ""
        self.verdict = strictest([one.verdict for one in self._filters])
        return text
