"""Where names get their values and where functions are, in code that grows.

Places are kept, not nodes: a node keeps its whole tree, and a stream has a tree for every line.
"""

from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass

from tree_sitter import Node

from puna.safety.shield.grammars import words
from puna.safety.shield.tree import Reader

_MOST_VALUES = 64
"""Values of a name before a place that are looked at."""
MOST_FILLS = 17
"""Values put into a list that are looked at; so many may not be all."""
_NO_VARIABLES = words(
    "keyword_argument pair keyed_element default_parameter typed_default_parameter parameter "
    "element_value_pair jsx_attribute field_initializer initializer_pair optional_parameter "
    "array_element_initializer keyword_parameter simple_parameter flow_pair block_mapping_pair "
    "Attribute attribute element"
)
"""Facts that give a value to something else than a variable."""
_FILLS = words(
    "append push add Add Append AppendLine AppendFormat AppendJoin extend addAll AddRange insert "
    "Insert unshift addFirst prepend"
)
"""Methods that put a value into a list or a string builder."""


@dataclass(frozen=True, slots=True)
class Definition:
    """A name gets a value; places are bytes."""

    start: int
    value_start: int
    value_end: int
    is_added: bool
    """Whether the value is added to an old one."""


class Index:
    """Definitions and functions of one text; positions hold as long as the text only grows."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        self._root: Node | None = None
        self._pending: list[Node] = []
        self._pending_calls: list[Node] = []
        self._fills: dict[str, dict[int, Definition]] = {}
        self._definitions: dict[str, dict[int, Definition]] = {}
        self._places: dict[str, list[int]] = {}
        """Starts of the definitions of a name, in order, once they were asked for."""
        self._functions: dict[int, int] = {}
        """End of each function, by its start."""
        self._starts: list[int] | None = None

    def add(
        self, root: Node, sets: list[Node], functions: list[Node], calls: list[tuple[Node, str]]
    ) -> None:
        """Take note of nodes of the newest tree; those seen before may have grown.

        Of calls the last segments of their names are given too.
        """
        self._root = root
        self._pending_calls += [node for node, last in calls if last in _FILLS]
        self._pending += [node for node in sets if node.type not in _NO_VARIABLES]
        if functions:
            self._functions.update((node.start_byte, node.end_byte) for node in functions)
            self._starts = None

    def settle(self) -> None:
        """Let go of the nodes that were added."""
        for node in self._pending:
            added = "augmented" in node.type or node.type.startswith(("operator_", "compound_"))
            for name, value in self._reader.targets(node):
                found = Definition(node.start_byte, value.start_byte, value.end_byte, added)
                self._definitions.setdefault(name, {})[node.start_byte] = found
                self._places.pop(name, None)
        self._pending.clear()
        for node in self._pending_calls:
            self._fill(node)
        self._pending_calls.clear()

    def _fill(self, node: Node) -> None:
        """Note what a call puts into a list or a string builder, also in the midst of a chain."""
        call = self._reader.call(node)
        if call.receiver is None or not call.positional:
            return
        name = self._reader.name(call.receiver).partition("(")[0]
        while name.rpartition(".")[2] in _FILLS:
            name = name.rpartition(".")[0]
        for value in call.positional:
            found = Definition(node.start_byte, value.start_byte, value.end_byte, True)
            self._fills.setdefault(name, {})[value.start_byte] = found

    def fills(self, name: str, start: int, end: int) -> list[Definition]:
        """What was put between two places into the list or string builder of this name."""
        self.settle()
        found = [
            *self._fills.get(name, {}).values(),
            *self._definitions.get(f"{name}[]", {}).values(),
        ]
        inside = [one for one in found if start <= one.value_start and one.value_end <= end]
        return sorted(inside, key=lambda one: one.value_start)[-MOST_FILLS:]

    def release(self) -> None:
        """Let go of the tree as well, until the next is added."""
        self.settle()
        self._root = None

    def is_defined(self, name: str) -> bool:
        """Whether the name gets a value anywhere."""
        self.settle()
        return name in self._definitions

    def before(self, name: str, at: int) -> list[Definition]:
        """The values that a name got before a place, the last of them, in order."""
        self.settle()
        found = self._definitions.get(name)
        if found is None:
            return []
        if (places := self._places.get(name)) is None:
            places = self._places[name] = sorted(found)
        end = bisect_left(places, at)
        last = (found[start] for start in places[max(0, end - _MOST_VALUES) : end])
        return [one for one in last if one.value_end <= at]

    def value(self, found: Definition) -> Node | None:
        """The node of a value, in the newest tree."""
        if self._root is None:
            return None
        return self._root.named_descendant_for_byte_range(found.value_start, found.value_end)

    def function(self, at: int) -> Node | None:
        """The innermost named function around a byte, with its decorators."""
        if self._starts is None:
            self._starts = sorted(self._functions)
        for n in range(bisect_left(self._starts, at + 1) - 1, -1, -1):
            start = self._starts[n]
            if self._functions[start] > at:
                return next(self._function_nodes(start), None)
        return None

    def _function_nodes(self, start: int) -> Iterator[Node]:
        """The function that starts at a place, from the smallest node there outwards."""
        assert self._root is not None
        node = self._root.named_descendant_for_byte_range(start, start + 1)
        while node is not None:
            if node.start_byte == start and node.type in self._reader.grammar.functions:
                parent = node.parent
                yield parent if parent and parent.type == "decorated_definition" else node
            node = node.parent
