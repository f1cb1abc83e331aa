"""Sums told as small stories with people and things; their keys are those of the sums."""

from numpy.random import Generator

from puna.data.generators.arithmetic import fact_key, wrong_number
from puna.data.generators.problems import Draw, Form, Problem, below, chance, pick, pick_two
from puna.data.generators.words import NAMES, THINGS


def _form(premises: tuple[str, ...], questions: tuple[str, ...], full: str) -> Form:
    return Form(
        prompts=tuple(f"{premise} {question}" for premise in premises for question in questions),
        full=full,
        statements=tuple(f"{premise} {full}" for premise in premises),
    )


_GAINS = _form(
    premises=(
        "{name} has {a} {things}. {other} gives {name} {b} more.",
        "{name} has {a} {things} and finds {b} more.",
        "{name} had {a} {things} and got {b} more from {other}.",
        "{name} has {a} {things}. Then {name} buys {b} {things}.",
    ),
    questions=(
        "How many {things} does {name} have now?",
        "How many {things} is that in all?",
    ),
    full="{a} + {b} = {answer}, so {name} has {answer} {things}.",
)
_LOSES = _form(
    premises=(
        "{name} has {a} {things}. {name} gives {b} to {other}.",
        "{name} has {a} {things} and loses {b} of them.",
        "{name} had {a} {things} and sold {b} to {other}.",
        "{name} has {a} {things}. {other} takes {b} of them.",
    ),
    questions=(
        "How many {things} does {name} have now?",
        "How many {things} does {name} have left?",
    ),
    full="{a} - {b} = {answer}, so {name} has {answer} {things}.",
)


def _word_problem(rng: Generator) -> Problem:
    name, other = pick_two(rng, NAMES)
    small, rest = 2 + below(rng, 39), 2 + below(rng, 39)
    if chance(rng, 0.5):
        form, a, answer = _GAINS, rest, rest + small
    else:
        form, a, answer = _LOSES, rest + small, rest
    fields: dict[str, str | int] = {"name": name, "other": other, "a": a, "b": small}
    fields["things"] = pick(rng, THINGS)
    wrong = str(wrong_number(rng, answer))
    return Problem("word_problem", fact_key(small, rest), form, fields, str(answer), wrong)


WORD_PROBLEMS: dict[str, Draw] = {"word_problem": _word_problem}
