"""Code that grows: parsed and scanned only where it is new."""

from tree_sitter import Point, Tree

from puna.safety.shield.engine import Engine
from puna.safety.shield.index import Index
from puna.safety.shield.lines import LogicalLines
from puna.safety.shield.matching import Hit, Scan
from puna.safety.shield.parsing import Deadline, ScanTimeout, check_shape, now, parse, point
from puna.safety.shield.tree import Reader

CODE_BYTES = 65_536
"""What is kept of a long piece of code as context; after that it starts anew."""
MOST_NESTED = 256
"""Brackets open at once in code that is judged."""


class GrowingCode:
    """One piece of code in one language, logical line by logical line."""

    def __init__(self, own: Engine, deadline_s: float) -> None:
        """``deadline_s`` is the longest that one logical line may take."""
        self._engine, self._seconds = own, deadline_s
        self._parser = own.parser()
        self.first_line = self._n_lines = 0
        """Lines of the piece that stand before what is kept of it."""
        self._start_anew()

    def _start_anew(self) -> None:
        self.first_line = self._n_lines
        self._reader = Reader(self._engine.grammar)
        self._index = Index(self._reader)
        self._lines = LogicalLines(self._engine.grammar.brackets)
        self._data, self._closers = b"", b""
        self._tree: Tree | None = None
        self._n_nodes = 0
        self._unit = ""
        self._spent = 0.0
        """Seconds that were needed to find the end of the logical line."""
        self._seen: set[tuple[str, int, int]] = set()
        self.shift = 0
        """Characters put before the first line to make it parse."""

    def skip(self, lines: int) -> None:
        """Lines of the piece that are left out, before the first is taken."""
        self.first_line = self._n_lines = lines

    def feed(self, line: str) -> bool:
        """Take a line with its end; whether a logical line is complete, to be scanned now."""
        if not self._unit and len(self._data) > CODE_BYTES:
            self._start_anew()
        self._unit += line
        self._n_lines += line.endswith("\n")
        began = now()
        is_complete = self._lines.feed(line)
        self._spent += now() - began
        return is_complete

    def scan(self) -> list[Hit]:
        """What is new in the lines taken since the last scan.

        Raises `ScanTimeout` when it takes too long or would; what follows is then read without
        what was.
        """
        is_judged = False
        try:
            if self._lines.deepest >= MOST_NESTED:
                raise ScanTimeout(f"{MOST_NESTED} brackets or more are open at once")
            new = self._scan(Deadline(self._seconds - self._spent))
            is_judged = True
        finally:
            self._spent = 0.0
            if not is_judged:
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
            at = point(old)
            self._tree.edit(
                start,
                start + len(self._closers),
                len(text),
                at,
                _after(at, self._closers),
                _after(at, text[start:]),
            )
        self._closers = closers
        self._tree = parse(self._parser, text, deadline, self._tree, start)
        self._n_nodes = check_shape(self._tree, deadline, self._n_nodes)
        scan = Scan(self._engine, self._reader, self._tree, text, self._index, deadline)
        hits = scan.hits(start, len(self._data))
        self._index.release()
        new = {(hit.rule.id, hit.line, hit.column): hit for hit in hits}  # it may have grown
        fresh = [hit for place, hit in new.items() if place not in self._seen]
        self._seen.update(new)
        return fresh


def _after(at: Point, data: bytes) -> Point:
    """The point after ``data`` that begins at a point."""
    there = point(data)
    return Point(at.row + there.row, there.column + (0 if there.row else at.column))
