"""Pages of the key/value cache: who holds which, and which hold a prefix worth keeping."""

from collections import OrderedDict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field

SCRATCH = 0  # where padding writes; never read, never handed out


@dataclass
class Prefix:
    """The pages of one sequence, and how far they are known to the prefix cache."""

    pages: list[int] = field(default_factory=list)
    published: int = 0
    """How many of ``pages``, from the first, have been offered for sharing."""
    node: Hashable = None
    """Identity of the last published page: with it a next page's content is unambiguous."""


class PagePool:
    """Hands out pages and keeps full ones for later sequences with the same beginning.

    A page is found by the identity of the page before it and its own tokens, compared exactly:
    there is no hash that could collide. Pages nobody holds stay until room is needed; the one
    unused for longest goes first.

    Args:
        n_pages: pages in all; one of them is scratch.
        page_size: tokens a page holds.
    """

    def __init__(self, n_pages: int, page_size: int) -> None:
        self.page_size = page_size
        self.n_pages = n_pages - 1
        self._free = list(range(n_pages - 1, SCRATCH, -1))
        self._holders = [0] * n_pages
        self._page_of: dict[Hashable, tuple[int, int]] = {}  # (node before, tokens) -> page, node
        self._key_of: dict[int, Hashable] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()  # kept, held by nobody; oldest first
        self._nodes = 0

    @property
    def n_cached(self) -> int:
        """Pages kept for prompts to come, held by nobody."""
        return len(self._idle)

    @property
    def n_used(self) -> int:
        """Pages that sequences hold."""
        return self.n_pages - len(self._free) - len(self._idle)

    @property
    def n_available(self) -> int:
        """Pages that `allocate` can give."""
        return len(self._free) + len(self._idle)

    def allocate(self, n: int) -> list[int] | None:
        """``n`` pages, or None, and nothing changed, when there are not so many."""
        if n > self.n_available:
            return None
        return [self._take() for _ in range(n)]

    def match(self, tokens: Sequence[int], root: Hashable) -> Prefix:
        """The kept pages that hold the beginning of ``tokens``; the caller now holds them too.

        Args:
            tokens: at most all full pages of these are taken.
            root: what else the content depends on, such as the adapter.
        """
        prefix = Prefix(node=root)
        for start in range(0, len(tokens) - self.page_size + 1, self.page_size):
            found = self._page_of.get((prefix.node, tuple(tokens[start : start + self.page_size])))
            if found is None:
                break
            page, prefix.node = found
            self._idle.pop(page, None)
            self._holders[page] += 1
            prefix.pages.append(page)
        prefix.published = len(prefix.pages)
        return prefix

    def next_key(self, prefix: Prefix, tokens: Sequence[int]) -> Hashable:
        """Under what the page after the published ones will be found; None while not full."""
        start = prefix.published * self.page_size
        piece = tuple(tokens[start : start + self.page_size])
        return (prefix.node, piece) if len(piece) == self.page_size else None

    def publish(self, prefix: Prefix, tokens: Sequence[int], n_computed: int) -> None:
        """Offer the pages that the first ``n_computed`` of ``tokens`` fill by now."""
        while (prefix.published + 1) * self.page_size <= n_computed:
            key = self.next_key(prefix, tokens)
            if key not in self._page_of:
                page = prefix.pages[prefix.published]
                self._nodes += 1
                self._page_of[key] = (page, self._nodes)
                self._key_of[page] = key
            prefix.node = self._page_of[key][1]
            prefix.published += 1

    def release(self, prefix: Prefix) -> None:
        """The sequence is done with its pages; the published ones stay while there is room."""
        for page in reversed(prefix.pages):  # later pages are of use to fewer: they go first
            self._holders[page] -= 1
            if self._holders[page]:
                continue
            if page in self._key_of:
                self._idle[page] = None
            else:
                self._free.append(page)
        prefix.pages = []

    def forget(self) -> None:
        """Drop every kept page: what they hold is of other weights."""
        self._free.extend(self._idle)
        self._idle.clear()
        self._page_of.clear()
        self._key_of.clear()

    def _take(self) -> int:
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._idle.popitem(last=False)
            del self._page_of[self._key_of.pop(page)]
        self._holders[page] = 1
        return page
