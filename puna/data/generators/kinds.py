"""All generated kinds by name, and how often each is drawn."""

from collections.abc import Mapping, Sequence

from numpy.random import Generator

from puna.core.errors import UsageError
from puna.data.generators.arithmetic import ARITHMETIC
from puna.data.generators.geography import geography_kinds
from puna.data.generators.ordering import ORDERING
from puna.data.generators.problems import Draw
from puna.data.generators.reading import READING
from puna.data.generators.word_problems import WORD_PROBLEMS
from puna.data.geography import Country

EXERCISES: dict[str, Draw] = {**READING, **ARITHMETIC, **ORDERING, **WORD_PROBLEMS}
GEOGRAPHY_KINDS = ("capital", "continent")

WEIGHTS: dict[str, float] = {
    "possession": 10,
    "place": 10,
    "colour": 8,
    "position": 8,
    "reversal": 8,
    "category": 8,
    "addition": 22,
    "subtraction": 22,
    "counting": 6,
    "doubling": 12,
    "comparison": 8,
    "sorting": 8,
    "word_problem": 12,
    "capital": 8,
    "continent": 4,
}
"""How often each kind is drawn, when a recipe does not say: the harder, the more often."""


class Mixture:
    """The kinds to draw from, each with its weight.

    Args:
        weights: kind -> weight; a kind that is not named is not drawn.
        countries: what the kinds on countries draw from; without any they are left out.

    Raises `UsageError` for an unknown kind.
    """

    def __init__(self, weights: Mapping[str, float], countries: Sequence[Country]) -> None:
        known = {**EXERCISES, **geography_kinds(countries)}
        for kind in weights:
            if kind not in EXERCISES and kind not in GEOGRAPHY_KINDS:
                names = ", ".join((*EXERCISES, *GEOGRAPHY_KINDS))
                raise UsageError(f"unknown generated kind '{kind}': choose from {names}")
        self.draws = {kind: known[kind] for kind in weights if kind in known}
        self._ends: list[float] = []
        for kind in self.draws:
            self._ends.append(weights[kind] + (self._ends[-1] if self._ends else 0.0))

    def pick(self, rng: Generator) -> Draw:
        """The draw of one kind, as often as its weight says."""
        if not self._ends:
            raise UsageError("no generated kind is left without the facts on countries: add others")
        place = rng.random() * self._ends[-1]
        draws = zip(self.draws.values(), self._ends, strict=True)
        return next(draw for draw, end in draws if place < end)
