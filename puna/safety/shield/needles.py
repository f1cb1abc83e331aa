"""Texts without which a regular expression cannot match: looked for first, as that is faster."""

import re
from collections.abc import Iterator
from itertools import takewhile
from re import _parser as sre  # type: ignore[attr-defined]  # there is no public way to ask
from typing import Any

_REPEATS = frozenset({sre.MAX_REPEAT, sre.MIN_REPEAT, sre.POSSESSIVE_REPEAT})
_LONGEST = 512
_MARGIN = 64
"""Characters behind a match that it may look at."""
_ALIKE = {0x17F: "s", 0x131: "i"}
"""Letters that an expression takes for these and `str.lower` keeps."""


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
            heads = [_head(branch) for branch in value[1]] if operation is sre.BRANCH else [""]
            choices.append([literal + head for head in heads])
            literal = ""
        if inner := _of_item(operation, value):
            choices.append(inner)
    if literal:
        choices.append([literal])
    return max(choices, key=lambda texts: min(map(len, texts)), default=None)


def _head(items: Any) -> str:
    """The text that a sequence begins with."""
    fixed = takewhile(lambda item: item[0] is sre.LITERAL, items)
    return "".join(chr(value) for _, value in fixed)


def _of_item(operation: Any, value: Any) -> list[str] | None:
    if operation in _REPEATS and value[0] == 0:
        return None
    if (inner := _inner(operation, value)) is not None:
        return _of_sequence(inner)
    if operation is sre.BRANCH:
        found = [_of_sequence(branch) for branch in value[1]]
        if all(found):
            return [text for texts in found for text in texts or ()]
    return None


def reach(expression: re.Pattern[str]) -> int | None:
    """The longest text that it can match, in characters; None when there is no limit to that."""
    parsed = sre.parse(expression.pattern, expression.flags)
    longest: int = parsed.getwidth()[1]
    return longest if longest <= _LONGEST and _looks_ahead(parsed) <= _MARGIN else None


def _looks_ahead(items: Any) -> int:
    """How far an expression looks beyond what it matches, at most."""
    widths = [0]
    for operation, value in items:
        if operation in {sre.ASSERT, sre.ASSERT_NOT} and value[0] > 0:
            widths.append(value[1].getwidth()[1])
        inner = value[1] if operation is sre.BRANCH else [_inner(operation, value)]
        widths += [_looks_ahead(part) for part in inner if part is not None]
    return max(widths)


def _inner(operation: Any, value: Any) -> Any:
    """What is repeated or grouped."""
    if operation is sre.SUBPATTERN or operation in _REPEATS:
        return value[-1]
    return None


def lower(text: str) -> str:
    """A text in which a needle is found wherever its expression may match."""
    return text.lower() if text.isascii() else text.lower().translate(_ALIKE)


def finditer(
    expression: re.Pattern[str], texts: tuple[str, ...], width: int | None, text: str, lowered: str
) -> Iterator[re.Match[str]]:
    """What ``expression.finditer(text)`` gives, looked for around its needles only.

    Args:
        expression: what is looked for.
        texts: its `needles`.
        width: its `reach`.
        text: where it is looked for.
        lowered: `lower` of it.
    """
    places = list(_places(texts, lowered)) if texts else [0]
    if not places:
        return
    if not texts or width is None or len(lowered) != len(text):
        yield from expression.finditer(text)
        return
    begin, end = 0, -1
    for place in [*places, len(text) + 2 * (width + _MARGIN)]:
        if place - width > end + _MARGIN:
            if end >= 0:
                yield from expression.finditer(text, begin, end + _MARGIN)
            begin = max(0, place - width)
        end = place + width


def _places(texts: tuple[str, ...], lowered: str) -> list[int]:
    """Where the needles are, in order."""
    found = []
    for one in texts:
        at = lowered.find(one)
        while at >= 0:
            found.append(at)
            at = lowered.find(one, at + 1)
    return sorted(found)
