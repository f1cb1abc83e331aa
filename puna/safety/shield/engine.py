"""What all scans of one language share: its grammar, its rules, their queries."""

import re
from bisect import bisect_right
from collections.abc import Iterable, Mapping
from functools import cache
from itertools import accumulate

from tree_sitter import Language, Parser, Query

from puna.safety.shield import grammars, rules
from puna.safety.shield.grammars import words
from puna.safety.shield.rules import RuleSet

_SLASHES = words("c js java csharp go kotlin swift rust")
_PAGE = re.compile(r"</\w+>|<\w+ [^<>]*>")
_PHP = re.compile(r"\$\w|->|::")
_DOCSTRING_END = re.compile(r"^[ \t]*(\"\"\"|''')[ \t]*(?:$|[%.)])", re.M)


class Engine:
    """The rules of one language with its grammar; shared by all scans, holds no text."""

    def __init__(self, language: str) -> None:
        self.language = language
        self.grammar = grammars.GRAMMARS[language]
        self.rules: RuleSet = rules.load(language)
        self.parser_language = grammars.load(language)
        self.facts = _query(self.parser_language, _facts_query(language))
        texts = [pattern.query for pattern in self.rules.queries]
        self.raw = _query(self.parser_language, "\n".join(texts))
        starts = list(accumulate((len(text.encode()) + 1 for text in texts), initial=0))
        n_patterns = self.raw.pattern_count if self.raw else 0
        places = [self.raw.start_byte_for_pattern(n) for n in range(n_patterns)] if self.raw else []
        self.raw_owner = [self.rules.queries[bisect_right(starts, at) - 1] for at in places]
        """The rule's pattern that each pattern of the joined queries belongs to."""

    def opening(self, code: str) -> bytes:
        """What has to stand before a piece of code so that it parses.

        PHP is text until it is opened; a piece may begin within a comment or a docstring.
        """
        if self.language == "php":
            return b"<?php " if _is_inside_php(code) else b""
        if self.language == "python":
            return _docstring_begun(code)
        end, begin = code.find("*/"), code.find("/*")
        within = end >= 0 and (begin < 0 or end < begin)
        return b"/*" if within and self.grammar.brackets in _SLASHES else b""

    def parser(self) -> Parser:
        """A new parser of this language."""
        return Parser(self.parser_language)


def _is_inside_php(code: str) -> bool:
    """Whether code begins within PHP and not in the page around it."""
    opened, closed = code.find("<?"), code.find("?>")
    if code.lstrip().startswith("<") or 0 <= opened < (closed if closed >= 0 else len(code)):
        return False
    return closed >= 0 or not _PAGE.search(code) or bool(_PHP.search(code))


def _docstring_begun(code: str) -> bytes:
    """The quotes of a docstring that the code begins in, judged by how it ends."""
    found = _DOCSTRING_END.search(code)
    if found is None:
        return b""
    before = code[: found.start()]
    if found[1] in before or not before.strip() or before.rstrip()[-1] in ":([{,=\\":
        return b""
    return found[1].encode()


def _query(language: Language, text: str) -> Query | None:
    """A query, None of nothing: even an empty one takes 27 MB with the grammar of SQL."""
    return Query(language, text) if text.strip() else None


@cache
def engine(language: str) -> Engine:
    """The engine of a language, made at its first use."""
    return Engine(language)


def _query_of(language: str, kinds: Mapping[str, Iterable[str]]) -> str:
    """A query that captures these types of node; some grammars of a family lack one."""
    own = grammars.load(language)
    return "\n".join(
        f"({kind}) @{capture}"
        for capture, names in kinds.items()
        for kind in sorted(set(names))
        if own.id_for_node_kind(kind, True) is not None
    )


def _facts_query(language: str) -> str:
    grammar = grammars.GRAMMARS[language]
    kinds = {
        "call": [*grammar.calls, *grammar.methods, *grammar.news],
        "set": grammar.sets,
        "function": grammar.functions,
        "import": grammar.imports,
        "built": grammar.interpolated | grammar.concats,
    }
    return _query_of(language, kinds)
