"""What a generated kind is made of: a problem, and the templates that put it into words."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

from numpy.random import Generator

from puna.core.random import stable_seed

HELD_OUT_SHARE = 0.1  # of the arithmetic problems
HELD_OUT_COUNTRIES = 0.2
COUNTRY = "country:"  # how the key of a country's facts begins

T = TypeVar("T")
Check = Literal["number", "numbers", "name", "exact"]


@dataclass(frozen=True)
class Question:
    """A question with a checkable answer, in one wording.

    Attributes:
        kind: e.g. ``"addition"``.
        key: the problem itself, whatever its wording, e.g. ``"add:17+25"``.
        prompt: what the user asks.
        answer: the curt answer, e.g. ``"42"``.
        full_answer: a sentence that holds it, e.g. ``"17 + 25 = 42."``.
        wrong_answer: the same sentence with a plausible wrong answer.
        check: how to read the answer of a reply: the last number, all numbers, a name, or exactly.
        rivals: other answers that a right reply may not give, but on the way where it is worked.
        worked: always answered with the full sentence, which holds any working; never curtly.
    """

    kind: str
    key: str
    prompt: str
    answer: str
    full_answer: str
    wrong_answer: str
    check: Check = "number"
    rivals: tuple[str, ...] = ()
    worked: bool = False


@dataclass(frozen=True)
class Form:
    """Templates for one way of asking; the fields are those of the `Problem`, and ``answer``.

    ``full`` may have ``working`` too, which stands before the answer. ``worked``
    is that of the `Question`.
    """

    prompts: tuple[str, ...]
    full: str
    statements: tuple[str, ...] = ()
    worked: bool = False


@dataclass(frozen=True)
class Problem:
    """A problem before its words: fields for the templates, the right and a wrong answer.

    ``working`` leads to the answer; ``on_the_way`` are keys of other problems it solves.
    """

    kind: str
    key: str
    form: Form
    fields: Mapping[str, str | int]
    answer: str
    wrong: str
    check: Check = "number"
    rivals: tuple[str, ...] = ()
    working: str = ""
    on_the_way: tuple[str, ...] = ()

    def question(self, rng: Generator) -> Question:
        """The problem asked in a wording drawn from ``rng``."""
        return Question(
            kind=self.kind,
            key=self.key,
            prompt=capitalized(pick(rng, self.form.prompts).format(**self.fields)),
            answer=self.answer,
            full_answer=self.full_answer,
            wrong_answer=self._full(self.wrong),
            check=self.check,
            rivals=self.rivals,
            worked=self.form.worked,
        )

    @property
    def full_answer(self) -> str:
        """The right answer as a sentence."""
        return self._full(self.answer)

    def statement(self, rng: Generator) -> str:
        """The solved problem as a statement for pretraining text."""
        template = pick(rng, (self.form.full, *self.form.statements))
        return self._filled(template, self.answer)

    def _full(self, answer: str) -> str:
        return self._filled(self.form.full, answer)

    def _filled(self, template: str, answer: str) -> str:
        return capitalized(template.format(answer=answer, working=self.working, **self.fields))


Draw = Callable[[Generator], Problem]


def is_held_out(key: str, seed: int) -> bool:
    """Whether the problem is kept for evaluation: a pure function of its key and the run's seed.

    One problem in ten is, and one country in five, with all its questions.
    """
    share = HELD_OUT_COUNTRIES if key.startswith(COUNTRY) else HELD_OUT_SHARE
    return stable_seed(seed, "held out", key) < share * 2**63


def draw_problem(draw: Draw, rng: Generator, *, seed: int, held_out: bool) -> Problem:
    """A problem from the side of the split that ``held_out`` names.

    One that is trained solves none on its way that is held out.
    """
    while True:
        problem = draw(rng)
        keys = (problem.key,) if held_out else (problem.key, *problem.on_the_way)
        if any(is_held_out(key, seed) for key in keys) == held_out:
            return problem


def below(rng: Generator, bound: int) -> int:
    """A whole number in [0, bound)."""
    return int(rng.integers(bound))


def chance(rng: Generator, probability: float) -> bool:
    """True with the given probability."""
    return bool(rng.random() < probability)


def pick(rng: Generator, options: Sequence[T]) -> T:
    """One of the options, each as likely."""
    return options[below(rng, len(options))]


def pick_two(rng: Generator, options: Sequence[T]) -> tuple[T, T]:
    """Two options at different places, in drawn order."""
    first, second = rng.choice(len(options), size=2, replace=False)
    return options[int(first)], options[int(second)]


def capitalized(text: str) -> str:
    """The text with its first letter in upper case."""
    return text[:1].upper() + text[1:]
