"""Code that grows: parsed and scanned only where it is new."""

import time

from tree_sitter import Point, Tree

from puna.safety.shield.engine import Engine
from puna.safety.shield.index import Index
from puna.safety.shield.lines import LogicalLines
from puna.safety.shield.matching import Hit, Scan
from puna.safety.shield.parsing import Deadline, ScanTimeout, parse
from puna.safety.shield.tree import Reader

_SLOW_S = 0.004
CODE_BYTES = 65_536
"""What is kept of a long piece of code as context; after that it starts anew."""


class GrowingCode:
    """One piece of code in one language, logical line by logical line."""

    def __init__(self, own: Engine, deadline_s: float) -> None:
        """``deadline_s`` is the longest that one logical line may take."""
        self._engine, self._seconds = own, deadline_s
        self._parser = own.parser()
        self._start_anew()

    def _start_anew(self) -> None:
        self._reader = Reader(self._engine.grammar)
        self._index = Index(self._reader)
        self._lines = LogicalLines(self._engine.grammar.brackets)
        self._data, self._closers = b"", b""
        self._tree: Tree | None = None
        self._is_slow = False
        """Whether the last line took long to parse."""
        self._unit = ""
        self._seen: set[tuple[str, int, int]] = set()
        self.shift = 0
        """Characters put before the first line to make it parse."""

    def feed(self, line: str) -> bool:
        """Take a line with its end; whether a logical line is complete, to be scanned now."""
        self._unit += line
        return self._lines.feed(line)

    def scan(self) -> list[Hit]:
        """What is new in the lines taken since the last scan.

        Raises `ScanTimeout` when it takes too long; what follows is then read without what was.
        """
        try:
            new = self._scan(Deadline(self._seconds))
        except ScanTimeout:
            self._start_anew()
            raise
        if len(self._data) > CODE_BYTES:
            self._start_anew()
        return new

    def _scan(self, deadline: Deadline) -> list[Hit]:
        unit, self._unit = self._unit, ""
        if not self._data:
            self._data = self._engine.opening(unit)
            self.shift = len(self._data)
        old, start = self._data, len(self._data)
        self._data = old + unit.encode("utf-8", "replace")
        closers = self._lines.closers.encode()
        text = self._data + closers
        if self._tree is not None:
            at = _point(old)
            self._tree.edit(
                start,
                start + len(self._closers),
                len(text),
                at,
                _after(at, self._closers),
                _after(at, text[start:]),
            )
        self._closers = closers
        began = time.thread_time()
        self._tree = parse(self._parser, text, deadline, self._tree, start, self._is_slow)
        self._is_slow = time.thread_time() - began > _SLOW_S
        scan = Scan(self._engine, self._reader, self._tree, text, self._index, deadline)
        hits = scan.hits(start, len(self._data))
        self._index.release()
        new = {(hit.rule.id, hit.line, hit.column): hit for hit in hits}  # it may have grown
        fresh = [hit for place, hit in new.items() if place not in self._seen]
        self._seen.update(new)
        return fresh


def _point(data: bytes) -> Point:
    row = data.count(b"\n")
    return Point(row, len(data) - (data.rfind(b"\n") + 1))


def _after(at: Point, data: bytes) -> Point:
    """The point after ``data`` that begins at a point."""
    there = _point(data)
    return Point(at.row + there.row, there.column + (0 if there.row else at.column))
