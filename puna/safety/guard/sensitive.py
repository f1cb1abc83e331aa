"""Secrets and personal data in a text: found by libraries, and taken out, also while it streams.

Keys and tokens are found by detect-secrets (its patterns of known services; neither its guesses by
entropy, which take hashes for secrets, nor its checks over the network), personal data by datafog's
regular expressions. Both are in the extra ``guard``.
"""

import importlib
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from puna.core.errors import ExtraMissing
from puna.safety.safeguard import Decision, Verdict

Group = Literal["secrets", "personal"]
Removal = Literal["allow", "warn", "redact", "block"]
Action = Callable[["Found"], Removal]

PERSONAL = ("EMAIL", "PHONE", "CREDIT_CARD", "SSN", "IP_ADDRESS")
"""Kinds of personal data that are looked for."""
PRIVATE_KEY = "PRIVATE_KEY"
MAX_HELD = 16_384
"""Characters after which a text without a gap is released."""
_TAIL = 128  # characters held: longer than what the patterns match across gaps
_CONTEXT = 256  # characters before the text that patterns may look at
_EVERY = 24  # new characters from which on it is worth looking again
# Guesses by entropy or by the name of a variable, and what datafog finds better.
_LEFT_OUT = frozenset(
    {"Base64HighEntropyString", "HexHighEntropyString", "KeywordDetector", "IPPublicDetector"}
)
_KEY_END = re.compile(r"-----END [A-Z0-9 ]*PRIVATE KEY[A-Z ]*-----")
_GAP = re.compile(r"\s")


@dataclass(frozen=True)
class Found:
    """A secret or a trace of a person in a text.

    Attributes:
        kind: e.g. ``"EMAIL"`` or ``"AWS_ACCESS_KEY"``.
        group: which rule of a policy it falls under.
        start, end: where it stands.
    """

    kind: str
    group: Group
    start: int
    end: int


class Finder:
    """Finds secrets and personal data. Raises `ExtraMissing` where the libraries are missing."""

    def __init__(self) -> None:
        purpose = "finding secrets and personal data"
        try:
            plugins = importlib.import_module("detect_secrets.core.plugins.util")
            self._scan = importlib.import_module("datafog.engine").scan
        except ModuleNotFoundError as error:
            raise ExtraMissing("datafog detect-secrets", purpose) from error
        classes = plugins.get_mapping_from_secret_type_to_class().values()
        chosen = [kind for kind in classes if kind.__name__ not in _LEFT_OUT]
        self._plugins: list[tuple[str, Any]] = [
            (re.sub(r"\W+", "_", kind.secret_type).upper().strip("_"), kind()) for kind in chosen
        ]

    @property
    def kinds(self) -> list[str]:
        """Every kind it can find."""
        return [*PERSONAL, *(kind for kind, _ in self._plugins)]

    def find(self, text: str) -> list[Found]:
        """All of a text, in order, without overlaps: of two the earlier and longer counts."""
        found = [*self._secrets(text), *self._personal(text)]
        found.sort(key=lambda f: (f.start, f.start - f.end))
        kept: list[Found] = []
        for item in found:
            if not kept or item.start >= kept[-1].end:
                kept.append(item)
        return kept

    def _personal(self, text: str) -> Iterator[Found]:
        for entity in self._scan(text, engine="regex", entity_types=list(PERSONAL)).entities:
            yield Found(entity.type, "personal", entity.start, entity.end)

    def _secrets(self, text: str) -> Iterator[Found]:
        start = 0
        for line in text.splitlines(keepends=True):
            for kind, plugin in self._plugins:
                named = set(plugin.analyze_string(line))
                for match in _matches(plugin, line) if named else ():
                    # Of some patterns a plugin names a part, and it drops what is malformed.
                    if named & {match.group(), *match.groups()}:
                        end = start + match.end()
                        if kind == PRIVATE_KEY:
                            last = _KEY_END.search(text, start)
                            end = len(text) if last is None else last.end()
                        yield Found(kind, "secrets", start + _begin(kind, match), end)
            start += len(line)


def _matches(plugin: Any, line: str) -> Iterator[re.Match[str]]:
    for pattern in plugin.denylist:
        yield from pattern.finditer(line)


def _begin(kind: str, match: re.Match[str]) -> int:
    """Where a find begins in its line: a private key with the line that opens it."""
    return 0 if kind == PRIVATE_KEY else match.start()


class Redactor:
    """Takes out what a policy wants out of one text that comes in pieces.

    A piece is held until nothing that follows can make it part of a find. What is taken out leaves
    its kind: ``[EMAIL]``.

    Args:
        finder: what finds.
        action: what is done about a find.
    """

    def __init__(self, finder: Finder, action: Action) -> None:
        self.verdict = Verdict()
        self._finder = finder
        self._action = action
        self._before = ""
        self._held = ""
        self._unseen = 0
        self._in_key = False

    def push(self, text: str) -> str:
        """Take new text; what may be released now."""
        self._held += text
        self._unseen += len(text)
        if self._unseen < _EVERY:
            return ""
        self._unseen = 0
        return self._release(final=False)

    def flush(self) -> str:
        """The text is complete; the rest that may be released."""
        return self._release(final=True)

    def _release(self, *, final: bool) -> str:
        if self._in_key and not self._leave_key(final=final):
            return ""
        offset = len(self._before)
        found = [
            replace(f, start=max(f.start - offset, 0), end=f.end - offset)
            for f in self._finder.find(self._before + self._held)
            if f.end > offset and self._action(f) != "allow"
        ]
        cut = len(self._held) if final or len(self._held) > MAX_HELD else self._cut(found)
        return self._emit([f for f in found if f.start < cut], cut)

    def _cut(self, found: Sequence[Found]) -> int:
        """Up to where the held text may go: a gap well before its end, and in no find."""
        gaps = [gap.end() for gap in _GAP.finditer(self._held, 0, max(0, len(self._held) - _TAIL))]
        cut = gaps[-1] if gaps else 0
        for item in found:
            if item.kind == PRIVATE_KEY and item.end == len(self._held):
                return min(cut, item.start) if item.start > 0 else item.end
            if item.start < cut < item.end:
                cut = item.start
        return cut

    def _emit(self, found: Sequence[Found], cut: int) -> str:
        parts, at = [], 0
        for item in found:
            parts.append(self._held[at : item.start])
            action = self._action(item)
            self._note(item, action)
            if action == "block":
                self._held = ""
                return "".join(parts)
            at = min(item.end, cut)
            parts.append(self._held[item.start : at] if action == "warn" else f"[{item.kind}]")
            open_key = item.kind == PRIVATE_KEY and item.end >= len(self._held)
            self._in_key = open_key and action == "redact"
        parts.append(self._held[at:cut])
        self._before = (self._before + self._held[:cut])[-_CONTEXT:]
        if self._in_key:
            self._before = ""
        self._held = self._held[cut:]
        return "".join(parts)

    def _leave_key(self, *, final: bool) -> bool:
        """Drop a private key's text; whether its end was seen."""
        end = _KEY_END.search(self._held)
        if end is None:
            self._held = "" if final else self._held[-_TAIL:]
            return False
        self._held = self._held[end.end() :]
        self._in_key = False
        return True

    def _note(self, item: Found, action: Removal) -> None:
        decision: Decision = "block" if action == "block" else "warn"
        if self.verdict.decision != "block":
            what = "a secret" if item.group == "secrets" else "personal data"
            self.verdict = Verdict(decision, f"{what} ({item.kind})")


def cleaned(finder: Finder, text: str, action: Action) -> tuple[str, Verdict]:
    """A whole text with what the policy wants out taken out, and what was thought of it."""
    redactor = Redactor(finder, action)
    return redactor.push(text) + redactor.flush(), redactor.verdict
