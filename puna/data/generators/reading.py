"""Reading and following: answers that stand in the prompt and must be found there.

The key of a problem is all that its text says, so both directions of a question ("Who has the
drum?", "What does Ben have?") are held out together. A question for a place in a
list is answered by counting up to it.
"""

from collections.abc import Callable

from numpy.random import Generator

from puna.data.generators.problems import Draw, Form, Problem, chance, pick
from puna.data.generators.words import (
    ANIMALS,
    COLOURS,
    DAYS,
    FRUITS,
    INSTRUMENTS,
    NAMES,
    PLACES,
    TOYS,
)

_WHO_HAS = Form(
    prompts=(
        "{first} has a {x}. {second} has a {y}. Who has the {asked}?",
        "{first} has a {x} and {second} has a {y}. Who has the {asked}?",
        "{first} got a {x}. {second} got a {y}. Who has the {asked}?",
    ),
    full="The {asked} belongs to {answer}.",
    statements=("{first} has a {x}, {second} has a {y}. So the {asked} belongs to {answer}.",),
)
_HAS_WHAT = Form(
    prompts=(
        "{first} has a {x}. {second} has a {y}. What does {asked} have?",
        "{first} has a {x} and {second} has a {y}. What does {asked} have?",
        "{first} got a {x}. {second} got a {y}. What does {asked} have?",
    ),
    full="{asked} has {answer}.",
    statements=("{first} has a {x}, {second} has a {y}. So {asked} has {answer}.",),
)
_WHERE = Form(
    prompts=(
        "{first} is at {x}. {second} is at {y}. Where is {asked}?",
        "{first} went to {x}. {second} went to {y}. Where is {asked}?",
        "{first} is at {x} and {second} is at {y}. Where is {asked}?",
    ),
    full="{asked} is {answer}.",
    statements=("{first} went to {x}, {second} went to {y}. So {asked} is {answer}.",),
)
_WHO_IS_AT = Form(
    prompts=(
        "{first} is at {x}. {second} is at {y}. Who is at {asked}?",
        "{first} went to {x}. {second} went to {y}. Who is at {asked}?",
        "{first} is at {x} and {second} is at {y}. Who is at {asked}?",
    ),
    full="At {asked} is {answer}.",
    statements=("{first} went to {x}, {second} went to {y}. So at {asked} is {answer}.",),
)
_WHICH_COLOUR = Form(
    prompts=(
        "The {first} is {x}. The {second} is {y}. What colour is the {asked}?",
        "The {first} is {x} and the {second} is {y}. What colour is the {asked}?",
        "I see the {first}, it is {x}. I see the {second}, it is {y}. What colour is the {asked}?",
    ),
    full="The {asked} is {answer}.",
    statements=("The {first} is {x}, the {second} is {y}. So the {asked} is {answer}.",),
)
_IN_PLACE = Form(
    prompts=(
        "Which word is {rank} here: {list}?",
        "Here are three words: {list}. Which one is {rank}?",
        "Tell me the {rank} of these words: {list}.",
    ),
    full="{working}the {rank} word is {answer}.",
    statements=("{list}: {working}the {rank} word is {answer}.",),
    worked=True,
)
_BACKWARDS = Form(
    prompts=(
        "Say these words backwards: {list}.",
        "Turn the order around: {list}.",
        "Reverse this list: {list}.",
    ),
    full="Backwards: {answer}.",
    statements=("{list}. Backwards: {answer}.",),
)
_CATEGORY = Form(
    prompts=(
        "Which of these is {article} {category}: {list}?",
        "Find the {category}: {list}.",
        "One of these is {article} {category}: {list}. Which one?",
    ),
    full="The {category} is {answer}.",
    statements=("{list}: the {category} is {answer}.",),
)
_CATEGORIES = {
    "animal": ANIMALS,
    "fruit": FRUITS,
    "toy": TOYS,
    "instrument": INSTRUMENTS,
    "colour": COLOURS,
    "day": DAYS,
}
_WORDS = (*ANIMALS, *FRUITS, *TOYS, *INSTRUMENTS)


def _some(rng: Generator, options: tuple[str, ...], count: int) -> tuple[str, ...]:
    return tuple(options[int(i)] for i in rng.choice(len(options), size=count, replace=False))


def _pairing(
    kind: str,
    subjects: tuple[str, ...],
    values: tuple[str, ...],
    by_subject: Form,
    by_value: Form | None,
    answer_form: Callable[[str], str] = str,
) -> Draw:
    """Two subjects with a value each; asked for one's value, or for the one with a value."""

    def draw(rng: Generator) -> Problem:
        first, second = _some(rng, subjects, 2)
        x, y = _some(rng, values, 2)
        key = f"{kind}:" + ",".join(sorted((f"{first}={x}", f"{second}={y}")))
        fields: dict[str, str | int] = {"first": first, "second": second, "x": x, "y": y}
        sides = [(first, x), (second, y)]
        (subject, value), (other, other_value) = sides if chance(rng, 0.5) else sides[::-1]
        if by_value and chance(rng, 0.5):
            fields["asked"] = value
            return Problem(kind, key, by_value, fields, subject, other, "name", (other,))
        fields["asked"] = subject
        answer, wrong = answer_form(value), answer_form(other_value)
        return Problem(kind, key, by_subject, fields, answer, wrong, "name", (wrong,))

    return draw


def _position(rng: Generator) -> Problem:
    words = _some(rng, _WORDS, 3)
    ranks = ("first", "second", "last")
    rank = pick(rng, ranks)
    answer = words[ranks.index(rank)]
    rivals = tuple(word for word in words if word != answer)
    fields = {"rank": rank, "list": ", ".join(words)}
    key, wrong = f"position:{','.join(words)}", pick(rng, rivals)
    before = zip(ranks, words[: ranks.index(rank)], strict=False)
    counted = "".join(f"the {each} word is {word}, " for each, word in before)
    return Problem("position", key, _IN_PLACE, fields, answer, wrong, "name", rivals, counted)


def _reversal(rng: Generator) -> Problem:
    a, b, c = _some(rng, _WORDS, 3)
    wrong = pick(rng, [(a, c, b), (c, a, b), (b, c, a), (b, a, c)])
    fields, key = {"list": f"{a}, {b}, {c}"}, f"reversal:{a},{b},{c}"
    answer = f"{c}, {b}, {a}"
    return Problem("reversal", key, _BACKWARDS, fields, answer, ", ".join(wrong), "exact")


def _category(rng: Generator) -> Problem:
    names = _some(rng, tuple(_CATEGORIES), 3)
    words = [pick(rng, _CATEGORIES[name]) for name in names]
    (category, *_), (answer, *rivals) = names, words
    listed = ", ".join(words[int(i)] for i in rng.permutation(3))
    article = "an" if category[0] in "aeiou" else "a"
    fields = {"category": category, "article": article, "list": listed}
    key = f"category:{','.join(sorted(words))}"
    wrong = pick(rng, rivals)
    return Problem("category", key, _CATEGORY, fields, answer, wrong, "name", tuple(rivals))


READING: dict[str, Draw] = {
    "possession": _pairing("possession", NAMES, TOYS, _HAS_WHAT, _WHO_HAS, "a {}".format),
    "place": _pairing("place", NAMES, PLACES, _WHERE, _WHO_IS_AT, "at {}".format),
    "colour": _pairing("colour", (*ANIMALS, *TOYS), COLOURS, _WHICH_COLOUR, None),
    "position": _position,
    "reversal": _reversal,
    "category": _category,
}
