"""Several safeguards as one: each sees every prompt and answer, the strictest verdict wins."""

from collections.abc import Sequence

from puna.safety.safeguard import Decision, OutputFilter, Safeguard, Subject, Verdict

_RANKS: dict[Decision, int] = {"allow": 0, "warn": 1, "block": 2}


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
        verdicts = []
        for safeguard in self._safeguards:
            verdicts.append(await safeguard.admit(subject))
            if verdicts[-1].decision == "block":
                break
        return strictest(verdicts)

    def output_filter(self, subject: Subject) -> OutputFilter:
        """The filters of all, one behind the other."""
        return _FilterChain([guard.output_filter(subject) for guard in self._safeguards])


class _FilterChain:
    def __init__(self, filters: Sequence[OutputFilter]) -> None:
        self._filters = tuple(filters)

    @property
    def verdict(self) -> Verdict:
        """The strictest of all."""
        return strictest([one.verdict for one in self._filters])

    def push(self, text: str) -> str:
        """What every filter releases."""
        return self._from(0, text)

    def flush(self) -> str:
        """End them in order: what one still held runs through those behind it."""
        out = ""
        for place, one in enumerate(self._filters):
            if self.verdict.decision == "block":
                break
            out += self._from(place + 1, one.flush())
        return out

    def _from(self, start: int, text: str) -> str:
        """What the filters from ``start`` on release of a text."""
        for one in self._filters[start:]:
            text = one.push(text) if text else ""
        return text


def chained(safeguards: Sequence[Safeguard]) -> Safeguard | None:
    """One safeguard of several; None of none."""
    if len(safeguards) < 2:
        return safeguards[0] if safeguards else None
    return Chain(safeguards)
