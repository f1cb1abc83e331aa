"""Tools in a conversation: how definitions and calls are written, and read back as they stream.

A tool is described as in OpenAI's protocol and in transformers' chat templates: ``{"type":
"function", "function": {"name": ..., "description": ..., "parameters": JSON schema}}``.
"""

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Tool = Mapping[str, Any]

MOST_CALLS = 16
"""Most calls that a forced answer may hold."""
_NO_ARGUMENTS = {"properties": {}, "additionalProperties": False}
_COMPACT = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# llguidance's own keyword in a schema: no endless white space between the parts of forced JSON
_OBJECT = {"type": "object"}
_ANY = r"(.|\n)*"
_GAP = r"[ \t\r\n]{0,4}"
_FREE_HEADER = (  # `_HEADER` with bounded white space
    r'G\{G("type"G:G"function"G,G)?"name"G:G"NAME"G,G"(parameters|arguments)"G:G'
).replace("G", _GAP)


@dataclass(frozen=True)
class ToolCall:
    """A call the assistant made; ``arguments`` is the text of a JSON object."""

    name: str
    arguments: str


@dataclass(frozen=True)
class ToolFormat:
    """How a family of models writes tools."""

    intro: str
    """Before the definitions, which stand in the system turn, one JSON object a line."""
    outro: str
    """After the definitions."""
    arguments_key: str
    """Key of a call's arguments, beside ``name``."""
    opening: str = ""
    """Before a call's JSON; empty: an answer that begins with a call's JSON is one."""
    closing: str = ""
    """After a call's JSON."""
    separator: str = "\n"
    """Between two calls."""

    def definitions(self, tools: Sequence[Tool]) -> str:
        """What the system turn says about ``tools``."""
        lines = "\n".join(json.dumps(tool, ensure_ascii=False) for tool in tools)
        return self.intro + lines + self.outro

    def calls(self, calls: Sequence[ToolCall]) -> str:
        """The text of an answer that makes these calls."""
        return self.separator.join(
            f"{self.before(call.name)}{call.arguments}{self.after}" for call in calls
        )

    def before(self, name: str) -> str:
        """A call's text up to its arguments."""
        return f'{self.opening}{{"name": {json.dumps(name)}, "{self.arguments_key}": '

    @property
    def after(self) -> str:
        """A call's text after its arguments."""
        return "}" + self.closing

    def grammar(
        self, tools: Sequence[Tool], *, parallel: bool, answer: Mapping[str, Any] | None = None
    ) -> str:
        """A grammar (llguidance's Lark dialect) of answers that call ``tools``.

        Args:
            tools: those that may be called; arguments follow their schemas.
            parallel: several calls may follow each other, at most `MOST_CALLS`; else exactly one.
            answer: JSON schema of an answer that may be given instead of a call.
        """
        functions = [tool["function"] for tool in tools]
        repeat = f" ({json.dumps(self.separator)} call){{0,{MOST_CALLS - 1}}}" if parallel else ""
        start = "start: calls" if answer is None else "start: calls | answer"
        rules = [start, f"calls: call{repeat}", _any_call(len(functions))]
        for n, function in enumerate(functions):
            before = json.dumps(self.before(function["name"]))
            rules.append(f"call_{n}: {before} arguments_{n} {json.dumps(self.after)}")
            rules.append(_json(f"arguments_{n}", _schema_of(function)))
        if answer is not None:
            rules.append(_json("answer", answer))
        return "\n".join(rules)

    def free_grammar(
        self, tools: Sequence[Tool], strict: Collection[str], *, parallel: bool
    ) -> str:
        """A grammar of answers that are text and may call ``tools``.

        What `CallParser` would take for the beginning of a call must become one: of a known tool,
        in any spelling of its header that is read as it comes.

        Args:
            tools: those that may be called.
            strict: names of those whose arguments follow their schemas; others' are any object.
            parallel: at most `MOST_CALLS` calls; else at most one.
        """
        opening, closing = self.opening.strip(), _literal(self.closing.strip())
        rules = [_any_call(len(tools)), rf"CLOSE: /{_GAP}\}}{_GAP}{closing}/"]
        if opening:
            most = MOST_CALLS if parallel else 1
            rules.append(f"start: (to_call call){{0,{most}}} TEXT?")
            rules.append(f"to_call[lazy]: TEXT? {json.dumps(opening)}")
            begun = f"{_ANY}{_literal(opening)}"
        else:
            more = f" (NEXT call){{0,{MOST_CALLS - 1}}}" if parallel else ""
            rules.append(f"start: (call{more} | TEXT)?")
            rules.append(r"NEXT: /[;,][ \n]{0,2}/")
            begun = rf'[ \t\r\n]*\{{[\s\x1c-\x1f]*"({"|".join(sorted(_KEYS))})"'
        rules.append(f"TEXT: /{_ANY}/ & ~/{begun}{_ANY}/")
        for n, tool in enumerate(tools):
            function = tool["function"]
            header = _FREE_HEADER.replace("NAME", _literal(function["name"]))
            rules.append(f"HEADER_{n}: /{header}/")
            rules.append(f"call_{n}: HEADER_{n} arguments_{n} CLOSE")
            held = function["name"] in strict
            rules.append(_json(f"arguments_{n}", _schema_of(function) if held else _OBJECT))
        return "\n".join(rules)


def _literal(text: str) -> str:
    """An expression between slashes that matches ``text``."""
    return re.escape(text).replace("/", r"\/")


def _any_call(n: int) -> str:
    return "call: " + " | ".join(f"call_{number}" for number in range(n))


def _json(rule: str, schema: Mapping[str, Any]) -> str:
    return f"{rule}: %json {json.dumps(dict(schema) | {'x-guidance': _COMPACT})}"


def _schema_of(function: Mapping[str, Any]) -> dict[str, Any]:
    return _OBJECT | dict(function.get("parameters") or _NO_ARGUMENTS)


LLAMA3_TOOLS = ToolFormat(
    intro=(
        "You can call the functions below. To call one, answer with nothing but a JSON object of "
        'the form {"name": function name, "parameters": object of argument names and values}; '
        "separate several calls by '; '. Call a function only when it helps, and use its result, "
        "which comes in the next turn, for your answer.\n\n"
    ),
    outro="",
    arguments_key="parameters",
    separator="; ",
)
"""Llama 3.1's JSON calls (Meta's prompt format for 3.1, "JSON based tool calling")."""

HERMES_TOOLS = ToolFormat(
    intro="You can call these functions:\n<tools>\n",
    outro=(
        "\n</tools>\nTo call one, write a JSON object with its name and arguments between tags:\n"
        '<tool_call>\n{"name": function name, "arguments": object}\n</tool_call>\n'
        "The result comes in the next turn."
    ),
    arguments_key="arguments",
    opening="<tool_call>\n",
    closing="\n</tool_call>",
)
"""Calls between tags, as most ChatML models were taught (Hermes 2 Pro, Qwen 2.5, SmolLM2)."""


@dataclass(frozen=True)
class Text:
    """Ordinary text of an answer."""

    text: str


@dataclass(frozen=True)
class CallStart:
    """A call begins; its arguments follow."""

    name: str


@dataclass(frozen=True)
class Arguments:
    """More of the arguments of the call that began last."""

    text: str


Piece = Text | CallStart | Arguments

_HEADER_CHARS = 1000  # a call's name and arguments key stand within this
_HEADER = re.compile(
    r'\s*\{\s*(?:"type"\s*:\s*"function"\s*,\s*)?"name"\s*:\s*"([^"\\]*)"\s*,'
    r'\s*"(?:parameters|arguments)"\s*:\s*(?=\{)'
)
_FIRST_KEY = re.compile(r'\s*\{\s*(?:"([^"]*)"|[^"\s])')
_KEYS = {"name", "type", "function", "parameters", "arguments"}


class _ObjectEnd:
    """Finds where a JSON object ends while its text arrives.

    Args:
        depth: how many objects and lists are open before the first text.
    """

    _MARKS = re.compile(r'["\\{}\[\]]')

    def __init__(self, depth: int = 0) -> None:
        self._depth = depth
        self._in_string = False
        self._escaped = False

    def find(self, text: str) -> int | None:
        """Place after the closing brace in ``text``, the next part; None while it is open."""
        at = 1 if self._escaped else 0
        self._escaped = False
        while mark := self._MARKS.search(text, at):
            at = mark.end()
            sign = mark.group()
            if sign == "\\":
                self._escaped = self._in_string and at >= len(text)
                at += self._in_string
            elif sign == '"':
                self._in_string = not self._in_string
            elif not self._in_string:
                self._depth += 1 if sign in "{[" else -1
                if self._depth == 0:
                    return at
        return None


class CallParser:
    """Splits an answer into text and calls while it streams.

    What could still become a call is held back. A call of an unknown tool, or one that is not JSON,
    is text.

    Args:
        format: how the model writes calls.
        names: the tools it may call.
    """

    def __init__(self, format: ToolFormat, names: Collection[str]) -> None:
        self._opening = format.opening.strip()
        self._closing = format.closing.strip()
        self._names = names
        self._lead = ""
        """What stands before a possible call's JSON; shown when it is none."""
        self._buffer = ""
        self._state: Callable[[], Iterator[Piece]] = self._seek
        self._end = _ObjectEnd()
        self._scanned = 0
        self._called = False

    def push(self, text: str) -> list[Piece]:
        """The pieces that ``text`` makes sure of."""
        self._buffer += text
        pieces: list[Piece] = []
        while self._buffer:
            state, before = self._state, self._buffer
            pieces += state()
            if state == self._state and before == self._buffer:
                break
        return pieces

    def flush(self) -> list[Piece]:
        """What is left when the answer ends."""
        held, self._buffer = self._buffer, ""
        if self._state == self._object:
            held = self._lead + held
        wordless = self._called and not held.strip()
        shown = self._state in (self._seek, self._text, self._object) and held and not wordless
        return [Text(held)] if shown else []

    def _seek(self) -> Iterator[Piece]:
        """At the beginning and after a call: a call, or text for the rest."""
        ahead = self._buffer.lstrip(" \t\r\n;," if self._called else " \t\r\n")
        opening = self._opening or "{"
        if ahead.startswith(opening):
            self._begin_object(len(self._buffer) - len(ahead) + len(self._opening))
        elif not opening.startswith(ahead):
            self._state = self._text
        yield from ()

    def _text(self) -> Iterator[Piece]:
        """Text, in which an opening tag begins a call."""
        place = self._buffer.find(self._opening) if self._opening else -1
        shown = len(self._buffer) - _overlap(self._buffer, self._opening) if place < 0 else place
        before, self._buffer = self._buffer[:shown], self._buffer[shown:]
        if place >= 0:
            self._begin_object(len(self._opening))
        if before:
            yield Text(before)

    def _begin_object(self, at: int) -> None:
        self._lead, self._buffer = self._buffer[:at], self._buffer[at:]
        self._state, self._end, self._scanned = self._object, _ObjectEnd(), 0

    def _object(self) -> Iterator[Piece]:
        """What may be a call's JSON, until its arguments begin or it ends."""
        short = len(self._buffer) <= _HEADER_CHARS
        if short and (header := _HEADER.match(self._buffer)):
            if header[1] not in self._names:
                yield from self._reject()
                return
            yield self._start(header[1])
            self._buffer = self._buffer[header.end() :]
            self._state, self._end = self._arguments, _ObjectEnd()
        elif self._cannot_be_a_call():
            yield from self._reject()
        elif end := self._end.find(self._buffer[self._scanned :]):
            yield from self._whole(self._scanned + end)
        else:
            self._scanned = len(self._buffer)

    def _cannot_be_a_call(self) -> bool:
        started = self._buffer.strip() and not self._buffer.lstrip().startswith("{")
        first = _FIRST_KEY.match(self._buffer)
        return bool(started or (first and first[1] not in _KEYS))

    def _whole(self, end: int) -> Iterator[Piece]:
        """A complete object, which may be a call in another spelling."""
        call = _read_call(self._buffer[:end])
        if call is None or call.name not in self._names:
            yield from self._reject()
            return
        yield self._start(call.name)
        yield Arguments(call.arguments)
        self._buffer, self._state = self._buffer[end:], self._close

    def _start(self, name: str) -> CallStart:
        self._called = True
        return CallStart(name)

    def _reject(self) -> Iterator[Piece]:
        self._state = self._text  # in which a later tag may still open a call
        if self._lead:
            yield Text(self._lead)

    def _arguments(self) -> Iterator[Piece]:
        end = self._end.find(self._buffer)
        text = self._buffer[:end]
        self._buffer = self._buffer[len(text) :]
        if end is not None:
            self._state, self._end = self._tail, _ObjectEnd(depth=1)
        yield Arguments(text)

    def _tail(self) -> Iterator[Piece]:
        """What follows the arguments inside the call's object is dropped."""
        end = self._end.find(self._buffer)
        self._buffer = "" if end is None else self._buffer[end:]
        if end is not None:
            self._state = self._close
        yield from ()

    def _close(self) -> Iterator[Piece]:
        """The closing tag, which some answers forget."""
        ahead = self._buffer.lstrip()
        if ahead.startswith(self._closing):
            self._buffer, self._state = ahead[len(self._closing) :], self._seek
        elif not self._closing.startswith(ahead):
            self._state = self._seek
        yield from ()


def _read_call(text: str) -> ToolCall | None:
    """A call whose keys come in another order, or without arguments."""
    value = _object(text) or {}
    inner = value.get("function")
    value = inner if isinstance(inner, dict) else value
    arguments = value.get("parameters", value.get("arguments", {}))
    if isinstance(arguments, str):
        arguments = _object(arguments)
    if not isinstance(value.get("name"), str) or not isinstance(arguments, dict):
        return None
    return ToolCall(value["name"], json.dumps(arguments, ensure_ascii=False))


def _object(text: str) -> dict[str, Any] | None:
    """The JSON object that ``text`` is, or None."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _overlap(text: str, tag: str) -> int:
    """Length of the longest end of ``text`` that ``tag`` begins with."""
    longest = min(len(text), len(tag) - 1)
    return next((n for n in range(longest, 0, -1) if tag.startswith(text[-n:])), 0)
