"""Which language an untagged piece of code is in, by a scored table of features (features.yaml).

Lines add up; no model, no parse: a line costs some tens of microseconds. Where two languages stay
close, the caller may count parse errors (`best`'s ``errors``) to decide between the two.
"""

import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import yaml

_COUNTED = 3  # a feature counts at most this often: a long list of one kind proves no more
_CLOSE = 2.0  # languages this near to each other go to the tie-breaker
_ENOUGH = 2.0  # below this score a text has no language


def _features() -> list[tuple[list[str], float, re.Pattern[str]]]:
    rows = yaml.safe_load(Path(__file__).with_name("features.yaml").read_text("utf-8"))
    return [(names.split(), weight, re.compile(pattern)) for names, weight, pattern in rows]


_FEATURES = _features()


class Guess:
    """The languages a growing piece of code may be in."""

    def __init__(self) -> None:
        """Start with no evidence."""
        self._counts: Counter[int] = Counter()
        self._scores: dict[str, float] = {}

    def add(self, line: str) -> None:
        """Take one more line into account."""
        for number, (names, weight, pattern) in enumerate(_FEATURES):
            if self._counts[number] < _COUNTED and pattern.search(line):
                self._counts[number] += 1
                for name in names:
                    self._scores[name] = self._scores.get(name, 0) + weight

    @property
    def scores(self) -> list[tuple[str, float]]:
        """Languages with their scores, best first; those with enough evidence only."""
        enough = ((name, score) for name, score in self._scores.items() if score >= _ENOUGH)
        return sorted(enough, key=lambda pair: -pair[1])

    def best(self, code: str = "", errors: Callable[[str, str], float] | None = None) -> str:
        """The likeliest language, ``""`` without enough evidence.

        ``errors(code, language)`` says how badly ``code`` parses in a language (0 is well); it
        decides between languages whose scores are close.
        """
        scores = self.scores
        if not scores:
            return ""
        close = [name for name, score in scores if score > scores[0][1] - _CLOSE]
        if errors is None or len(close) == 1:
            return close[0]
        return min(close, key=lambda name: (errors(code, name), close.index(name)))


def guess_language(code: str, errors: Callable[[str, str], float] | None = None) -> str:
    """The language of ``code``, ``""`` when there is too little to tell; see `Guess.best`."""
    guess = Guess()
    for line in code.splitlines()[:200]:
        guess.add(line[:400])
    return guess.best(code, errors)
