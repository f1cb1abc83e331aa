"""Finds what the rules of a language describe in a piece of its code."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tree_sitter import Node, Query, QueryCursor, Tree

from puna.safety.shield.conditions import Place
from puna.safety.shield.engine import Engine
from puna.safety.shield.imports import aliases_of
from puna.safety.shield.index import Index
from puna.safety.shield.needles import finditer, lower
from puna.safety.shield.parsing import Deadline, ScanTimeout
from puna.safety.shield.rules import Pattern, Rule
from puna.safety.shield.tree import STRINGS, Call, Reader, is_comment, text_of
from puna.safety.shield.values import LOOK_BACK, Values

_BLOCKS = (
    "block", "body", "_list", "module", "program", "source_file", "statement", "statements", "unit"
)  # fmt: skip
_MOST_MATCHES = 512
"""Matches that a query may have begun and not ended; real code has at most a few hundred."""
_S_PER_BYTE = 1e-6
"""What a query takes for each byte of text that is nothing but matches."""
_MOST_AROUND = 64
"""Nodes around a place that are looked at; each is found from the root."""
_SHORT = 8
"""Strings below this length are not taken apart."""


@dataclass(frozen=True)
class Hit:
    """A rule found at a place; lines and columns, in characters, count from 0."""

    line: int
    column: int
    end_line: int
    end_column: int
    rule: Rule


class Scan:
    """One pass over a tree, or over the part of it that is new."""

    def __init__(
        self,
        own: Engine,
        reader: Reader,
        tree: Tree,
        data: bytes,
        index: Index | None = None,
        deadline: Deadline | None = None,
    ) -> None:
        """``index`` holds what earlier passes over the same growing text found."""
        self._deadline = deadline or Deadline()
        self._engine, self._reader, self._data = own, reader, data
        self._is_ascii = data.isascii()
        self._root = tree.root_node
        self._index = index or Index(reader)
        self._names: dict[tuple[str, int, int], list[Pattern]] = {}
        self._values = Values(
            self._root, reader, self._index, own.rules.knowledge, self._deadline.spend
        )

    def hits(self, start: int = 0, end: int | None = None) -> list[Hit]:
        """What the rules find among nodes that touch these bytes, in order, each once.

        Raises `ScanTimeout` when the deadline is over.
        """
        self._deadline.check()
        end = len(self._data) if end is None else end
        found: dict[Hit, None] = {}
        for node, rule in self._found(start, end):
            self._deadline.spend()
            found[self._hit(node, rule)] = None
        return _outermost(
            sorted(found, key=lambda h: (h.line, h.column, h.rule.id, -h.end_line, -h.end_column))
        )

    def _hit(self, node: Node, rule: Rule) -> Hit:
        (line, column), (end_line, end_column) = node.start_point, node.end_point
        return Hit(
            line,
            self._characters(node.start_byte, column),
            end_line,
            self._characters(node.end_byte, end_column),
            rule,
        )

    def _characters(self, at: int, n_bytes: int) -> int:
        """How many characters the bytes before a place are."""
        if self._is_ascii:
            return n_bytes
        self._deadline.spend(n_bytes)
        return len(self._data[at - n_bytes : at].decode("utf-8", "replace"))

    def _found(self, start: int, end: int) -> Iterator[tuple[Node, Rule]]:
        captures = self._captures(start, end)
        for node in captures.get("import", ()):
            self._reader.aliases.update(aliases_of(self._engine.language, node))
        calls = [(node, self._reader.last(node)) for node in captures.get("call", ())]
        self._index.add(self._root, captures.get("set", []), captures.get("function", []), calls)
        yield from self._calls(calls)
        yield from self._sets(captures.get("set", ()))
        if self._engine.rules.built:
            yield from self._built(captures.get("built", ()))
            yield from self._built(self._builders(calls))
        yield from self._texts(start, end)
        if self._engine.raw_owner:
            yield from self._queries(start, end)

    def _captures(self, start: int, end: int) -> dict[str, list[Node]]:
        """The nodes that are facts, by kind."""
        if self._engine.facts is None:
            return {}
        cursor = self._cursor(self._engine.facts, start, end)
        captures = cursor.captures(self._root)
        _check_limit(cursor)
        self._deadline.check()
        for nodes in captures.values():  # they come in no order
            nodes.sort(key=lambda node: (node.start_byte, -node.end_byte))
        return captures

    def _cursor(self, query: Query, start: int, end: int) -> QueryCursor:
        cursor = QueryCursor(query)
        cursor.match_limit = _MOST_MATCHES
        if (start, end) != (0, len(self._data)):
            cursor.set_byte_range(start, end)
        return cursor

    def _calls(self, calls: Iterable[tuple[Node, str]]) -> Iterator[tuple[Node, Rule]]:
        by_last, others = self._engine.rules.calls, self._engine.rules.call_expressions
        for node, last in calls:
            self._deadline.spend()
            patterns = by_last.get(last)
            if not patterns and not others:
                continue
            for pattern in self._fitting(self._values.callee(node), patterns or (), others):
                if self._call_fits(pattern, self._values.call(node)):
                    yield node, pattern.rule

    def _fitting(
        self, name: str, by_name: Iterable[Pattern], others: list[Pattern]
    ) -> list[Pattern]:
        """Those of the patterns that a name fits; names come again and again."""
        key = (name, id(by_name), id(others))
        found = self._names.get(key)
        if found is None:
            found = [pattern for pattern in [*by_name, *others] if pattern.fits(name)]
            self._names[key] = found
        return found

    def _call_fits(self, pattern: Pattern, call: Call) -> bool:
        for key, test in pattern.args:
            if key == "any" or key.endswith("+"):
                first = int(key[:-1]) if key.endswith("+") else 0
                chosen = [*call.positional[first:], *call.keywords.values()]
                if not any(test(Place(node, self._values, pattern.safe)) for node in chosen):
                    return False
            elif not test(Place(_argument(call, key), self._values, pattern.safe)):
                return False
        return self._place_fits(pattern, call.node)

    def _sets(self, nodes: Iterable[Node]) -> Iterator[tuple[Node, Rule]]:
        by_last, others = self._engine.rules.sets, self._engine.rules.set_expressions
        if not by_last and not others:
            return
        for node in nodes:
            self._deadline.spend()
            for name, value in self._reader.targets(node):
                patterns = by_last.get(name.rpartition(".")[2], ())
                for pattern in self._fitting(name, patterns, others):
                    if self._value_fits(pattern, value) and self._place_fits(pattern, node):
                        yield node, pattern.rule

    def _value_fits(self, pattern: Pattern, node: Node) -> bool:
        return pattern.value is None or pattern.value(Place(node, self._values, pattern.safe))

    def _builders(self, calls: Iterable[tuple[Node, str]]) -> Iterator[Node]:
        """Calls that make a string of their arguments."""
        builders = self._engine.rules.knowledge.builders
        lasts = frozenset(builders.lasts())
        for node, last in calls:
            self._deadline.spend()
            if last in lasts and builders.match(self._values.callee(node)):
                yield node

    def _built(self, nodes: Iterable[Node]) -> Iterator[tuple[Node, Rule]]:
        kinds = self._engine.grammar.concats | self._engine.grammar.interpolated
        for node in nodes:
            self._deadline.spend()
            operator = node.child_by_field_name("operator")
            if node.end_byte - node.start_byte < _SHORT or (
                operator is not None and operator.type not in self._engine.grammar.operators
            ):
                continue
            parent = node.parent
            if parent is not None and parent.type in kinds:
                continue
            plain = self._values.of(node)
            if not (plain.built or plain.dynamic):  # no further harmless call makes it so
                continue
            for pattern in self._engine.rules.built:
                value = self._values.of(node, pattern.safe)
                if (
                    value.built
                    and value.text is not None
                    and pattern.expression is not None
                    and pattern.expression.search(value.text)
                    and self._value_fits(pattern, node)
                    and self._place_fits(pattern, node)
                ):
                    yield node, pattern.rule

    def _texts(self, start: int, end: int) -> Iterator[tuple[Node, Rule]]:
        own = self._engine.rules
        if not own.texts and not own.strings:
            return
        text = self._data[start:end].decode("utf-8", "replace")
        lowered = lower(text)
        for pattern in [*own.texts, *own.strings]:
            assert pattern.expression is not None
            for found in finditer(
                pattern.expression, pattern.needles, pattern.reach, text, lowered
            ):
                self._deadline.spend(len(text))
                at = start + self._n_bytes(text, found.start())
                stop = at + max(1, len(found[0].encode()))
                node = self._root.descendant_for_byte_range(at, stop) or self._root
                if pattern in own.strings and not _in_string(node):
                    continue
                if not pattern.comments and is_comment(node.type):
                    continue
                node = self._root.descendant_for_byte_range(at, at + 1) or node
                if self._place_fits(pattern, node):
                    yield node, pattern.rule
                    break
            self._deadline.spend()

    def _n_bytes(self, text: str, n_characters: int) -> int:
        """How many bytes the first characters of a text are."""
        return n_characters if self._is_ascii else len(text[:n_characters].encode())

    def _queries(self, start: int, end: int) -> Iterator[tuple[Node, Rule]]:
        assert self._engine.raw is not None
        if (end - start) * _S_PER_BYTE > self._deadline.left:  # a query cannot be interrupted
            raise ScanTimeout
        cursor = self._cursor(self._engine.raw, start, end)
        matches = cursor.matches(self._root)
        _check_limit(cursor)
        self._deadline.check()
        for index, captures in matches:
            self._deadline.spend()
            pattern = self._engine.raw_owner[index]
            node = captures.get("hit", [None])[0] or next(iter(captures.values()))[0]
            fits = all(test(self._place_of(captures, key, pattern)) for key, test in pattern.where)
            if fits and self._place_fits(pattern, node):
                yield node, pattern.rule

    def _place_of(self, captures: dict[str, list[Node]], key: str, pattern: Pattern) -> Place:
        nodes = captures.get(key)
        return Place(nodes[0] if nodes else None, self._values, pattern.safe, captures)

    # Where a fact stands: what receives it, what is around it, what was written before it.

    def _place_fits(self, pattern: Pattern, node: Node) -> bool:
        if pattern.unused is not None and pattern.unused != _is_statement(node):
            return False
        if pattern.loop is not None and pattern.loop != self._in_loop(node):
            return False
        for place, expression in pattern.places:
            wanted = not place.startswith("not_")
            text = self._place(place.removeprefix("not_"), node)
            self._deadline.spend(len(text))
            if (expression.search(text) is not None) != wanted:
                return False
        return True

    def _place(self, place: str, node: Node) -> str:
        if place == "result":
            return self._result(node)
        if place == "statement":
            whole = _statement(node)
            end = min(whole.end_byte, whole.start_byte + LOOK_BACK)
            return self._data[whole.start_byte : end].decode("utf-8", "replace")
        if place == "inside":
            return self._heads(node)
        start = 0
        if place == "function" and (around := self._values.function(node.start_byte)):
            start = around.start_byte
        start = max(start, node.end_byte - LOOK_BACK)
        return self._data[start : node.end_byte].decode("utf-8", "replace")

    def _result(self, node: Node) -> str:
        """Names that the value goes to: variables, keywords, and the function around it."""
        names, at = [], node
        for _ in range(12):
            parent = at.parent
            if parent is None:
                break
            if parent.type in self._engine.grammar.sets:
                names += [name for name, _ in self._reader.targets(parent)]
            at = parent
            if at.type.endswith(("block", "_statement", "body")) and names:
                break
        around = self._values.function(node.start_byte)
        around = around and (around.child_by_field_name("definition") or around)
        name = (
            around.child_by_field_name("name") or around.child_by_field_name("declarator")
            if (around)
            else None
        )
        return " ".join([*names, text_of(name).partition("(")[0] if name else ""])

    def _heads(self, node: Node) -> str:
        """First lines of everything around a node, innermost first."""
        heads, at = [], node.parent
        for _ in range(_MOST_AROUND):
            above = at and at.parent
            if at is None or above is None:
                break
            line = self._data.find(b"\n", at.start_byte, at.end_byte)
            end = min(at.end_byte if line < 0 else line, at.start_byte + LOOK_BACK)
            heads.append(self._data[at.start_byte : end].decode("utf-8", "replace"))
            at = above
        return "\n".join(dict.fromkeys(heads))

    def _in_loop(self, node: Node) -> bool:
        at, grammar = node.parent, self._engine.grammar
        for _ in range(_MOST_AROUND):
            if at is None or at.type in grammar.functions:
                break
            if at.type in grammar.loops:
                return True
            at = at.parent
        return False


def _outermost(hits: list[Hit]) -> list[Hit]:
    """Hits without those of the same rule that lie within another on one line."""
    kept: list[Hit] = []
    ends: dict[str, tuple[int, int]] = {}
    for hit in hits:
        line, column = ends.get(hit.rule.id, (-1, 0))
        if hit.line != line or hit.column >= column:
            kept.append(hit)
            ends[hit.rule.id] = (hit.end_line, hit.end_column)
    return kept


def _check_limit(cursor: QueryCursor) -> None:
    """Raise `ScanTimeout` where a query was broken off: some texts take it quadratic time."""
    if cursor.did_exceed_match_limit:
        raise ScanTimeout("too much of it may match a rule")


def _argument(call: Call, key: str) -> Node | None:
    for one in key.split("|"):
        if one == "receiver":
            return call.receiver
        if one.lstrip("-").isdigit():
            at = int(one)
            if -len(call.positional) <= at < len(call.positional):
                return call.positional[at]
        elif one in call.keywords:
            return call.keywords[one]
    return None


def _in_string(node: Node) -> bool:
    at: Node | None = node
    for _ in range(4):
        if at is None:
            return False
        if at.type in STRINGS:
            return True
        at = at.parent
    return False


def _statement(node: Node) -> Node:
    at = node
    for _ in range(_MOST_AROUND):
        above = at.parent
        if (
            above is None
            or at.type.endswith(("_statement", "declaration", "definition", "_item"))
            or (above.type.endswith(_BLOCKS) and "argument" not in above.type)
        ):
            break
        at = above
    return at


def _is_statement(node: Node) -> bool:
    """Whether the value of an expression is thrown away."""
    parent = node.parent
    if parent is not None and parent.type in {"await_expression", "await"}:
        parent = parent.parent
    return parent is None or parent.type == "expression_statement" or parent.type.endswith(_BLOCKS)
