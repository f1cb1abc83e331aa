"""What a value is made of: constant, built from parts, or coming from outside; within one function.

This is the little taint analysis that tells an injection from a constant. It looks backwards only,
at what stands before the place of use, so that it says the same of a stream as of a whole file.
"""

import re
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from tree_sitter import Node

from puna.safety.shield.grammars import Grammar, words
from puna.safety.shield.index import MOST_FILLS, Definition, Index
from puna.safety.shield.names import Names, SeenNames
from puna.safety.shield.parameters import has_harmless_type, names_parameter
from puna.safety.shield.tree import STRINGS, SUBSCRIPTS, Call, Reader, children, pieces, text_of

_CONSTANTS = words(
    "integer float true false none number number_literal null nullptr decimal_integer_literal "
    "hex_integer_literal decimal_floating_point_literal null_literal integer_literal "
    "real_literal boolean_literal boolean float_literal int_literal rune_literal nil "
    "undefined regex bool_lit numeric_lit symbol simple_symbol hash_key_symbol regex_literal "
    "binary_integer_literal octal_integer_literal primitive_type class_literal "
    "sizeof_expression null_scalar boolean_scalar integer_scalar float_scalar "
    "imaginary_literal word type_identifier ellipsis lambda arrow_function "
    "function_expression func_literal lambda_expression lambda_literal closure_expression "
    "typeof_expression"
)
_NUMBERS = words(
    "integer float number number_literal decimal_integer_literal hex_integer_literal "
    "integer_literal real_literal float_literal int_literal decimal_floating_point_literal "
    "true false boolean boolean_literal"
)
_COMPARISONS = frozenset({"==", "!=", "<", ">", "<=", ">=", "===", "!==", "in", "is", "not in"})
_CONSTANT_NAME = re.compile(r"^[A-Z][A-Z0-9_]{2,}$")
_INLINE = re.compile(r"(?<!\{)\{([A-Za-z_]\w*)(?::[^{}]*)?\}")
_LOOKUPS = words("get getOrDefault fetch getValue getOrElse at dig GetValueOrDefault")
_COMPREHENSIONS = words("generator_expression list_comprehension set_comprehension")
_ROUTE = re.compile(r"\w+\.Map(?:Get|Post|Put|Delete|Patch)\(")
_STATIC = words("string String Path Paths MessageFormat")
"""Types whose static methods build strings."""
_MAPS = words("map flatMap array_map Select SelectMany")
"""Calls that give each item of a list to a function."""
_EMPTY_LIST = re.compile(
    r"\[\s*\]|(?:list|array)\(\s*\)"
    r"|new\s+(?:\w+\.)*(?:\w*List|\w*Set|Array|ArrayDeque)\s*(?:<[\w\s,?]*>)?\s*\(\s*\)"
)
_LONGEST_EMPTY = 80
_EMPTY_BUILDER = re.compile(r"new\s+(?:\w+\.)*String(?:Builder|Buffer)\(\s*\d*\s*\)")
_KNOWN_ONES = r"(?:_?[A-Z][A-Z0-9_]{2,}|(?:\w+(?:\.|->))?\w*(?i:allow|permit|column|field)\w*)"
_CHOOSES = re.compile(
    rf"\(?\s*(?:(?P<a>[$\w.]+)\s+in\s+{_KNOWN_ONES}"
    rf"|{_KNOWN_ONES}\.(?:includes|has|contains|Contains|ContainsKey|containsKey)\((?P<b>[$\w.]+)\)"
    r"|in_array\((?P<c>[$\w]+)\s*,[^()]*\))\s*\)?"
)
"""Conditions that let one name through if it is among known values."""
_READS = (
    r"(?:\b(?:if|while|and|not|len\(|count\(|empty\(|[jJ]oin\([^()]*|implode\([^()]*)|!)\s*\(?\s*{0}"
    r"(?!\s*[.,\[]\s*\w*(?:\(|\]))|{0}\.(?:length|size|Count|join|isEmpty|Any|toString|ToString|Length)\b"
)
"""Mentions of a list that only read it."""
_ARMS = words(
    "match_conditional_expression match_default_expression switch_expression_arm switch_rule"
)
_TYPED = words("python javascript typescript java c_sharp php")
"""Grammars where a parameter's type may say that it holds no text."""
_KOTLIN_NAME = re.compile(r"[A-Za-z_]\w*")
_MAX_DEPTH = 12
LOOK_BACK = 6000
"""Bytes before a place that conditions on what stands there read at most."""


@dataclass(slots=True)
class Value:
    """What a value is made of.

    ``const``: known from the text alone. ``clean``: changing, but harmless, as a number or what a
    sanitizer gave. ``built``: a string put together with a part that is neither. ``tainted``: holds
    something from outside the program. ``param``: holds a parameter of the function.
    """

    const: bool = False
    clean: bool = False
    built: bool = False
    tainted: bool = False
    param: bool = False
    text: str | None = None
    """The constant string, or a built one with ``{}`` for each part that is not constant."""

    @property
    def dynamic(self) -> bool:
        """Whether an attacker might have a say in it."""
        return not (self.const or self.clean)


_UNKNOWN = Value()
_NEVER: tuple[Value | None, int] = (None, 0)


@dataclass(frozen=True)
class Knowledge:
    """What a language's rule file says of its functions."""

    sources: Names = field(default_factory=Names)
    """Calls and variables that give what comes from outside."""
    clean: Names = field(default_factory=Names)
    """Calls whose result is harmless."""
    builders: Names = field(default_factory=Names)
    """Calls that make a string of their arguments."""


class Values:
    """Judges the expressions of one tree. Made anew for every tree; computes when asked."""

    def __init__(
        self,
        root: Node,
        reader: Reader,
        index: Index,
        knowledge: Knowledge,
        spend: Callable[[], None],
    ) -> None:
        """``spend`` is told of each expression that is judged, and may end all of it."""
        self._root, self._reader, self._index = root, reader, index
        self._grammar: Grammar = reader.grammar
        self._knowledge = knowledge
        self._spend = spend
        self._calls: dict[int, Call] = {}
        self._callees: dict[int, str] = {}
        self._busy: set[int] = set()
        self._known: dict[tuple[int, int], tuple[Value, int]] = {}
        self._is_cut = False
        """Whether something in the value judged now lay too deep to be looked at."""
        self._seen = SeenNames()

    def function(self, at: int) -> Node | None:
        """The innermost named function around a byte, with its decorators."""
        return self._index.function(at)

    @property
    def text(self) -> bytes:
        """All that is parsed."""
        return self._root.text or b""

    def call(self, node: Node) -> Call:
        """A call with its arguments; read once."""
        found = self._calls.get(node.id)
        if found is None:
            found = self._calls[node.id] = self._reader.call(node, self.callee(node))
        return found

    def callee(self, node: Node) -> str:
        """The full name of what a call calls; read once."""
        found = self._callees.get(node.id)
        if found is None:
            found = self._callees[node.id] = self._reader.callee(node)
        return found

    def before(self, node: Node) -> str:
        """The text of the function around a node, or of the file, from its start to the node."""
        around = self.function(node.start_byte)
        whole = around if around is not None else self._root
        text = (whole.text or b"")[: node.start_byte - whole.start_byte]
        return text[-LOOK_BACK:].decode("utf-8", "replace")

    def of(self, node: Node | None, safe: Names | None = None, depth: int = 0) -> Value:
        """What an expression is made of; ``safe`` names calls that are harmless for this rule."""
        if node is None or node.id in self._busy:
            return _UNKNOWN
        if depth > _MAX_DEPTH:
            self._is_cut = True
            return _UNKNOWN
        known, at = self._known.get((node.id, id(safe)), _NEVER)
        if known is None or at > depth:
            known, at = self._found(node, safe, depth)
        elif safe is None:
            self._seen.repeat(node.id)
        self._is_cut |= at > 0
        return known

    def _found(self, node: Node, safe: Names | None, depth: int) -> tuple[Value, int]:
        """A value, and the depth it was judged at where that matters, as not all was looked at."""
        outer, self._is_cut = self._is_cut, False
        if safe is None:
            self._spend()
            before = self._seen.begin()
            value = self._judge(node, None, depth)
            self._seen.end(node.id, before)
        else:
            value = self.of(node, None, depth)
            # Further harmless calls make nothing worse, and calls of other names nothing new.
            if value.dynamic and self._seen.may_hold(node.id, safe):
                self._spend()
                value = self._judge(node, safe, depth)
        found = self._known[node.id, id(safe)] = value, depth if self._is_cut else 0
        self._is_cut = outer
        return found

    def _is_clean(self, name: str, safe: Names | None) -> bool:
        """Whether what a call or variable of this name gives is harmless."""
        if safe is None:
            self._seen.note(name)
        elif safe.match(name):
            return True
        return self._knowledge.clean.match(name)

    def _judge(self, node: Node, safe: Names | None, depth: int) -> Value:
        kind = node.type
        if kind in STRINGS or kind in self._grammar.interpolated:
            return self._string(node, safe, depth)
        if kind in _CONSTANTS:
            return Value(const=True, clean=kind in _NUMBERS, text=None)
        if kind in self._grammar.concats:
            return self._binary(node, safe, depth)
        grammar = self._grammar
        if kind in grammar.calls or kind in grammar.methods or kind in grammar.news:
            return self._call(node, safe, depth)
        if kind in grammar.members or kind in SUBSCRIPTS:
            return self._member(node, safe, depth)
        inner = children(node)
        if not inner or kind == "variable_name":
            return self._variable(node, safe, depth)
        if kind in {"conditional_expression", "ternary_expression", "conditional"}:
            return self._choice(node, inner, safe, depth)
        if kind in {"match_expression", "switch_expression"} and grammar.package in _TYPED:
            inner = inner[1:]
        if kind in _ARMS:
            inner = inner[-1:]
        if kind in {"cast_expression", "type_cast_expression", "as_expression"}:
            return self._cast(node, safe, depth)
        if kind in {"keyed_element", "pair", "keyword_argument", "value_argument"}:
            inner = inner[-1:]
        if kind == "interpolation":  # C# names the braces and formats beside the expression
            inner = [part for part in inner if not part.type.startswith("interpolation_")]
        if kind in _COMPREHENSIONS and not (each := self.of(inner[0], safe, depth + 1)).dynamic:
            return each
        return self._all([self.of(part, safe, depth + 1) for part in inner])

    def _choice(self, node: Node, inner: list[Node], safe: Names | None, depth: int) -> Value:
        """One of two values; the first is harmless where the condition let it through."""
        condition = node.child_by_field_name("condition")  # Python's grammar names none
        if condition is None:
            condition, inner = inner[1] if len(inner) > 1 else node, [inner[0], *inner[2:]]
        else:
            inner = [part for part in inner if part != condition]
        values = [self.of(part, safe, depth + 1) for part in inner]
        chosen = _CHOOSES.fullmatch(text_of(condition))
        if chosen and text_of(inner[0]) == (chosen["a"] or chosen["b"] or chosen["c"]):
            values[0] = Value(clean=True)
        return self._all(values)

    @staticmethod
    def _all(parts: Iterable[Value]) -> Value:
        """A value that holds all of these."""
        n_parts, text = 0, None
        const, known = True, True
        built = tainted = param = False
        for part in parts:
            const = const and part.const
            known = known and (part.const or part.clean)
            built = built or part.built
            tainted = tainted or part.tainted
            param = param or part.param
            n_parts, text = n_parts + 1, part.text
        return Value(
            const, known and not const, built, tainted, param, text if n_parts == 1 else None
        )

    def _joined(self, parts: list[Value]) -> Value:
        """A string made of these."""
        whole = self._all(parts)
        whole.built = whole.built or not (whole.const or whole.clean)
        whole.text = "".join("{}" if v.text is None else v.text for v in parts)
        return whole

    def _string(self, node: Node, safe: Names | None, depth: int) -> Value:
        parts: list[Value] = []
        for text, part in pieces(node):
            if part is not None:
                parts.append(self.of(part, safe, depth + 1))
            elif parts and parts[-1].text == "$" and (found := _KOTLIN_NAME.match(text)):
                # Kotlin's grammar splits "$name rest" into "$" and "name rest".
                parts[-1] = self._named(found[0], node, safe, depth + 1)
                parts.append(Value(const=True, text=text[found.end() :]))
            else:
                parts.append(Value(const=True, text=text))
        if len(parts) == 1 and parts[0].const:
            return parts[0]
        return self._joined(parts) if parts else Value(const=True, text="")

    def _binary(self, node: Node, safe: Names | None, depth: int) -> Value:
        inner = children(node)
        operator = node.child_by_field_name("operator")
        sign = operator.type if operator else "+"
        if sign in _COMPARISONS:
            return Value(clean=True)
        if sign not in self._grammar.operators and node.type != "concatenation":
            return self._all([self.of(part, safe, depth + 1) for part in inner])
        parts = [self.of(part, safe, depth + 1) for part in inner]
        if all(part.clean for part in parts):
            return Value(const=all(part.const for part in parts), clean=True)
        if sign == "%" and parts[0].text is None:
            return self._all(parts)  # a remainder
        return self._joined(parts)

    def _call(self, node: Node, safe: Names | None, depth: int) -> Value:
        call = self.call(node)
        know, name = self._knowledge, call.name
        if know.sources.match(name) or know.sources.match(name + "()"):
            return Value(tainted=True)
        if self._is_clean(name, safe):
            return Value(clean=True)
        if name.rpartition(".")[2] in _MAPS and self._maps_to_harmless(call, safe, depth):
            return Value(clean=True)
        arguments = [self.of(a, safe, depth + 1) for a in call.positional]
        arguments += [self.of(a, safe, depth + 1) for a in call.keywords.values()]
        if call.receiver is not None:
            arguments.insert(0, self.of(call.receiver, safe, depth + 1))
        if (
            call.receiver is not None
            and name.rpartition(".")[2] in _LOOKUPS
            and _CONSTANT_NAME.match(self._reader.name(call.receiver).rpartition(".")[2])
        ):
            return Value(clean=True)  # one of the values of a fixed table
        builds = know.builders.match(name)
        if (
            builds and self._grammar.package == "rust"
        ):  # format!("{name}") names variables in its text
            inline = [n for v in arguments for n in _INLINE.findall(v.text or "")]
            arguments += [self._named(n, node, safe, depth + 1) for n in inline]
        if builds and call.receiver is not None and text_of(call.receiver) in _STATIC:
            arguments.pop(0)
        whole = self._all(arguments)
        if builds:
            text = next((v.text for v in arguments if v.text is not None), None)
            whole.built = whole.built or not (whole.const or whole.clean)
            whole.text = text
            return whole
        if node.type in self._grammar.news and arguments and not whole.dynamic:
            return Value(clean=True, text=arguments[0].text)  # made of what is known
        if call.receiver is None or not arguments[0].const:
            whole.const = whole.clean = False
        if not arguments:
            return Value()
        if len(arguments) > 1 or call.receiver is None:
            whole.text = arguments[0].text if whole.const else None
        return whole

    def _maps_to_harmless(self, call: Call, safe: Names | None, depth: int) -> bool:
        """Whether a function given to a call makes each item harmless."""
        for given in call.positional[:1]:
            if given.type in self._grammar.lambdas:
                body = given.child_by_field_name("body")
                if body is not None and "block" not in body.type and "statement" not in body.type:
                    return not self.of(body, safe, depth + 1).dynamic
            name = self._reader.name(given).replace("::", ".")
            if self._is_clean(name, safe):
                return True
        return False

    def _cast(self, node: Node, safe: Names | None, depth: int) -> Value:
        kind = node.child_by_field_name("type")
        words = text_of(kind) if kind else ""
        value = node.child_by_field_name("value") or children(node)[-1]
        if re.search(r"\b(int|float|double|long|bool|boolean|u?size|integer)\b", words) and (
            "*" not in words
        ):
            return Value(clean=True)
        return self.of(value, safe, depth + 1)

    def _member(self, node: Node, safe: Names | None, depth: int) -> Value:
        name = self._reader.name(node)
        if self._knowledge.sources.match(name):
            return Value(tainted=True)
        if self._is_clean(name, safe):
            return Value(clean=True)
        last = name.rpartition(".")[2]
        if _CONSTANT_NAME.match(last):
            return Value(const=True)
        if self._index.is_defined(name):
            return self._variable(node, safe, depth)
        inner = children(node)
        base = self.of(inner[0], safe, depth + 1) if inner else _UNKNOWN
        if base.const and base.text is None and "[]" not in name:
            return _UNKNOWN
        return Value(base.const, base.clean, False, base.tainted, base.param)

    def _variable(self, node: Node, safe: Names | None, depth: int) -> Value:
        return self._named(self._reader.name(node), node, safe, depth)

    def _named(self, name: str, node: Node, safe: Names | None, depth: int) -> Value:
        """What a variable holds at the place of ``node``."""
        if self._knowledge.sources.match(name):
            return Value(tainted=True)
        at = node.start_byte
        function = self.function(at)
        before = self._index.before(name, at)
        opening = at if function is None else function.start_byte
        inside = [found for found in before if found.start >= opening]
        known = inside or before
        is_param = function is not None and not inside and names_parameter(function, name)
        owner = function if is_param else None
        if owner is None:
            if (each := self._item(name, node)) is not None:
                return self.of(each, safe, depth + 1)
            if not known and self._grammar.package == "c_sharp":
                owner = self._of_route(name, node)
        if owner is not None:
            harmless = self._grammar.package in _TYPED and has_harmless_type(owner, name)
            return Value(clean=True) if harmless else Value(param=True)
        if not known:
            return Value(const=bool(_CONSTANT_NAME.match(name)))
        self._busy.add(node.id)
        try:
            values = [self.of(self._index.value(one), safe, depth + 1) for one in known[-4:]]
            held = self._held(name, known, at, safe, depth)
        finally:
            self._busy.discard(node.id)
        if held is not None:
            return held
        if any(one.is_added for one in known):
            return self._joined(values)
        whole = self._all(values)
        # A default does not say how what comes from outside looks.
        outside = [one for one in values if one.tainted or one.param]
        whole.text = (outside or values)[-1].text
        if not whole.dynamic and self._lambda(name, node, _MAX_DEPTH) is not None:
            return Value()
        return whole

    @staticmethod
    def _item(name: str, node: Node) -> Node | None:
        """What a comprehension around a place takes this name from; it stands after the place."""
        at = node.parent
        for _ in range(_MAX_DEPTH):
            if at is None or at.type.endswith(("block", "_statement", "_definition")):
                break
            for clause in at.named_children if at.type in _COMPREHENSIONS else ():
                left = clause.child_by_field_name("left")
                if clause.type == "for_in_clause" and left and text_of(left) == name:
                    return clause.child_by_field_name("right")
            at = at.parent
        return None

    def _held(
        self, name: str, known: list[Definition], at: int, safe: Names | None, depth: int
    ) -> Value | None:
        """What was put into a list or string builder that began empty; None for other values.

        It is harmless only where nothing else can have been put in.
        """
        last = known[-1]
        if last.value_end - last.value_start > _LONGEST_EMPTY:
            return None
        data = self.text
        text = data[last.value_start : last.value_end].decode("utf-8", "replace")
        is_list = _EMPTY_LIST.fullmatch(text) is not None
        if not is_list and not _EMPTY_BUILDER.fullmatch(text):
            return None
        fills = self._index.fills(name, last.value_end, at)
        values = [self.of(self._index.value(one), safe, depth + 1) for one in fills]
        if not values:
            return None
        if not is_list:
            whole = self._joined(values)
        else:
            whole = self._all(values)
            whole.built, whole.text = False, None
        if whole.dynamic:
            return whole
        between = data[last.value_end : at].decode("utf-8", "replace")
        named = rf"(?<![\w$.]){re.escape(name)}(?!\w)"
        mentions = len(re.findall(named, between)) - len(re.findall(_READS.format(named), between))
        is_complete = len(known) == 1 and len(fills) < MOST_FILLS
        return whole if is_complete and mentions <= len({one.start for one in fills}) else Value()

    def _lambda(self, name: str, node: Node, levels: int) -> Node | None:
        """The function around a place, without a name of its own, that has this parameter."""
        at = node.parent
        while levels > 0 and at is not None and at.type not in self._grammar.functions:
            if at.type in self._grammar.lambdas and names_parameter(at, name):
                return at
            at, levels = at.parent, levels - 1
        return None

    def _of_route(self, name: str, node: Node) -> Node | None:
        """The function around a place that answers requests and has this parameter, if any.

        Other functions that are handed to a call are left out: ``items.Select(x => ...)``.
        """
        found = self._lambda(name, node, sys.maxsize)
        call = found and found.parent and found.parent.parent and found.parent.parent.parent
        return found if call is not None and _ROUTE.match(text_of(call)[:80]) else None
