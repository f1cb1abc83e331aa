"""Texts without which a regular expression cannot match: looked for first, as that is faster."""

import re
from re import _parser as sre  # type: ignore[attr-defined]  # there is no public way to ask
from typing import Any


def needles(expression: re.Pattern[str]) -> tuple[str, ...]:
    """Lower-case texts of which every match holds at least one; empty when there are none."""
    found = _of_sequence(sre.parse(expression.pattern, expression.flags))
    return tuple(dict.fromkeys(text.lower() for text in found or ()))


def _of_sequence(items: Any) -> list[str] | None:
    """The best choice among the parts of a sequence, all of which have to match."""
    choices: list[list[str]] = []
    literal = ""
    for operation, value in items:
        if operation is sre.LITERAL:
            literal += chr(value)
            continue
        if literal:
            choices.append([literal])
            literal = ""
        if inner := _of_item(operation, value):
            choices.append(inner)
    if literal:
        choices.append([literal])
    return max(choices, key=lambda texts: min(map(len, texts)), default=None)


def _of_item(operation: Any, value: Any) -> list[str] | None:
    if operation is sre.SUBPATTERN:
        return _of_sequence(value[-1])
    if operation in {sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT} and value[0] > 0:
        return _of_sequence(value[2])
    if operation is sre.BRANCH:
        found = [_of_sequence(branch) for branch in value[1]]
        if all(found):
            return [text for texts in found for text in texts or ()]
    return None


def may_match(texts: tuple[str, ...], lowered: str) -> bool:
    """Whether a text, in lower case, holds one of the needles; True when there are none."""
    return not texts or any(text in lowered for text in texts)
