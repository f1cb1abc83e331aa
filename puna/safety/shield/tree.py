"""Names, arguments and constants in a syntax tree, the same for every language."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from tree_sitter import Node

from puna.safety.shield.grammars import ALL, FIRST, Grammar, words

SUBSCRIPTS = words(
    "subscript subscript_expression array_access element_access_expression index_expression "
    "indexing_expression element_reference"
)
_WRAPPERS = words(
    "parenthesized_expression await_expression await reference_expression non_null_expression "
    "as_expression pointer_declarator array_declarator reference_declarator expression_list "
    "try_expression pointer_expression literal_element argument value_argument expression "
    "literal_value variable_expr flow_node plain_scalar command_name pattern "
    "variable_declaration directly_assignable_expression navigation_suffix "
    "member_binding_expression unary_expression type_descriptor function_declarator "
    "mut_pattern ref_pattern block_node field_designator template_expr quoted_template "
    "collection_value as_pattern_target yield return_statement satisfies_expression "
    "checked_expression not_null_expression paren_declarator type value_argument_label "
    "list_splat dictionary_splat spread_element variadic_argument"
)
_GENERICS = words(
    "generic_function template_function generic_name generic_type template_type user_type "
    "parameterized_type array_type"
)
_NAMESPACES = words("qualified_identifier scoped_identifier")
_CASTS = words("cast_expression type_cast_expression as_expression type_assertion")
STRINGS = words(
    "string string_literal concatenated_string template_string interpreted_string_literal "
    "raw_string_literal raw_string line_string_literal multi_line_string_literal "
    "encapsed_string heredoc nowdoc verbatim_string_literal interpolated_string_expression "
    "text_block string_lit multiline_string_literal double_quote_scalar single_quote_scalar "
    "string_scalar block_scalar AttValue heredoc_body chained_string quoted_template "
    "char_literal character_literal subshell shell_command_expression unquoted_string "
    "double_quoted_string literal ansi_c_string raw_str_interpolation"
)
_CONTENT = words(
    "string_content string_fragment string_literal_content line_str_text escape_sequence "
    "interpreted_string_literal_content raw_string_literal_content raw_string_content "
    "template_literal multi_line_str_text multiline_string_fragment heredoc_content "
    "nowdoc_string str_escaped_char character escape_interpolation"
)
_QUOTES = words(
    "string_start string_end interpolation_start heredoc_start heredoc_end "
    "quoted_template_start quoted_template_end raw_string_delimiter interpolation_quote "
    "string_literal_encoding"
)
_COMMENTS = words("comment line_comment block_comment multiline_comment Comment")
_MAX_NAME = 200
_WORD = re.compile(r"(?<=['\"`])[\w.-]+(?=['\"`])")
_PREFIX_QUOTE = re.compile(r"^[a-zA-Z@$#]*(\"\"\"|'''|[\"'`])|(\"\"\"|'''|[\"'`])#*$")


def text_of(node: Node) -> str:
    """The source of a node."""
    return (node.text or b"").decode("utf-8", "replace")


def is_comment(kind: str) -> bool:
    """Whether nodes of this type are comments."""
    return kind in _COMMENTS


def children(node: Node) -> list[Node]:
    """Named children without comments."""
    return [child for child in node.named_children if child.type not in _COMMENTS]


def pieces(node: Node) -> Iterator[tuple[str, Node | None]]:
    """The parts of a string: constant text, or an expression with the text ``{}``."""
    parts = node.named_children
    if node.type in {"concatenated_string", "chained_string"}:
        for part in parts:
            yield from pieces(part)
        return
    if not any(part.type not in _QUOTES for part in parts):
        yield _PREFIX_QUOTE.sub("", text_of(node)), None
        return
    for part in parts:
        if part.type in _CONTENT:
            yield text_of(part), None
        elif part.type not in _QUOTES and part.type not in _COMMENTS:
            yield "{}", part


@dataclass(slots=True)
class Call:
    """A call: its full name, its receiver, its arguments by position and by keyword."""

    node: Node
    name: str
    receiver: Node | None = None
    positional: list[Node] = field(default_factory=list)
    keywords: dict[str, Node] = field(default_factory=dict)


class Reader:
    """Reads the trees of one grammar."""

    def __init__(self, grammar: Grammar) -> None:
        self.grammar = grammar
        self.aliases: dict[str, str] = {}
        """What imports gave to local names."""

    def part(self, node: Node, where: str) -> Node | None:
        """A part of a node, as a table of the grammar says where."""
        if where[0] != "#":
            return node.child_by_field_name(where)
        inner = children(node)
        if where == "#var":
            return next((c for c in inner if c.type == "variable_declaration"), None)
        if where in {"#tag", "#body"}:
            return _element(node, where)
        if not inner or where == ALL:
            return None
        return inner[0] if where == FIRST else inner[-1]

    def name(self, node: Node | None) -> str:
        """Dotted name of an expression: ``a.b().c[]``; ``?`` stands for what has none."""
        name = self._name(node, 0)
        if self.grammar.implied:
            name = name.removeprefix(self.grammar.implied)
        head, dot, rest = name.partition(".")
        full = self.aliases.get(head)
        if full is None and head.endswith("()"):
            full = self.aliases.get(head[:-2])
            full = full and full + "()"
        return name if full is None else full + dot + rest

    def _name(self, node: Node | None, depth: int) -> str:
        if node is None or depth > 24:
            return "?"
        kind, grammar = node.type, self.grammar
        if kind == "identifier":
            return text_of(node) if node.end_byte - node.start_byte <= _MAX_NAME else "?"
        if member := grammar.members.get(kind):
            left, own = self.part(node, member[0]), self.part(node, member[1])
            after = self._name(own, depth + 1)
            return after if left is None else f"{self._name(left, depth + 1)}.{after}"
        if kind in grammar.calls or kind in grammar.methods or kind in grammar.news:
            return self._callee(node, depth + 1) + "()"
        if kind in SUBSCRIPTS:
            return self._name(self.part(node, FIRST), depth + 1) + "[]"
        if kind in _CASTS or kind in _WRAPPERS:
            return self._name(self.inner(node), depth + 1)
        if kind in _GENERICS:
            return self._name(self.part(node, FIRST), depth + 1)
        if kind in STRINGS or kind == "hash_key_symbol":
            return _PREFIX_QUOTE.sub("", text_of(node)) if len(node.text or b"") < 80 else "?"
        if node.named_child_count > 1 or node.end_byte - node.start_byte > _MAX_NAME:
            return "?"
        return text_of(node).lstrip("\\:")

    def inner(self, node: Node) -> Node | None:
        """What a wrapper or a cast holds."""
        for where in ("value", "declarator", "operand", "argument", "expression"):
            if found := node.child_by_field_name(where):
                return found
        parts = children(node)
        if not parts:
            return None
        return parts[0] if node.type in {"as_expression", "array_declarator"} else parts[-1]

    def _callee(self, node: Node, depth: int) -> str:
        grammar, kind = self.grammar, node.type
        if method := grammar.methods.get(kind):
            receiver = self.part(node, method[0])
            own = self._name(self.part(node, method[1]), depth)
            return own if receiver is None else f"{self._name(receiver, depth)}.{own}"
        if new := grammar.news.get(kind):
            return "new " + self._name(self.part(node, new[0]), depth).rpartition(".")[2]
        where = grammar.calls[kind][0]
        return where[1:] if where[0] == "=" else self._name(self.part(node, where), depth)

    def callee(self, node: Node) -> str:
        """Full name of what a call calls, without its arguments."""
        name = self._callee(node, 0)
        if len(name) > _MAX_NAME:
            return "?"
        if self.grammar.implied:
            name = name.removeprefix(self.grammar.implied)
        head, dot, rest = name.partition(".")
        full = self.aliases.get(head)
        return name if full is None else full + dot + rest

    def last(self, node: Node) -> str:
        """The last segment of a callee's name, found without reading the rest of it."""
        grammar, kind = self.grammar, node.type
        if method := grammar.methods.get(kind):
            found = self.part(node, method[1])
        elif new := grammar.news.get(kind):
            return "new " + self._name(self.part(node, new[0]), 0).rpartition(".")[2]
        else:
            where = grammar.calls[kind][0]
            if where[0] == "=":
                return where[1:]
            found = self.part(node, where)
        alone = not grammar.methods.get(kind)
        for _ in range(6):
            if found is None:
                return "?"
            if member := grammar.members.get(found.type):
                found, alone = self.part(found, member[1]), False
            elif found.type in _WRAPPERS:
                found = self.inner(found)
            elif found.type in _GENERICS:
                found = self.part(found, FIRST)
            else:
                break
        name = (
            text_of(found).lstrip("\\:")
            if found and found.end_byte - found.start_byte < 80
            else "?"
        )
        if alone and (full := self.aliases.get(name)):
            return full.rpartition(".")[2]
        return name

    def call(self, node: Node, name: str | None = None) -> Call:
        """A call with its arguments; ``name`` is that of its callee, where it is known."""
        grammar, kind = self.grammar, node.type
        call = Call(node, self.callee(node) if name is None else name)
        if method := grammar.methods.get(kind):
            call.receiver, where = self.part(node, method[0]), method[2]
        elif new := grammar.news.get(kind):
            where = new[1]
        else:
            called, where = grammar.calls[kind]
            function = None if called[0] == "=" else self.part(node, called)
            if (
                function is not None
                and function.type not in _NAMESPACES
                and (member := grammar.members.get(function.type))
            ):
                call.receiver = self.part(function, member[0])
        for argument in self._arguments(node, where):
            self._add(call, argument)
        return call

    def _arguments(self, node: Node, where: str) -> list[Node]:
        if where == "#arguments":
            return node.children_by_field_name("argument")
        if where == ALL:
            return children(node)
        holder = self.part(node, where)
        if holder is None or (holder == node.named_child(0) and holder.type != "arguments"):
            return []
        if holder.type == "call_suffix":
            return [a for part in children(holder) for a in _unfold(part)]
        return _unfold(holder)

    def _add(self, call: Call, argument: Node) -> None:
        kind = argument.type
        if kind in {"keyword_argument", "pair"}:
            key = argument.child_by_field_name("name") or argument.child_by_field_name("key")
            value = argument.child_by_field_name("value")
            if value is not None:
                call.keywords[self._name(key, 0).rstrip(":")] = value
            return
        if kind == "keyed_element":
            parts = children(argument)
            call.keywords[self._name(parts[0], 0)] = parts[-1]
            return
        if kind in {"argument", "value_argument"}:
            parts = children(argument)
            name = argument.child_by_field_name("name")
            if not parts:
                return
            if name is None and kind == "value_argument" and len(parts) == 2:
                name = parts[0]
            if name is not None and len(parts) > 1:
                call.keywords[self._name(name, 0)] = parts[-1]
                return
            argument = parts[-1]
        call.positional.append(argument)
        if argument.type == "object":  # options of JavaScript
            for pair in argument.named_children:
                self._option(call, pair)

    def _option(self, call: Call, pair: Node) -> None:
        if pair.type == "pair" and (value := pair.child_by_field_name("value")):
            call.keywords.setdefault(self._name(pair.child_by_field_name("key"), 0), value)

    def targets(self, node: Node) -> list[tuple[str, Node]]:
        """The names that an assignment or a pair gives a value to, with the values."""
        target_at, value_at = self.grammar.sets[node.type]
        target, value = self.part(node, target_at), self.part(node, value_at)
        if target is None or value is None or target == value:
            return []
        names = children(target) if target.type.endswith(("_list", "_pattern")) else [target]
        values = children(value) if value.type == "expression_list" else [value]
        if len(names) == 1:
            return [(self._target(names[0]), values[0] if len(values) == 1 else value)]
        if len(values) == len(names):
            return [(self._target(n), v) for n, v in zip(names, values, strict=True)]
        return [(self._target(name), value) for name in names]

    def _target(self, node: Node) -> str:
        """Name of what gets a value; an entry is named by its key: ``config["debug"]``."""
        if node.type in {"object_assignment_pattern", "pair_pattern"}:  # { a = 1, b: c } = ...
            node = children(node)[node.type == "pair_pattern"]
        if node.type in SUBSCRIPTS and len(parts := children(node)) == 2:
            key = parts[1]
            if key.type in STRINGS or key.named_child_count == 1:
                word = _WORD.search(text_of(key))
                return f"{self._name(parts[0], 0)}.{word[0]}" if word else "?"
        return self._name(node, 0)


def _unfold(holder: Node) -> list[Node]:
    if holder.type in {
        "argument_list",
        "arguments",
        "value_arguments",
        "token_tree",
        "literal_value",
    }:
        return children(holder)
    return [holder]


def _element(node: Node, where: str) -> Node | None:
    """Tag name or text of an XML element that holds text alone."""
    parts = node.named_children
    if len(parts) != 3 or parts[1].type != "content":
        return None
    if where == "#tag":
        return parts[0].named_child(0)
    inner = parts[1].named_children
    return inner[0] if len(inner) == 1 and inner[0].type == "CharData" else None
