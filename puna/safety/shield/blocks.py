"""Finds the code in an answer of a model, while it streams.

An answer is Markdown more or less: code stands between fences (three or more backticks or tildes,
with or without a language's name, indented, in lists and quotes, one in another, not closed at the
end), between HTML's ``<pre>`` tags, or has no fence at all. `BlockFinder` takes text in pieces of
any size and hands out complete lines, each marked as prose, fence or code; the lines of one piece
of code share a number and a language. The result does not depend on how the text was cut.
"""

import html
import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Literal

from puna.safety.shield.pieces import Errors, LoosePiece, Piece
from puna.safety.shield.prose import code_of_line, continues_code, is_prose, starts_as_prose
from puna.safety.shield.tags import language_of_tag

Kind = Literal["prose", "fence", "code"]

MAX_LINE = 16_384
"""Characters after which a line without an end is handed out in parts."""

_FENCE = re.compile(
    r"^(?P<lead>(?:[ \t]*>)*[ \t]*(?:(?:[-*+]|\d{1,3}[.)])[ \t]+)*)"
    r"(?P<marks>`{3,}|~{3,})(?P<info>.*)$"
)
# Not Markdown, but models write it: "The code: ```python".
_LATE_FENCE = re.compile(r"^[^`]*[^`\s][ \t]*(?P<marks>`{3,})(?P<info>[\w+#.-]+)[ \t]*$")
_PRE = re.compile(r"^\s*(?P<tags><pre\b[^>]*>\s*(?:<code\b[^>]*>)?)(?P<code>.*)$", re.I)
_PRE_END = re.compile(r"^(?P<code>.*?)(?:</code>\s*)?</pre>.*$", re.I)
_CLASS = re.compile(r"class\s*=\s*[\"']?([^\"'>]+)", re.I)
_ONE_LINE = re.compile(r"^[ \t]*`{3,}(?P<code>[^`]+)`{3,}[ \t]*$")


@dataclass(frozen=True)
class Line:
    """One line of an answer."""

    text: str
    """As it came, with its newline; all texts in a row are the answer."""
    kind: Kind
    block: int = -1
    """Number of the piece of code it belongs to, from 0; -1 for prose."""
    language: str = ""
    """What is known so far of the language of its code; ``""`` when nothing is."""
    code: str = ""
    """What to scan: the line without its end, quote marks, prompts and diff signs."""


@dataclass(frozen=True)
class Block:
    """One piece of code in a whole text."""

    language: str
    """``""`` when it could not be told."""
    code: str
    first_line: int
    """Line of the text, from 1, on which the code's first line stands."""
    fenced: bool


@dataclass(frozen=True)
class _Fence:
    marks: str
    piece: Piece


class BlockFinder:
    """Marks each line of an answer as prose, fence or code."""

    def __init__(self, errors: Errors | None = None) -> None:
        """``errors(code, language)`` counts parse errors where guesses are close, see `Guess`."""
        self._errors = errors
        self._held = ""
        self._part: Line | None = None
        self._fences: list[_Fence] = []
        self._loose: LoosePiece | None = None
        self._pre: Piece | None = None
        self._numbers = count()

    @property
    def held(self) -> str:
        """The last, incomplete line: taken in, not handed out yet."""
        return self._held

    @property
    def held_is_prose(self) -> bool:
        """Whether the incomplete line begins as prose and can hold no code, so that it may go out.

        A fence may still open at its end.
        """
        if self._part is not None:
            return self._part.kind == "prose"
        if self._fences or self._pre or (self._loose and self._loose.in_text):
            return False
        return starts_as_prose(self._held, in_code=self._loose is not None)

    def push(self, text: str) -> list[Line]:
        """Take the next piece of the answer; the lines it completes."""
        self._held += text
        lines = []
        while end := self._held.find("\n", 0, MAX_LINE) + 1 or MAX_LINE * (
            len(self._held) >= MAX_LINE
        ):
            whole, self._held = self._held[:end], self._held[end:]
            lines.append(self._next(whole))
        return lines

    def finish(self) -> list[Line]:
        """The answer is complete; its last line, where it has no end."""
        rest, self._held = self._held, ""
        return [self._next(rest)] if rest else []

    def _next(self, text: str) -> Line:
        """Mark a line, or a part of an over-long one, which stays what its beginning is."""
        part, body = self._part, text.rstrip("\r\n")
        if part is None:
            line = self._mark(text, body)
        else:
            code = body if part.kind == "code" else ""
            line = Line(text, part.kind, part.block, part.language, code)
        self._part = None if text.endswith("\n") else line
        return line

    def _mark(self, text: str, body: str) -> Line:
        fence = _FENCE.match(body)
        if self._pre is not None:
            return self._in_pre(text, body, self._pre)
        if self._fences:
            return self._in_fence(text, body, fence)
        if one := _ONE_LINE.match(body):
            self._loose = None
            line = self._code(text, one["code"], self._loose_piece())
            self._loose = None
            return line
        if pre := _PRE.match(body):
            return self._open_pre(text, pre)
        if fence is None and (late := _LATE_FENCE.match(body)) and language_of_tag(late["info"]):
            return self._open(text, late["marks"], late["info"], "")
        if fence and not (fence["marks"][0] == "`" and "`" in fence["info"]):
            return self._open(text, fence["marks"], fence["info"], fence["lead"])
        return self._without_fence(text, body)

    def _open(self, text: str, marks: str, info: str, lead: str) -> Line:
        tag = language_of_tag(info)
        piece = Piece(next(self._numbers), tag, lead.count(">"), self._errors)
        self._loose = None
        self._fences.append(_Fence(marks, piece))
        return Line(text, "fence", piece.number, piece.language)

    def _in_fence(self, text: str, body: str, fence: re.Match[str] | None) -> Line:
        inner = self._fences[-1]
        if fence:
            info = fence["info"].strip()
            alike = fence["marks"][0] == inner.marks[0]
            if alike and not info and len(fence["marks"]) >= len(inner.marks):
                self._fences.pop()
                return Line(text, "fence", inner.piece.number)
            if language_of_tag(info) and (alike or inner.piece.tag == "markdown"):
                if inner.piece.tag != "markdown":
                    self._fences.pop()  # its end was forgotten
                return self._open(text, fence["marks"], info, fence["lead"])
        return self._code(text, body, inner.piece)

    def _open_pre(self, text: str, pre: re.Match[str]) -> Line:
        classes = [name for found in _CLASS.findall(pre["tags"]) for name in found.split()]
        tag = next(filter(None, map(language_of_tag, classes)), "")
        self._loose = None
        self._pre = Piece(next(self._numbers), tag, 0, self._errors)
        if not pre["code"]:
            return Line(text, "fence", self._pre.number, self._pre.language)
        return self._in_pre(text, pre["code"], self._pre)

    def _in_pre(self, text: str, body: str, piece: Piece) -> Line:
        if end := _PRE_END.match(body):
            self._pre, body = None, end["code"]
            if not body:
                return Line(text, "fence", piece.number)
        return self._code(text, html.unescape(body), piece)

    def _without_fence(self, text: str, body: str) -> Line:
        loose = self._loose
        if loose and (
            loose.in_text
            or (loose.in_brackets and not is_prose(body, in_code=True))
            or continues_code(body, directly=loose.ends_full)
        ):
            return self._code(text, body, loose)
        code = code_of_line(body)
        if code is None:
            self._loose = None
            return Line(text, "prose")
        if loose is None:
            return self._code(text, body[-len(code) :], self._loose_piece())
        return self._code(text, body, loose)

    def _loose_piece(self) -> LoosePiece:
        self._loose = LoosePiece(next(self._numbers), self._errors)
        return self._loose

    @staticmethod
    def _code(text: str, body: str, piece: Piece) -> Line:
        code = piece.take(body)
        return Line(text, "code", piece.number, piece.language, code)


def find_blocks(text: str, errors: Errors | None = None) -> list[Block]:
    """All code in a whole text, piece by piece; ``errors`` as in `BlockFinder`."""
    finder = BlockFinder(errors)
    return list(_blocks([*finder.push(text), *finder.finish()]))


def _blocks(lines: list[Line]) -> Iterator[Block]:
    members: dict[int, list[int]] = {}
    fenced = {line.block for line in lines if line.kind == "fence"}
    numbers = _line_numbers(lines)
    for place, line in enumerate(lines):
        if line.kind == "code":
            members.setdefault(line.block, []).append(place)
    for _, places in sorted(members.items()):
        # A part of an over-long line goes on where the part before it ended.
        code = "".join(
            lines[place].code + ("\n" if lines[place].text.endswith("\n") else "")
            for place in places
        )
        first, last = lines[places[0]], lines[places[-1]]
        if code.strip():
            yield Block(last.language, code, numbers[places[0]], first.block in fenced)


def _line_numbers(lines: list[Line]) -> list[int]:
    numbers, number = [], 1
    for line in lines:
        numbers.append(number)
        number += line.text.endswith("\n")
    return numbers
