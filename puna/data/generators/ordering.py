"""Comparing two numbers and sorting three."""

from numpy.random import Generator

from puna.data.generators.problems import Draw, Form, Problem, chance, pick

_LARGER = Form(
    prompts=(
        "Which is larger, {a} or {b}?",
        "Which number is bigger: {a} or {b}?",
        "What is the larger of {a} and {b}?",
        "Is {a} or {b} the larger number?",
    ),
    full="Of {a} and {b}, {answer} is the larger.",
    statements=("{answer} is larger than {other}.", "{answer} > {other}."),
)
_SMALLER = Form(
    prompts=(
        "Which is smaller, {a} or {b}?",
        "Which number is less: {a} or {b}?",
        "What is the smaller of {a} and {b}?",
        "Is {a} or {b} the smaller number?",
    ),
    full="Of {a} and {b}, {answer} is the smaller.",
    statements=("{answer} is smaller than {other}.", "{answer} < {other}."),
)
_SORT = Form(
    prompts=(
        "Sort {a}, {b} and {c}.",
        "Put {a}, {b} and {c} in order.",
        "Sort these numbers: {a}, {b}, {c}.",
        "Order {a}, {b}, {c} from smallest to largest.",
    ),
    full="In order: {answer}.",
    statements=("{a}, {b} and {c}, sorted: {answer}.",),
)


def _comparison(rng: Generator) -> Problem:
    a, b = (int(n) for n in rng.choice(100, size=2, replace=False))
    form, answer = (_LARGER, max(a, b)) if chance(rng, 0.5) else (_SMALLER, min(a, b))
    other = a + b - answer
    fields = {"a": a, "b": b, "other": other}
    key = f"compare:{min(a, b)},{max(a, b)}"
    rivals = (str(other),)
    return Problem("comparison", key, form, fields, str(answer), str(other), "number", rivals)


def _sorting(rng: Generator) -> Problem:
    numbers = [int(n) for n in rng.choice(100, size=3, replace=False)]
    low, middle, high = sorted(numbers)
    slips = [(middle, low, high), (low, high, middle), (high, middle, low)]
    answer, wrong = _joined((low, middle, high)), _joined(pick(rng, slips))
    fields = dict(zip("abc", numbers, strict=True))
    key = f"sort:{low},{middle},{high}"
    return Problem("sorting", key, _SORT, fields, answer, wrong, "numbers")


def _joined(numbers: tuple[int, ...]) -> str:
    return ", ".join(map(str, numbers))


ORDERING: dict[str, Draw] = {"comparison": _comparison, "sorting": _sorting}
