"""Addition, subtraction, counting on, doubling and halving: one key for each family of facts.

``17 + 25 = 42``, ``25 + 17 = 42``, ``42 - 17 = 25`` and ``42 - 25 = 17`` say the same thing, so
they share the key ``add:17+25``, as do "twice 17" and "17 + 17", "after 41" and "1 + 41". A family
that is held out is therefore never seen in training in any of these disguises.

A number of two digits is added or taken away in two steps, tens first: ``27 + 45 = 67 + 5 = 72``.
"""

from dataclasses import replace

from numpy.random import Generator

from puna.data.generators.problems import Draw, Form, Problem, below, chance, pick

_ADDITION = Form(
    prompts=(
        "What is {a} + {b}?",
        "{a} + {b} = ?",
        "What is {a} plus {b}?",
        "How much is {a} plus {b}?",
        "Add {a} and {b}.",
        "Calculate {a} + {b}.",
        "What is the sum of {a} and {b}?",
    ),
    full="{a} + {b} = {working}{answer}.",
    worked=True,
)
_SUBTRACTION = Form(
    prompts=(
        "What is {a} - {b}?",
        "{a} - {b} = ?",
        "What is {a} minus {b}?",
        "How much is {a} minus {b}?",
        "Subtract {b} from {a}.",
        "Calculate {a} - {b}.",
        "Take {b} away from {a}.",
    ),
    full="{a} - {b} = {working}{answer}.",
    worked=True,
)
_AFTER = Form(
    prompts=(
        "What number comes after {n}?",
        "Which number follows {n}?",
        "What comes right after {n}?",
        "I am counting and I am at {n}. What is next?",
    ),
    full="After {n} comes {answer}.",
    statements=("The number after {n} is {answer}.",),
)
_BEFORE = Form(
    prompts=(
        "What number comes before {n}?",
        "Which number is just before {n}?",
        "What comes right before {n}?",
        "I am counting down and I am at {n}. What is next?",
    ),
    full="Before {n} comes {answer}.",
    statements=("The number before {n} is {answer}.",),
)
_DOUBLE = Form(
    prompts=("What is double {n}?", "Double {n}.", "What is twice {n}?", "How much is twice {n}?"),
    full="Twice {n} is {answer}.",
    statements=("The double of {n} is {answer}.",),
)
_HALF = Form(
    prompts=("What is half of {n}?", "Halve {n}.", "How much is half of {n}?"),
    full="Half of {n} is {answer}.",
    statements=("{n} is twice {answer}.",),
)


def fact_key(a: int, b: int) -> str:
    """The key of the family of ``a + b`` and of the two subtractions that undo it."""
    return f"add:{min(a, b)}+{max(a, b)}"


def number(rng: Generator) -> int:
    """A number below 50, three times in ten of one digit."""
    return below(rng, 10) if chance(rng, 0.3) else 10 + below(rng, 40)


def wrong_number(rng: Generator, right: int) -> int:
    """A slip one makes: off by one or two, a carry forgotten or made, digits exchanged."""
    swapped = int(str(right)[::-1])
    slips = [right + step for step in (-10, -2, -1, 1, 2, 10)] + [swapped]
    return pick(rng, [slip for slip in slips if slip >= 0 and slip != right])


def _addition(rng: Generator) -> Problem:
    a, b = number(rng), number(rng)
    return _in_steps(rng, "addition", _ADDITION, "+", a, b)


def _subtraction(rng: Generator) -> Problem:
    b, left = number(rng), number(rng)
    return _in_steps(rng, "subtraction", _SUBTRACTION, "-", b + left, b)


def _counting(rng: Generator) -> Problem:
    n = below(rng, 99) if chance(rng, 0.5) else below(rng, 999)
    key = fact_key(1, n)
    if chance(rng, 0.5):
        return _solved(rng, "counting", key, _AFTER, n + 1, n=n)
    return _solved(rng, "counting", key, _BEFORE, n, n=n + 1)


def _doubling(rng: Generator) -> Problem:
    n = 1 + (below(rng, 50) if chance(rng, 0.3) else below(rng, 499))
    if chance(rng, 0.5):
        return _solved(rng, "doubling", fact_key(n, n), _DOUBLE, 2 * n, n=n)
    return _solved(rng, "doubling", fact_key(n, n), _HALF, n, n=2 * n)


def _in_steps(rng: Generator, kind: str, form: Form, sign: str, a: int, b: int) -> Problem:
    """``a + b`` or ``a - b``, by way of ``b``'s tens where it has tens and ones."""
    step = 1 if sign == "+" else -1
    answer, ones = a + step * b, b % 10
    problem = _solved(rng, kind, _key(a, b, answer), form, answer, a=a, b=b)
    if b < 10 or not ones:
        return problem
    between = answer - step * ones
    way = (_key(a, b - ones, between), _key(between, ones, answer))
    return replace(problem, working=f"{between} {sign} {ones} = ", on_the_way=way)


def _key(a: int, b: int, answer: int) -> str:
    """The family of ``a + b = answer`` or ``a - b = answer``: the two parts of the largest."""
    return fact_key(b, min(a, answer))


def _solved(rng: Generator, kind: str, key: str, form: Form, answer: int, **fields: int) -> Problem:
    return Problem(kind, key, form, fields, str(answer), str(wrong_number(rng, answer)))


ARITHMETIC: dict[str, Draw] = {
    "addition": _addition,
    "subtraction": _subtraction,
    "counting": _counting,
    "doubling": _doubling,
}
