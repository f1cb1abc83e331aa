"""The rules as a table: what the shield looks for in each language."""

from typing import Any

from puna.safety.shield import rules


def catalogue(language: str | None = None) -> list[dict[str, Any]]:
    """One row per rule: id, languages that have it, CWE, severity, message, fix.

    A rule that a language takes from another stands once, with all its languages. With one of the
    shield's languages, only what is looked for in it.
    """
    rows: dict[str, dict[str, Any]] = {}
    for name in rules.languages():
        for rule in rules.load(name).rules:
            row = rows.setdefault(
                rule.id,
                {
                    "rule": rule.id,
                    "languages": [],
                    "cwe": f"CWE-{rule.cwe}",
                    "severity": rule.severity,
                    "message": rule.message,
                    "fix": rule.fix,
                },
            )
            row["languages"].append(name)
    return [row for row in rows.values() if language is None or language in row["languages"]]


def as_text(rows: list[dict[str, Any]]) -> str:
    """The table with a line per rule: id, CWE, severity and message."""
    width = max((len(row["rule"]) for row in rows), default=0)
    return "\n".join(
        f"{row['rule']:{width}}  {row['cwe']:8}  {row['severity']:6}  {row['message']}"
        for row in rows
    )
