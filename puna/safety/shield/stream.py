"""Watches an answer while it streams: what is insecure is never released.

Prose goes out as it comes. Code is held until a logical line is complete, scanned together with
what stood before it, and then released. What goes wrong counts against the code: see `Policy`.
"""

from dataclasses import dataclass
from typing import Literal

from puna.safety.safeguard import Decision, Verdict
from puna.safety.shield import rules
from puna.safety.shield.blocks import BlockFinder, Line
from puna.safety.shield.engine import engine
from puna.safety.shield.incremental import GrowingCode
from puna.safety.shield.parsing import ScanTimeout
from puna.safety.shield.result import Finding, Result
from puna.safety.shield.scanner import finding, scan_unknown

Mode = Literal["warn", "block"]
_UNKNOWN_CHARACTERS = 2048
"""Longest piece of code that is tried in many languages when nobody knows its own."""
_CONTEXT = 4096
"""Characters of a piece that are read again when its language turns out to be another."""
_RANKS: dict[Decision, int] = {"allow": 0, "warn": 1, "block": 2}


@dataclass(frozen=True)
class Policy:
    """What the shield does with what it finds."""

    mode: Mode = "warn"
    """``block``: a finding of high severity ends the answer, and it is never released. ``warn``:
    everything is released at once, findings are told."""
    on_error: Mode = "block"
    """What code that could not be judged counts as: the scanner failed or took too long."""
    on_unparsable: Mode = "warn"
    """What a piece counts as whose logical line did not end within ``held_lines``, or that is long
    and of no known language."""
    held_lines: int = 200
    """Most lines held for one logical line."""
    held_characters: int = 16_384
    """Longest logical line that is judged; a longer one counts as ``on_error`` says."""
    line_seconds: float = 0.03
    """Processor time that one logical line may take to be parsed and judged."""


class ShieldStream:
    """Watches one answer, given in pieces of any size."""

    def __init__(self, policy: Policy | None = None, language: str | None = None) -> None:
        """With ``language`` all of the text is code; without it is Markdown."""
        self.policy = policy or Policy()
        self.verdict = Verdict()
        """What the stream comes to so far; after "block" nothing more is released."""
        self.findings: list[Finding] = []
        """What was found so far; lines are those of the answer."""
        self._finder = BlockFinder()
        self._language = language
        self._line = 0
        self._early = 0
        """Characters of the incomplete line that are out already."""
        self._piece = -1
        self._piece_language = ""
        self._piece_text = ""
        self._piece_lines: list[int] = []
        """Line of the answer for each line of the piece of code."""
        self._code: GrowingCode | None = None
        self._held: list[str] = []
        """Lines that wait for their logical line to end."""
        self._held_characters = 0

    @property
    def result(self) -> Result:
        """All findings so far."""
        return Result(tuple(self.findings))

    def push(self, text: str) -> str:
        """Take new text; what may be released now."""
        if self.verdict.decision == "block":
            return ""
        out = [self._take(line) for line in self._finder.push(text)]
        if self.policy.mode == "warn":
            return text
        if self.verdict.decision != "block" and not self._held:
            out.append(self._prose_so_far())
        return "".join(out)

    def flush(self) -> str:
        """The text is complete; the rest that may be released."""
        if self.verdict.decision == "block":
            return ""
        out = [self._take(line) for line in self._finder.finish()]
        out.append(self._end_of_piece())
        return "" if self.policy.mode == "warn" else "".join(out)

    def _prose_so_far(self) -> str:
        held = self._finder.held
        if self._language or not (held and self._finder.held_is_prose):
            return ""
        out, self._early = held[self._early :], len(held)
        return out

    def _take(self, line: Line) -> str:
        if self.verdict.decision == "block":
            return ""
        if self._language:
            text = line.text.rstrip("\r\n")
            line = Line(line.text, "code", 0, self._language, text)
        number, self._line = self._line, self._line + line.text.endswith("\n")
        if line.kind != "code":
            out = self._end_of_piece()
            text, self._early = line.text[self._early :], 0
            return out if self.verdict.decision == "block" else out + text
        out = ""
        if line.block != self._piece:
            out = self._end_of_piece()
            self._piece = line.block
        if self.verdict.decision == "block":
            return out
        return out + self._code_line(line, number)

    def _code_line(self, line: Line, number: int) -> str:
        text, self._early = line.text[self._early :], 0
        self._held.append(text)
        code = line.code + ("\n" if line.text.endswith("\n") else "")
        if code.endswith("\n") or not self._piece_lines or self._piece_text.endswith("\n"):
            self._piece_lines.append(number + 1)
        self._piece_text += code
        self._held_characters += len(code)
        is_anew = line.language != self._piece_language
        if is_anew:
            self._change_language(line.language)
        if self._held_characters > self.policy.held_characters and self._code is not None:
            return self._oversized()
        if self._code is None:
            complete = bool(self._piece_language)  # a language without rules is let through
        else:
            complete = self._feed_all(self._code) if is_anew else self._code.feed(code)
        if complete:
            return self._judge()
        if len(self._held) >= self.policy.held_lines:
            return self._overlong()
        return ""

    def _change_language(self, language: str) -> None:
        """The piece turns out to be in another language: what is known of it is read anew."""
        self._piece_language = language
        known = language in rules.languages()
        self._code = GrowingCode(engine(language), self.policy.line_seconds) if known else None

    def _feed_all(self, own: GrowingCode) -> bool:
        """Take what is held, behind some of what stands before it."""
        text = self._piece_text
        start = max(0, len(text) - self._held_characters - _CONTEXT)
        start = text.rfind("\n", 0, start) + 1
        own.skip(text.count("\n", 0, start))
        complete = False
        for one in text[start:].splitlines(keepends=True):
            complete = own.feed(one)
        return complete

    def _overlong(self) -> str:
        if self._piece_language:
            self._decide(self.policy.on_unparsable, "code goes on without an end to its statement")
        return self._judge()

    def _oversized(self) -> str:
        """A logical line that is too long to be judged in time."""
        held, self._held, self._held_characters = self._held, [], 0
        self._decide(self.policy.on_error, "a line of code is too long to be judged")
        self._change_language(self._piece_language)  # what follows is read anew
        if self._code is not None:
            self._code.skip(self._piece_text.count("\n"))
        return "" if self.verdict.decision == "block" else "".join(held)

    def _end_of_piece(self) -> str:
        """The piece of code is complete: whatever of it is held is judged as it is."""
        out = self._judge() if self._held else ""
        self._piece, self._piece_language, self._piece_text = -1, "", ""
        self._piece_lines, self._code = [], None
        return out

    def _judge(self) -> str:
        """Scan what is held; the text of it, when it may be released."""
        held, self._held, self._held_characters = self._held, [], 0
        try:
            self._note(self._found())
        except ScanTimeout as error:
            why = f": {error}" if error.args else ""
            self._decide(self.policy.on_error, f"code takes too long to judge{why}")
        except Exception as error:  # noqa: BLE001  whatever fails, code is not let through
            self._decide(self.policy.on_error, f"code could not be judged ({error!r:.80})")
        return "" if self.verdict.decision == "block" else "".join(held)

    def _found(self) -> list[Finding]:
        """What is new in the lines that are held; their place is that in the piece of code."""
        if self._code is not None:
            hits = self._code.scan()
            found = (finding(hit, self._piece_language, self._code.shift) for hit in hits)
            return [one.moved(self._code.first_line) for one in found]
        if self._piece_language:
            return []
        if len(self._piece_text) > _UNKNOWN_CHARACTERS:
            self._decide(self.policy.on_unparsable, "code whose language is not known")
            return []
        tried = scan_unknown(self._piece_text, self.policy.line_seconds)
        if tried.fault:
            self._decide(self.policy.on_unparsable, tried.fault)
        return list(tried.findings)

    def _note(self, found: list[Finding]) -> None:
        lines = self._piece_lines
        for one in found:
            here = lines[min(one.line, len(lines)) - 1] if lines else one.line
            moved = one.moved(here - one.line)
            self.findings.append(moved)
            reason = f"{moved.cwe}, line {moved.line}: {moved.message}; instead: {moved.fix}"
            self._decide("block" if moved.severity == "high" else "warn", reason)

    def _decide(self, decision: Decision, reason: str) -> None:
        if self.policy.mode == "warn" and decision == "block":
            decision = "warn"
        if _RANKS[decision] > _RANKS[self.verdict.decision]:
            self.verdict = Verdict(decision, reason)


def stream(policy: Policy | None = None, language: str | None = None) -> ShieldStream:
    """A watch over one answer; see `ShieldStream`."""
    return ShieldStream(policy, language)
