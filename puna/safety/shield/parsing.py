"""Parsing within a time limit.

tree-sitter can be interrupted only where it asks for the text piece by piece, and then its Python
binding (0.26) never frees the pieces. So plain code is parsed at once, and only text that looks
slow, or was slow in a part, is parsed with the way out.
"""

import string
import time

from tree_sitter import Parser, Point, Tree

_CHUNK = 1024
_SHORT, _LONG, _PART = 64, 2048, 1024
"""Bytes: up to the first any text is plain; beyond the second it is tried in parts first."""
_SLOW_S_PER_BYTE = 3e-6
"""Plain code takes a third of it at most, text that a grammar cannot follow twice as much."""
_PLAIN = (string.ascii_letters + string.digits + string.whitespace + "_").encode()
_MOST_SIGNS = 0.4
"""Code has fewer signs in its letters, digits and spaces."""


class ScanTimeout(Exception):
    """A scan took longer than it may."""


class Deadline:
    """What a scan may take of the processor; the load of the machine does not count."""

    def __init__(self, seconds: float = 3600.0) -> None:
        self._end = time.thread_time() + seconds

    def is_past(self, *_: object) -> bool:
        """Whether it is over; takes what the parser's callback gives."""
        return time.thread_time() > self._end

    def check(self) -> None:
        """Raise `ScanTimeout` when it is over."""
        if self.is_past():
            raise ScanTimeout


def parse(
    parser: Parser,
    data: bytes,
    deadline: Deadline,
    old: Tree | None = None,
    start: int = 0,
    careful: bool = False,
) -> Tree:
    """The tree of a text; raises `ScanTimeout`.

    Args:
        parser: of the text's language.
        data: the text.
        deadline: when to give up.
        old: the tree of the text as it was, edited.
        start: where the text is new.
        careful: it was slow before.
    """
    if careful or _is_odd(data[start:]) or _is_slow(parser, data[start:]):
        tree = _interruptible(parser, data, deadline, old)
    else:
        tree = parser.parse(data) if old is None else parser.parse(data, old)
    deadline.check()
    return tree


def _is_odd(text: bytes) -> bool:
    """Whether a text has too many signs for code."""
    signs = len(text.translate(None, _PLAIN))
    return len(text) > _SHORT and signs > _MOST_SIGNS * len(text)


def _is_slow(parser: Parser, text: bytes) -> bool:
    """Whether a part of a long text takes long."""
    if len(text) <= _LONG:
        return False
    for at in range(0, len(text), _PART):
        part = text[at : at + _PART]
        if _is_odd(part):
            return True
        began = time.thread_time()
        parser.parse(part)
        if time.thread_time() - began > _SLOW_S_PER_BYTE * _PART:
            return True
    return False


def _interruptible(parser: Parser, data: bytes, deadline: Deadline, old: Tree | None) -> Tree:
    def read(at: int, _: Point) -> bytes:
        return data[at : at + _CHUNK]

    try:
        if old is None:
            return parser.parse(read, progress_callback=deadline.is_past)
        return parser.parse(read, old, progress_callback=deadline.is_past)
    except ValueError:
        parser.reset()
        raise ScanTimeout from None
