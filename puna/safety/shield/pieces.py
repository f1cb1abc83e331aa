"""One piece of code as it grows: what of each line is code, and in which language."""

import re
from collections.abc import Callable

from puna.safety.shield.guess import Guess
from puna.safety.shield.tags import language_of_path

Errors = Callable[[str, str], float]

_GUESSED_LINES = 40  # the guess of a language is made again with each of so many first lines
_LINE = 400  # characters of a line that a guess looks at

_QUOTE = re.compile(r"^[ \t]*>[ \t]?")
_PYTHON_PROMPT = re.compile(r"^\s*(?:>>>|\.\.\.)(?:[ \t]|$)|^In \[\d+\]: ?")
_SHELL_PROMPT = re.compile(r"^\s*(?:[\w.-]+@[\w.-]+[:~\w/.-]*|[~/][\w/.-]*)?[$#%]\s")
_DIFF_HEAD = re.compile(r"^(?:@@|--- |diff |index |\\ )")
_SCANNED_AS = {"pycon": "python", "console": "bash", "diff": "", "markdown": ""}
_PHP = re.compile(r"<\?(?:php\b|=)")


class Piece:
    """A piece of code: takes its lines, knows its language so far."""

    def __init__(self, number: int, tag: str, quotes: int, errors: Errors | None) -> None:
        """``tag`` is our name of its language or ``""``; ``quotes`` counts its ``>`` marks.

        ``errors`` decides between languages that score alike, see `Guess.best`.
        """
        self.number = number
        self.tag = tag
        self.language = _SCANNED_AS.get(tag, tag)
        self._quotes = quotes
        self._errors = errors
        self._guess = Guess() if not self.language else None
        self._lines: list[str] = []
        self._prompted = False
        self._page: Page | None = None
        self._see_page("")

    def take(self, body: str) -> str:
        """Take the next line (without its end); the code in it. `language` follows."""
        for _ in range(self._quotes):
            body = _QUOTE.sub("", body, count=1)
        code = self._code(body)
        if self._guess is not None and len(self._lines) < _GUESSED_LINES:
            self._lines.append(code[:_LINE])
            self._guess.add(code[:_LINE])
            self.language = self._guess.best("\n".join(self._lines), self._errors)
        self._see_page(code)
        return code if self._page is None else self._page.scripts(code)

    def _see_page(self, code: str) -> None:
        """HTML is read for its scripts, unless it turns out to be a page of PHP."""
        if self._page is not None and _PHP.search(code):
            self._page, self._guess, self.language = None, None, "php"
        elif self.language == "html":
            self._page = self._page or Page()
            self.language = "javascript"
        elif self.language != "javascript":
            self._page = None

    def _code(self, body: str) -> str:
        """The line without diff signs and prompts; nothing where it is removed code or output."""
        if self.tag == "diff":
            return self._of_diff(body)
        if self.tag in ("pycon", "python", ""):
            if prompt := _PYTHON_PROMPT.match(body):
                self._prompted = True
                return body[prompt.end() :]
            if self._prompted:
                return ""
        if self.tag in ("console", "bash"):
            if prompt := _SHELL_PROMPT.match(body):
                self._prompted = True
                return body[prompt.end() :]
            if self._prompted and self.tag == "console":
                return ""
        return body

    def _of_diff(self, body: str) -> str:
        if body.startswith("+++ "):
            language = language_of_path(body[4:].split("\t")[0].strip())
            if language:
                self.language, self._guess = language, None
            return ""
        if body.startswith("-") or _DIFF_HEAD.match(body):
            return ""
        return body[1:] if body[:1] in "+ " else body


_SCRIPT = re.compile(r"<script\b[^>]*>", re.I)
_SCRIPT_END = re.compile(r"</script\s*>", re.I)
_HANDLER = re.compile(
    r"(?:\bon[a-z]+\s*=\s*|\b(?:href|src|action)\s*=\s*(?=[\"']javascript:))"
    r"(?:\"(?:javascript:)?([^\"]*)\"|'(?:javascript:)?([^']*)')",
    re.I,
)


class Page:
    """A page of HTML, line by line: what of it is JavaScript."""

    def __init__(self) -> None:
        """Start outside of any script."""
        self._inside = False

    def scripts(self, line: str) -> str:
        """The line's scripts and the handlers in its tags; ``""`` when it has none."""
        found, at = [], 0
        while at < len(line):
            mark = (_SCRIPT_END if self._inside else _SCRIPT).search(line, at)
            part = line[at : mark.start() if mark else len(line)]
            if self._inside:
                found.append(part)
            else:
                found += [f"{one or two};" for one, two in _HANDLER.findall(part)]
            if mark is None:
                break
            self._inside, at = not self._inside, mark.end()
        return "".join(found)


# Longer strings are not seen as such: one without an end would be looked for at each of its quotes.
_STRINGS = re.compile(
    r"\"(?:\\.|[^\"\\]){0,200}+\"|'(?:\\.|[^'\\]){0,200}+'|`[^`]*`|//.*|(?:^|\s)#.*"
)
_LONG = re.compile(r"\"\"\"|'''|/\*|\*/|<!--|-->")
_ENDS = {'"""': '"""', "'''": "'''", "/*": "*/", "<!--": "-->"}
_INSIDE_LINES = 200


class LoosePiece(Piece):
    """Code without a fence: also knows whether it stands inside a string, comment or bracket."""

    def __init__(self, number: int, errors: Errors | None) -> None:
        """See `Piece`."""
        super().__init__(number, "", 0, errors)
        self._until = ""
        self._waited = 0
        self._depth = 0
        self.ends_full = False
        """Whether its last line was not empty."""

    @property
    def in_text(self) -> bool:
        """Whether the next line begins inside a long string or comment."""
        return bool(self._until) and self._waited < _INSIDE_LINES

    @property
    def in_brackets(self) -> bool:
        """Whether the next line begins inside a bracket."""
        return self._depth > 0 and self._waited < _INSIDE_LINES

    def take(self, body: str) -> str:
        """Take the next line; see `Piece.take`."""
        for mark in _LONG.findall(body):
            if self._until:
                self._until = "" if mark == self._until else self._until
            elif mark in _ENDS:
                self._until = _ENDS[mark]
        bare = _STRINGS.sub("", body)
        opened = sum(bare.count(sign) for sign in "([{")
        self._depth = max(0, self._depth + opened - sum(bare.count(sign) for sign in ")]}"))
        self._waited = self._waited + 1 if self._until or self._depth else 0
        self.ends_full = bool(body.strip())
        return super().take(body)
