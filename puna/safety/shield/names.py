"""Sets of dotted names with wildcards, looked up by their last segment."""

import re
from collections.abc import Iterable

_BITS = 240


class Names:
    """Patterns of dotted names.

    ``os.system`` is that name, or a longer one that ends with it; ``eval`` without a dot is that
    name alone; ``*.execute`` is a method of anything; ``request.args.*`` is anything below;
    ``new Random`` is a constructor, however its type is qualified.
    """

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        self._whole: dict[str, set[str]] = {}
        """Names by their last segments."""
        self._ends: dict[str, tuple[str, ...]] = {}
        """Ends of names, by their last segments."""
        heads: list[str] = []
        for pattern in patterns:
            if pattern.endswith(".*"):
                heads.append(re.escape(pattern[:-2]))
                continue
            last = pattern.rpartition(".")[2]
            self._whole.setdefault(last, set()).add(pattern)
            if "." in pattern:
                end = pattern[1:] if pattern.startswith("*.") else "." + pattern
                self._ends[last] = (*self._ends.get(last, ()), end)
        self._below = re.compile(rf"(?:^|\.)(?:{'|'.join(heads)})[.\[(]") if heads else None

    def lasts(self) -> Iterable[str]:
        """The last segments of the patterns."""
        return self._whole

    def match(self, name: str) -> bool:
        """Whether one of the patterns is this name."""
        last = name.rpartition(".")[2]
        whole = self._whole.get(last)
        if whole is not None and (name in whole or name.endswith(self._ends.get(last, ()))):
            return True
        return self._below is not None and self._below.search(name) is not None


class SeenNames:
    """The names that the value of each expression depends on, as it is found from the inside out.

    A set of names is a number with a bit for each; beyond `_BITS` names they share bits.
    """

    def __init__(self) -> None:
        self._bits: dict[str, int] = {}
        self._names: list[str] = []
        self._now = 0
        """Names that the expression judged now depends on."""
        self._of: dict[int, int] = {}
        self._held: dict[Names, tuple[int, int]] = {}
        """Of the names so far those that a set of names matches, and how many they were."""

    def begin(self) -> int:
        """An expression is judged from here on; gives what `end` needs."""
        outer, self._now = self._now, 0
        return outer

    def end(self, node: int, outer: int) -> None:
        """The expression of this id is judged; it was part of the one before."""
        self._of[node] = self._now
        self._now |= outer

    def repeat(self, node: int) -> None:
        """An expression judged before is part of this one."""
        self._now |= self._of[node]

    def note(self, name: str) -> None:
        """The expression judged now depends on this name."""
        bit = self._bits.get(name)
        if bit is None:
            bit = self._bits[name] = 1 << len(self._names) % _BITS
            self._names.append(name)
        self._now |= bit

    def may_hold(self, node: int, names: Names) -> bool:
        """Whether what was found of an expression may depend on one of these names."""
        found, n_known = self._held.get(names, (0, 0))
        if n_known < len(self._names):
            for name in self._names[n_known:]:
                if names.match(name):
                    found |= self._bits[name]
            self._held[names] = found, len(self._names)
        return self._of.get(node, 0) & found != 0
