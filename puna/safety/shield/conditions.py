"""The conditions of a rule on a value, as small words in YAML: ``dynamic``, ``not /regex/``.

| word | the value |
|---|---|
| ``present``, ``absent`` | is there; is not |
| ``const`` | is known from the text alone |
| ``number`` | is a number or a truth value written out |
| ``dynamic`` | is neither constant nor harmless |
| ``built`` | is a string put together with a dynamic part |
| ``outside`` | comes from outside: a source, or a parameter of the function |
| ``tainted`` | comes from a source that the language's file names |
| ``name`` | is a plain variable |
| ``array`` | is an array of fixed size, declared in the function (C, C++) |
| ``fits`` | is a constant that the array in the first argument has room for (C, C++) |
| ``unchecked`` | names a variable that was compared with nothing before, in the function |
| ``after NAME`` | uses the variable of capture NAME, which got no new value in between |
| ``/regex/`` | its source text holds this |
| ``=/regex/`` | its constant string (or the constant parts of a built one) holds this |
| anything else | its source text is this |

``not`` before a word turns it round; what is absent fulfils every ``not``. A list asks for all,
``{any: [...]}`` for one.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from tree_sitter import Node

from puna.core.errors import UsageError
from puna.safety.shield.names import Names
from puna.safety.shield.tree import text_of
from puna.safety.shield.values import LOOK_BACK, Value, Values


@dataclass(frozen=True, slots=True)
class Place:
    """A value to judge: its node (None when absent), and what can judge it."""

    node: Node | None
    values: Values
    safe: Names | None = None
    """Calls that are harmless for this rule."""
    captures: Mapping[str, list[Node]] = field(default_factory=dict)
    """Of a query."""


Test = Callable[[Place], bool]

_OF_VALUE: dict[str, Callable[[Value], bool]] = {
    "const": lambda v: v.const,
    "dynamic": lambda v: v.dynamic,
    "built": lambda v: v.built,
    "outside": lambda v: v.tainted or v.param,
    "tainted": lambda v: v.tainted,
    "number": lambda v: v.clean and v.const,
}
_NAME = re.compile(r"^\$?[A-Za-z_]\w*$")


def regex(text: str) -> re.Pattern[str]:
    """A compiled expression; raises `UsageError` for one that is none."""
    try:
        return re.compile(text)
    except re.error as error:
        raise UsageError(f"'{text}' is no regular expression: {error}") from None


def condition(spec: Any) -> Test:
    """The test that a condition in YAML describes; raises `UsageError`."""
    if isinstance(spec, bool):
        return _text("true" if spec else "false")
    if isinstance(spec, int):
        return _text(str(spec))
    if isinstance(spec, list):
        tests = [condition(part) for part in spec]
        return lambda place: all(test(place) for test in tests)
    if isinstance(spec, dict) and list(spec) == ["any"]:
        tests = [condition(part) for part in spec["any"]]
        return lambda place: any(test(place) for test in tests)
    if not isinstance(spec, str):
        raise UsageError(f"'{spec}' is no condition: write a word, /regex/, =/regex/ or a list")
    return _word(spec.strip())


def _word(word: str) -> Test:
    if word.startswith("not "):
        inner = _word(word[4:].strip())
        return lambda place: not inner(place)
    if word in {"present", "absent"}:
        return lambda place: (place.node is None) == (word == "absent")
    if word == "name":
        return lambda place: place.node is not None and bool(_NAME.match(text_of(place.node)))
    if of_value := _OF_VALUE.get(word):
        return lambda place: (
            place.node is not None and of_value(place.values.of(place.node, place.safe))
        )
    if word in _OF_C:
        return _OF_C[word]
    if word.startswith("after "):
        return lambda place: _after(place, word[6:].strip())
    if len(word) > 2 and word[0] == "/" and word[-1] == "/":
        search = regex(word[1:-1]).search
        return lambda place: place.node is not None and bool(search(text_of(place.node)))
    if len(word) > 3 and word.startswith("=/") and word[-1] == "/":
        return _content(regex(word[2:-1]))
    return _text(word)


_IDENTIFIER = re.compile(r"(?<!\w)[A-Za-z_]\w*(?!\w|\s*\()")
_SIZEOF = re.compile(r"sizeof\s*(?:\([^()]*(?:\([^()]*\))?[^()]*\)|\w+)|\(\w[\w\s]*\**\)(?=\s*\w)")
_STRING = re.compile(r'"(?:[^"\\\n]|\\.)*"|//[^\n]*|/\*.*?\*/', re.S)
_MOST_NAMES = 32
"""Names of an expression whose checks are looked for."""
_LEAVES = re.compile(r"\b(?:return|goto|break|continue|throw|exit)\b")


_TYPE = (
    r"(?:^|[;{}])\s*(?!(?:return|case|else|goto|delete|new|throw|default)\b)"
    r"(?:[A-Za-z_][\w:<>]*[\s*&]+){1,6}"
)


def _array(place: Place) -> bool:
    if place.node is None or not _NAME.match(name := text_of(place.node)):
        return False
    declared = rf"{_TYPE}(?:[^;()=]{{0,200}},\s*)?{name}\s*\[[^\]]+\]"
    return re.search(declared, place.values.before(place.node), re.M) is not None


def _unchecked(place: Place) -> bool:
    if place.node is None:
        return False
    text = _SIZEOF.sub("", text_of(place.node)[:LOOK_BACK])
    found = dict.fromkeys(name for name in _IDENTIFIER.findall(text) if not name.isupper())
    names = list(found)[:_MOST_NAMES]
    before = place.values.before(place.node)
    return bool(names) and not any(
        re.search(
            rf"\b{name}\b\s*[<>]=?(?![<>])|(?<![<>-])[<>]=?\s*{name}\b"
            rf"|\b{name}\s*=[^=;][^;]*(?:\?|\s[<>]=?\s|\b(?:min|MIN|clamp)\b)",
            before,
        )
        for name in names
    )


def _fits(place: Place) -> bool:
    text = None if place.node is None else place.values.of(place.node, place.safe).text
    target = place.node.parent.named_child(0) if place.node and place.node.parent else None
    if text is None or target is None or not _NAME.match(name := text_of(target)):
        return False
    size = re.search(rf"\b{name}\s*\[\s*(\w+)\s*\]", place.values.before(target))
    return size is not None and len(text) < (int(size[1]) if size[1].isdigit() else 32)


_OF_C: dict[str, Test] = {"array": _array, "unchecked": _unchecked, "fits": _fits}


def _after(place: Place, capture: str) -> bool:
    first = place.captures.get(capture)
    if place.node is None or not first:
        return False
    name, start = re.escape(text_of(first[0])), first[0].end_byte
    between = place.values.text[start : place.node.start_byte].decode("utf-8", "replace")
    given = rf"(?<![\w.>]){name}\s*=(?!=)|&\s*{name}\b"
    if re.search(given, between) or _LEAVES.search(between):
        return False
    here = _STRING.sub('""', text_of(place.node))
    used = re.search(rf"(?<![\w.>]){name}(?!\w)", here)
    again = re.search(given, here)
    return used is not None and (again is None or again.start() > used.start())


def _text(wanted: str) -> Test:
    lowered = wanted.lower() if wanted in {"true", "false"} else None

    def test(place: Place) -> bool:
        if place.node is None:
            return False
        text = text_of(place.node)
        return text == wanted or (lowered is not None and text.lower() == lowered)

    return test


def _content(wanted: re.Pattern[str]) -> Test:
    def test(place: Place) -> bool:
        if place.node is None:
            return False
        text = place.values.of(place.node, place.safe).text
        return text is not None and wanted.search(text) is not None

    return test
