"""Sets of dotted names with wildcards, looked up by their last segment."""

import re
from collections.abc import Iterable


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
