"""Where a logical line ends: at a place where brackets balance and a statement is complete.

Code that streams is held until then, so that a call is judged whole. A block's brace does not hold
its contents back; the brace of a dictionary, of options or of a structure's fields does.
"""

import re
from collections import Counter
from dataclasses import dataclass, field
from functools import cached_property

_STRING = r'"(?:[^"\\\n]|\\.)*"'
_CHARS = r"'(?:[^'\\\n]|\\.)*'"
_ESCAPING = {_STRING: '"', _CHARS: "'"}
"""Strings with escapes, and their quotes."""
_BRACKETS = r"(?P<open>[(\[{])|(?P<close>[)\]}])|(?P<sign>[^\s\w])|(?P<word>[\w$]+)"


@dataclass(frozen=True)
class Style:
    """How one family of languages writes strings, comments and the end of a statement."""

    strings: tuple[str, ...]
    """Expressions of strings that end on their line."""
    note: str
    """Of a comment to the line's end."""
    ends: dict[str, str] = field(default_factory=dict)
    """What closes a string or comment that may go on over lines, by how it starts."""
    semicolons: bool = False
    """Statements end with ``;`` and not with the line."""
    braces: bool = True
    """Whether ``{`` may open a block."""

    @cached_property
    def tokens(self) -> re.Pattern[str]:
        """Groups: skip (a string that ends), note, long (the start of what may go on over lines),
        open, close, sign, word."""
        return self._tokens("")

    @cached_property
    def _without(self) -> dict[str, re.Pattern[str]]:
        return {}

    def without(self, quotes: str) -> re.Pattern[str]:
        """The tokens where strings with these quotes do not end on the line any more."""
        if quotes not in self._without:
            self._without[quotes] = self._tokens(quotes)
        return self._without[quotes]

    def _tokens(self, unended: str) -> re.Pattern[str]:
        longs = "|".join(re.escape(start) for start in sorted(self.ends, key=len, reverse=True))
        strings = [one for one in self.strings if _ESCAPING.get(one, "-") not in unended]
        parts = [f"(?P<long>{longs})"] if longs else []
        parts += [f"(?P<note>{self.note})"] if self.note else []
        parts += [f"(?P<skip>{'|'.join(strings)})"] if strings else []  # an empty one never ends
        return re.compile("|".join([*parts, _BRACKETS]))


def _style(
    strings: list[str], note: str, ends: dict[str, str], *, semicolons: bool = False,
    braces: bool = True,
) -> Style:  # fmt: skip
    return Style(tuple(strings), note, ends, semicolons, braces)


_C = [_STRING, _CHARS]
_SLASHES = r"//.*"
_BLOCK = {"/*": "*/"}
_CLASS = r"\[(?:[^\]\\\n]|\\.){0,60}+\]"
_REGEX = rf"(?<=[(,=:\[!&|?{{}};])\s*/(?![/*])(?:[^/\\\n\[]|\\.|{_CLASS}){{1,120}}+/"
"""Of JavaScript; longer ones are read as if they were none, so that no line takes long."""
_STYLES = {
    "python": _style(_C, r"#.*", {'"""': '"""', "'''": "'''"}, braces=False),
    "c": _style([r'R"\w*\(', *_C], _SLASHES, _BLOCK | {'R"(': ')"'}, semicolons=True),
    "java": _style(_C, _SLASHES, _BLOCK | {'"""': '"""'}, semicolons=True),
    "csharp": _style(_C, _SLASHES, _BLOCK | {'"""': '"""', '@"': '"'}, semicolons=True),
    "rust": _style(
        [_STRING, r"'(?:[^'\\\n]|\\[^\n']+|\\')'", r"'\w+"],
        _SLASHES,
        _BLOCK | {'r#"': '"#', 'r"': '"', 'r##"': '"##'},
        semicolons=True,
    ),
    "js": _style([*_C, _REGEX], _SLASHES, _BLOCK | {"`": "`"}),
    "go": _style(_C, _SLASHES, _BLOCK | {"`": "`"}),
    "kotlin": _style(_C, _SLASHES, _BLOCK | {'"""': '"""'}),
    "swift": _style(_C, _SLASHES, _BLOCK | {'"""': '"""'}),
    "php": _style([], r"//.*|#(?!\[).*", _BLOCK | {'"': '"', "'": "'"}, semicolons=True),
    "ruby": _style([*_C, r"`[^`\n]*`"], r"#.*", {}),
    "bash": _style([r"\\.", r"\$#", r"\w#"], r"#.*", {'"': '"', "'": "'", "`": "`"}),
    "sql": _style([r"'[^']*'", r'"[^"]*"'], r"--.*|#.*", _BLOCK, semicolons=True),
    "lines": _style(_C, r"#.*", {}),
    "xml": _style([r'"[^"]*"'], "", {"<!--": "-->", "<![CDATA[": "]]>"}, braces=False),
}
_HEREDOC = re.compile(r"<<[-~<]?\s*(['\"]?)([A-Za-z_]\w*)\1\s*[;,).]*")
_OPENS_BLOCK = re.compile(
    r"^\s*(?:\}\s*)?(?:@|#|export\b|default\b|async\b|public\b|private\b|protected\b|internal\b|"
    r"static\b|pub\b|unsafe\b|impl\b|func\b|fun\b|fn\b|function\b|class\b|struct\b|enum\b|union\b|"
    r"interface\b|trait\b|namespace\b|module\b|mod\b|extension\b|object\b|if\b|else\b|for\b|"
    r"foreach\b|while\b|do\b|try\b|catch\b|finally\b|switch\b|match\b|when\b|loop\b|select\b|"
    r"go\b|defer\b|guard\b|using\b|lock\b|with\b|synchronized\b|type\b|abstract\b|final\b|"
    r"override\b|extern\b|macro_rules\b|resource\b|data\b|variable\b|provider\b|begin\b)"
)
_AFTER_VALUE = frozenset("=,:([?|&+") | {"return", "new", "in"}
_CONTINUES = frozenset("+-*/%=,.&|?<^~!\\") | {"and", "or", "not", "in", "is", "as", "->"}
_COMMENT_ENDS = frozenset({"*/", "-->", "]]>"})
_CLOSERS = {"(": ")", "[": "]", "{": "}"}
_QUOTES = frozenset(_ESCAPING.values())
_HEAD = 256
"""Characters of a statement that tell what a brace in it opens."""


class LogicalLines:
    """Follows code line by line and says where a logical line is complete."""

    def __init__(self, style: str) -> None:
        self._style = _STYLES.get(style, _STYLES["lines"])
        self._name = style
        self._stack: list[tuple[str, bool]] = []
        """Open brackets, outermost first, and whether each is a block's."""
        self._open: Counter[str] = Counter()
        """How many of each are open."""
        self.deepest = 0
        """Most brackets that were open at once."""
        self._until = ""
        """What ends the string or comment that goes on over lines."""
        self._here: list[str] = []
        """Words that end here-documents to come."""
        self._statement = ""
        """The current statement so far, as far as it tells what a brace opens."""

    @property
    def closers(self) -> str:
        """What would close everything that is open."""
        lines = "".join(f"\n{word}\n" for word in self._here)
        return self._until + lines + "".join(_CLOSERS[sign] for sign, _ in reversed(self._stack))

    def feed(self, line: str) -> bool:
        """Take one line, with or without its end; whether a logical line ends with it."""
        body = line.rstrip("\r\n")
        if self._here:
            if body.strip() == self._here[0]:
                self._here.pop(0)
            return not self._here and not self._until
        last = self._read(body)
        if self._until or self._here or self._within_brackets():
            return False
        complete = self._complete(body, last)
        if complete:
            self._statement = ""
        return complete

    def _within_brackets(self) -> bool:
        """Whether the innermost bracket is no block's."""
        return bool(self._stack) and not self._stack[-1][1]

    def _complete(self, body: str, last: str) -> bool:
        if not body.strip() or not last:
            return not self._statement.strip() or not self._style.semicolons
        if body.endswith("\\") or (self._name in {"python", "bash"} and last == "\\"):
            return False
        if self._name == "bash":
            return not body.rstrip().endswith(("|", "&&", "\\"))
        if self._style.semicolons:
            ends = last in ";{}:" or (last == ">" and self._name == "php")
            return ends or body.lstrip().startswith(("#", "@"))
        if self._name in {"lines", "xml"}:
            return True
        return last not in _CONTINUES

    def _read(self, body: str) -> str:
        """Follow one line; its last sign or word outside of comments."""
        at, last, style, unended = 0, "", self._style, ""
        head = body.lstrip()[:_HEAD]
        indent = len(body) - len(body.lstrip())
        if self._until:
            end = self._end_of_long(body, 0)
            if end < 0:
                return ""
            at, last, self._until = end, "" if self._until in _COMMENT_ENDS else '"', ""
        tokens = style.tokens
        while found := tokens.search(body, at):
            at, kind, text = found.end(), found.lastgroup, found[0]
            if kind == "note":
                break
            if kind == "long":
                self._until = style.ends[text]
                end = self._end_of_long(body, at)
                if end < 0:
                    break
                if self._until in _COMMENT_ENDS:
                    at, self._until = end, ""
                    continue
                at, self._until, text = end, "", '"'
            elif kind == "open":
                before = head[: max(0, at - 1 - indent)]
                self._push(text, text == "{" and self._is_block(before, last))
            elif kind == "close":
                self._close(text)
            elif text in _QUOTES and text not in unended:
                # It has no end, so none after it has: each would be looked for in vain to the
                # line's end.
                unended += text
                tokens = style.without(unended)
            if text in {";", "{", "}"}:
                self._statement = ""
            last = '"' if kind == "skip" else text
        if last not in {"", ";", "{", "}"}:
            self._statement = (self._statement + head + "\n")[:_HEAD]
        if "<<" in body and self._name in {"bash", "ruby", "php", "lines"}:
            self._here += [found[2] for found in _HEREDOC.finditer(body)]
        return last

    def _end_of_long(self, body: str, at: int) -> int:
        """Where a long string or comment ends in a line; -1 when it goes on."""
        escaped = self._until in {'"', "'", "`", '"""', "'''"}
        while (end := body.find(self._until, at)) >= 0:
            before = end
            while escaped and before > 0 and body[before - 1] == "\\":
                before -= 1
            if (end - before) % 2 == 0:
                return end + len(self._until)
            at = end + 1
        return -1

    def _is_block(self, before: str, last: str) -> bool:
        if not self._style.braces:
            return False
        if last in _AFTER_VALUE:
            return False
        if self._name == "lines" or last in {")", ">", "", ";", "}", "{"}:
            return True
        if self._within_brackets():
            return False
        return bool(_OPENS_BLOCK.match(self._statement + before)) or (
            self._name in {"ruby", "kotlin", "swift", "bash"}
        )

    def _push(self, sign: str, is_block: bool) -> None:
        self._stack.append((sign, is_block))
        self._open[_CLOSERS[sign]] += 1
        self.deepest = max(self.deepest, len(self._stack))

    def _close(self, sign: str) -> None:
        """Close the innermost bracket of a kind; one that closes nothing is passed over."""
        while self._open[sign]:
            closed = _CLOSERS[self._stack.pop()[0]]
            self._open[closed] -= 1
            if closed == sign:
                return
