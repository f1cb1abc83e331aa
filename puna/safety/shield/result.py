"""What a scan says: findings, and the verdict they come to."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from puna.safety.safeguard import Decision
from puna.safety.shield.rules import Severity

_DECISIONS: dict[Severity, Decision] = {"high": "block", "medium": "warn"}


@dataclass(frozen=True)
class Finding:
    """An insecure place in code."""

    rule: str
    line: int
    """From 1."""
    column: int
    """From 1, in characters."""
    end_line: int
    end_column: int
    cwe: str
    """As ``CWE-78``."""
    severity: Severity
    message: str
    fix: str
    """What to write instead."""
    language: str

    def moved(self, lines: int) -> "Finding":
        """The same finding, this many lines further down."""
        return replace(self, line=self.line + lines, end_line=self.end_line + lines)

    def as_dict(self) -> dict[str, Any]:
        """The same as plain data."""
        return asdict(self)


@dataclass(frozen=True)
class Result:
    """What a scan found."""

    findings: tuple[Finding, ...] = ()
    fault: str = ""
    """Why the code was not judged as a whole; empty when it was."""

    @property
    def verdict(self) -> Decision:
        """``block`` for a finding of high severity, ``warn`` for any other, ``allow`` for none.

        Code that was not judged is never allowed: a fault counts as a ``warn``.
        """
        decisions = {_DECISIONS[finding.severity] for finding in self.findings}
        return "block" if "block" in decisions else "warn" if decisions or self.fault else "allow"
