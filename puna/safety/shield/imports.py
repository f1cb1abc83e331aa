"""What imports call things: local names and the full names behind them."""

import re
from collections.abc import Iterator

from tree_sitter import Node

from puna.safety.shield.tree import children, text_of

_WORD = re.compile(r"[\w$]+")
_MOST_NESTED = 8
"""Braces within one another in an import of Rust."""


def aliases_of(language: str, node: Node) -> Iterator[tuple[str, str]]:
    """Local name and full dotted name for each thing that one import brings in."""
    if language == "python":
        yield from _python(node)
    elif language in {"javascript", "typescript", "tsx"}:
        yield from _import(node) if node.type == "import_statement" else _require(node)
    elif language == "rust":
        yield from _rust(text_of(node).removeprefix("use").strip().rstrip(";"), "")
    elif language == "go":
        yield from _go(node)
    elif language == "kotlin":
        parts = children(node)
        if len(parts) == 2:
            yield text_of(parts[1]), text_of(parts[0])


def _python(node: Node) -> Iterator[tuple[str, str]]:
    module = node.child_by_field_name("module_name")
    prefix = text_of(module) + "." if module else ""
    for name in node.children_by_field_name("name"):
        if name.type == "aliased_import":
            full, alias = name.child_by_field_name("name"), name.child_by_field_name("alias")
            if full and alias:
                yield text_of(alias), prefix + text_of(full)
        elif prefix:
            yield text_of(name), prefix + text_of(name)


def _module(text: str) -> str:
    return text.strip("\"'`").removeprefix("node:").replace("/", ".")


def _import(node: Node) -> Iterator[tuple[str, str]]:
    source = node.child_by_field_name("source")
    clause = next((c for c in node.named_children if c.type == "import_clause"), None)
    if source is None or clause is None:
        return
    module = _module(text_of(source))
    for part in clause.named_children:
        if part.type == "identifier":
            yield text_of(part), module
        elif part.type == "namespace_import":
            yield text_of(part).rpartition(" ")[2], module
        elif part.type == "named_imports":
            for one in part.named_children:
                words = _WORD.findall(text_of(one))
                if words:
                    yield words[-1], f"{module}.{words[0]}"


_REQUIRE = re.compile(
    r"^(?:await\s+)?(?:require|import)\(\s*(['\"`][^'\"`]+['\"`])\s*\)((?:\.\w+)*)$"
)


def _require(node: Node) -> Iterator[tuple[str, str]]:
    value, name = node.child_by_field_name("value"), node.child_by_field_name("name")
    if value is None or name is None or value.end_byte - value.start_byte > 120:
        return
    if value.type not in {"call_expression", "member_expression", "await_expression"}:
        return
    if not (found := _REQUIRE.match(text_of(value))):
        return
    module = _module(found[1]) + found[2].removesuffix(".promises")
    if name.type == "identifier":
        yield text_of(name), module
    elif name.type == "object_pattern":
        for one in name.named_children:
            words = _WORD.findall(text_of(one))
            if words:
                yield words[-1], f"{module}.{words[0]}"


def _rust(path: str, prefix: str, depth: int = 0) -> Iterator[tuple[str, str]]:
    head, brace, rest = path.partition("{")
    if depth > _MOST_NESTED:
        return
    if brace:
        inside = rest[: rest.rfind("}")]
        start = depth = 0
        for at, sign in enumerate(inside + ","):
            depth += (sign == "{") - (sign == "}")
            if sign == "," and depth == 0:
                yield from _rust(inside[start:at].strip(), prefix + head.strip(), depth + 1)
                start = at + 1
        return
    full, _, alias = path.partition(" as ")
    name = (prefix + full.strip()).replace("::", ".")
    last = name.rpartition(".")[2]
    if last == "self":
        name = name.removesuffix(".self")
        last = name.rpartition(".")[2]
    if last and last != "*":
        yield alias.strip() or last, name


def _go(node: Node) -> Iterator[tuple[str, str]]:
    path, name = node.child_by_field_name("path"), node.child_by_field_name("name")
    if path is not None:
        full = text_of(path).strip('"`').replace("/", ".")
        yield text_of(name) if name else full.rpartition(".")[2], full
