"""Sets of dotted names with wildcards, looked up by their last segment."""

from collections.abc import Iterable


class Names:
    """Patterns of dotted names.

    ``os.system`` is that name, or a longer one that ends with it; ``eval`` without a dot is that
    name alone; ``*.execute`` is a method of anything; ``request.args.*`` is anything below;
    ``new Random`` is a constructor, however its type is qualified.
    """

    def __init__(self, patterns: Iterable[str] = ()) -> None:
        self._by_last: dict[str, list[str]] = {}
        self._heads: list[str] = []
        for pattern in patterns:
            if pattern.endswith(".*"):
                self._heads.append(pattern[:-2])
            else:
                self._by_last.setdefault(pattern.rpartition(".")[2], []).append(pattern)

    def lasts(self) -> Iterable[str]:
        """The last segments of the patterns."""
        return self._by_last

    def match(self, name: str) -> bool:
        """Whether one of the patterns is this name."""
        patterns = self._by_last.get(name.rpartition(".")[2])
        if patterns and any(_fits(pattern, name) for pattern in patterns):
            return True
        return any(_below(head, name) for head in self._heads)


def _fits(pattern: str, name: str) -> bool:
    if pattern == name:
        return True
    if pattern.startswith("*."):
        return name.endswith(pattern[1:])
    if "." in pattern:
        return name.endswith("." + pattern)
    return False


def _below(head: str, name: str) -> bool:
    at = name.find(head)
    while at >= 0:
        end = at + len(head)
        if (at == 0 or name[at - 1] == ".") and (end < len(name) and name[end] in ".[("):
            return True
        at = name.find(head, at + 1)
    return False
