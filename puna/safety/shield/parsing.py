"""Parsing within a limit of work.

tree-sitter can be interrupted only where it asks for the text piece by piece. Its Python binding
(0.26) never lets go of the pieces that it was given, so they are handed out in the same few
buffers every time. Text that is read so has no source that nodes could give their text from; so the
tree is handed on to a second parse of the plain bytes, which takes over all that has no errors.
"""

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


MOST_DEEP = 600
"""Nodes within one another in code that is judged."""
MOST_SIGNS = 1500
"""Signs side by side, beyond the names and values among them, in code that is judged."""
MOST_ALIKE = 1000
"""One sign again and again in code that is judged: some grammars look at all of them at each."""
_RUNS = [sign.encode() * MOST_ALIKE for sign in string.punctuation]
_STEP = 64
_MOST_SAMPLES = 1024


class ScanTimeout(Exception):
    """A scan took longer than it may, or would; it may say why."""


class Deadline:
    """What a scan may take of the processor; the load of the machine does not count."""

    def __init__(self, seconds: float = 3600.0) -> None:
        self._end = time.thread_time() + seconds
        self._due = _LOOK

    @property
    def left(self) -> float:
        """Seconds that are left; below 0 when it is over."""
        return self._end - time.thread_time()

    def part(self) -> "Deadline":
        """The first half of what is left."""
        return Deadline(self.left / 2)

    def is_past(self, *_: object) -> bool:
        """Whether it is over; takes what the parser's callback gives."""
        return time.thread_time() > self._end

    def check(self) -> None:
        """Raise `ScanTimeout` when it is over."""
        if self.is_past():
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
    read, enough = _reader(data), deadline.part()
    try:
        if old is None:
            tree = parser.parse(read, progress_callback=enough.is_past)
        else:
            tree = parser.parse(read, old, progress_callback=enough.is_past)
    except ValueError:
        parser.reset()
        raise ScanTimeout from None
    tree = parser.parse(data, tree)  # takes about as long as the first time, or much less
    deadline.check()
    return tree


def check_shape(tree: Tree, since: int = 0) -> int:
    """Raise `ScanTimeout` where a tree is so deep or so wide that queries take quadratic time.

    A query takes time quadratic in the depth, `MOST_DEEP`, and in the signs that stand side by side
    without a name or value, `MOST_SIGNS`, which is how a parser leaves what it cannot follow. One
    node in so many is looked at: from one to the next, in the order of the text, the depth grows by
    one at most.

    Args:
        tree: to be searched.
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
        if around is not None and around.child_count - 2 * around.named_child_count > MOST_SIGNS:
            raise ScanTimeout("it has too many signs without a name or value")
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
