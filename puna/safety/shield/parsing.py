"""Parsing within a limit of work.

tree-sitter can be interrupted only where it asks for the text piece by piece. Its Python binding
(0.26) never lets go of the pieces that it was given, so they are handed out in the same few
buffers every time. Text that is read so has no source that nodes could give their text from; so the
tree is handed on to a second parse of the plain bytes, which takes over all that has no errors.

Where much is open at the end of a text, what the parser does there takes time quadratic in its
length, and cannot be interrupted at all: so long new text is parsed by doubling parts of it, and
given up when the next part's end would take too long.
"""

import gc
import string
import threading
import time
from collections.abc import Callable

from tree_sitter import Parser, Point, Tree

_BITS = 10
"""Pieces are at most two to the power of this many bytes long."""
_PLENTY_S_PER_BYTE = 1e-4
"""With so much time there is no need to interrupt: the slowest text seen takes a tenth of it."""
_LOOK = 4096
"""Work between two looks at the clock: about as many microseconds at the very worst."""
_FIRST_PART = 512
"""Bytes of new text that are parsed at once; of more, this much first, then twice as much."""
_MOST_HALT_S = 0.008
"""Longest time that the parser may go on without asking whether it should."""
_GROWTH = 4
"""How much longer it goes on so in a text of twice the length."""

MOST_DEEP = 600
"""Nodes within one another in code that is judged."""
MOST_SIGNS = 1500
"""Signs side by side, beyond the names and values among them, in code that is judged."""
MOST_ALIKE = 1000
"""One sign again and again in code that is judged: some grammars look at all of them at each."""
_RUNS = [sign.encode() * MOST_ALIKE for sign in string.punctuation]
_S_PER_CHILD = 7e-6
"""What queries take at worst for each child of an error."""
_STEP = 64
_MOST_SAMPLES = 1024


class ScanTimeout(Exception):
    """A scan took longer than it may, or would; it may say why."""


class _Pauses(threading.local):
    """What collecting garbage took of a thread: the program's garbage, so no work of a scan."""

    began = total = 0.0

    def note(self, phase: str, _: object) -> None:
        """Called by the collector at the start and at the end."""
        if phase == "start":
            self.began = time.thread_time()
        else:
            self.total += time.thread_time() - self.began


_PAUSES = _Pauses()
gc.callbacks.append(_PAUSES.note)


def now() -> float:
    """Seconds that this thread has worked, by a clock of its own."""
    return time.thread_time() - _PAUSES.total


class Deadline:
    """What a scan may take of the processor; the load of the machine does not count."""

    def __init__(self, seconds: float = 3600.0) -> None:
        self._end = now() + seconds
        self._due = _LOOK

    @property
    def left(self) -> float:
        """Seconds that are left; below 0 when it is over."""
        return self._end - now()

    def part(self) -> "Deadline":
        """The first half of what is left."""
        return Deadline(self.left / 2)

    def is_past(self, at: float) -> bool:
        """Whether it is over at this time of `now`."""
        return at > self._end

    def check(self) -> None:
        """Raise `ScanTimeout` when it is over."""
        if self.is_past(now()):
            raise ScanTimeout

    def spend(self, work: int = 64) -> None:
        """Note work that is done next, and look at the clock now and then.

        A unit is the time that an expression takes for a character: a node costs the default.
        Raises `ScanTimeout`.
        """
        self._due -= work
        if self._due < 0:
            self._due = _LOOK
            self.check()


class _Buffers(threading.local):
    """Buffers of every power of two, one set for each thread."""

    def __init__(self) -> None:
        self.by_bits = [bytearray(1 << bits) for bits in range(_BITS + 1)]


_BUFFERS = _Buffers()


def parse(
    parser: Parser, data: bytes, deadline: Deadline, old: Tree | None = None, start: int = 0
) -> Tree:
    """The tree of a text; raises `ScanTimeout` when that takes more than the deadline leaves.

    It is raised too for `MOST_ALIKE`: there the parser cannot be interrupted.

    Args:
        parser: of the text's language.
        data: the text.
        deadline: when to give up.
        old: the tree of the text as it was, edited.
        start: where the text is new.
    """
    if len(data) - start >= MOST_ALIKE and any(data.find(run, start) >= 0 for run in _RUNS):
        raise ScanTimeout(f"it has one sign {MOST_ALIKE} times in a row")
    if deadline.left > _PLENTY_S_PER_BYTE * len(data):
        return parser.parse(data) if old is None else parser.parse(data, old)
    tree, seconds = _parse_by_parts(parser, data, deadline.part(), old, start)
    if tree.root_node.has_error and seconds > deadline.left:
        raise ScanTimeout
    tree = parser.parse(data, tree)  # takes about as long as before, or much less without errors
    deadline.check()
    return tree


def _parse_by_parts(
    parser: Parser, data: bytes, deadline: Deadline, old: Tree | None, start: int
) -> tuple[Tree, float]:
    """As `parse`, but nodes cannot give their text; and how many seconds the last part took."""
    size, tree = _FIRST_PART, None
    while start + size < len(data):
        end = start + size
        part = old.copy() if tree is None and old else tree
        if part is not None:
            at, was = (end, len(data)) if tree is None else (start + size // 2,) * 2
            part.edit(at, was, end, *(point(data[:place]) for place in (at, was, end)))
        for _ in range(2):  # a grammar's tables are read in when they are first used
            tree, halt = _parse_watched(parser, data[:end], deadline, part)
            if halt * _GROWTH <= _MOST_HALT_S:
                break
        else:
            raise ScanTimeout("too much is open at its end")
        size *= 2
    if tree is not None:
        end = start + size // 2
        tree.edit(end, end, len(data), point(data[:end]), point(data[:end]), point(data))
    began = now()
    tree, _ = _parse_watched(parser, data, deadline, tree or old)
    return tree, now() - began


def _parse_watched(
    parser: Parser, data: bytes, deadline: Deadline, old: Tree | None
) -> tuple[Tree, float]:
    """The tree, and the longest time in seconds for which the parser could not be interrupted."""
    last, longest = now(), 0.0

    def is_past(*_: object) -> bool:
        nonlocal last, longest
        at = now()
        last, longest = at, max(longest, at - last)
        return deadline.is_past(at)

    source = _reader(data)
    try:
        if old is None:
            tree = parser.parse(source, progress_callback=is_past)
        else:
            tree = parser.parse(source, old, progress_callback=is_past)
    except ValueError:
        parser.reset()
        raise ScanTimeout from None
    return tree, max(longest, now() - last)


def point(data: bytes) -> Point:
    """The row and column, in bytes, after a text."""
    row = data.count(b"\n")
    return Point(row, len(data) - (data.rfind(b"\n") + 1))


def check_shape(tree: Tree, deadline: Deadline, since: int = 0) -> int:
    """Raise `ScanTimeout` where a tree is so deep or so wide that queries take quadratic time.

    A query takes time quadratic in the depth, `MOST_DEEP`, and in the signs that stand side by side
    without a name or value, `MOST_SIGNS`, which is how a parser leaves what it cannot follow; it
    takes long, too, for much side by side in one error, which the deadline has to leave. One node
    in so many is looked at: from one to the next, in the order of the text, the depth grows by
    one at most.

    Args:
        tree: to be searched.
        deadline: of the queries.
        since: how many nodes it had when it was looked at last; only much more are looked at again.

    Returns how many nodes it had when it was looked at.
    """
    count = tree.root_node.descendant_count
    if since <= count < since + MOST_DEEP // 2:
        return since
    cursor = tree.walk()
    for at in range(0, count, max(_STEP, count // _MOST_SAMPLES)):
        cursor.goto_descendant(at)
        if cursor.depth > MOST_DEEP:
            raise ScanTimeout("it is nested too deeply")
        around = None if cursor.node is None else cursor.node.parent
        if around is None:
            continue
        if around.child_count - 2 * around.named_child_count > MOST_SIGNS:
            raise ScanTimeout("it has too many signs without a name or value")
        if around.is_error and around.child_count * _S_PER_CHILD > deadline.left:
            raise ScanTimeout("too much of it is no code of its language")
    return count


def _reader(data: bytes) -> Callable[[int, Point], bytearray | None]:
    """What gives the parser its text, piece by piece."""
    view, size, buffers = memoryview(data), len(data), _BUFFERS.by_bits

    def read(at: int, _: Point) -> bytearray | None:
        left = size - at
        if left <= 0:
            return None
        bits = min(_BITS, left.bit_length() - 1)
        buffer = buffers[bits]
        buffer[:] = view[at : at + (1 << bits)]
        return buffer

    return read
