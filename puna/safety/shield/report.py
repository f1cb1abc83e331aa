"""Findings as people and other tools read them: lines of text, JSON, SARIF 2.1.0."""

from collections.abc import Mapping
from typing import Any

from puna import __version__
from puna.safety.shield.result import Finding, Result

_SARIF_SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"
_LEVELS = {"high": "error", "medium": "warning"}
_SCORES = {"high": "8.0", "medium": "5.0"}
"""What code hosts show beside a finding: high from 7.0 on, medium from 4.0 on."""


def as_text(results: Mapping[str, Result]) -> str:
    """A line for each finding, as compilers write them, and what to do below it."""
    lines = []
    for path, result in results.items():
        if result.fault:
            lines.append(f"{path}: not judged: {result.fault}")
        for one in result.findings:
            place = f"{path}:{one.line}:{one.column}"
            lines.append(f"{place}: {one.severity}: {one.message} [{one.cwe}, {one.rule}]")
            lines.append(f"    instead: {one.fix}")
    return "\n".join(lines)


def as_json(results: Mapping[str, Result], skipped: Mapping[str, str]) -> dict[str, Any]:
    """One object: ``verdict``, ``files`` with their findings, ``skipped`` with the reason."""
    everything = Result(
        tuple(one for result in results.values() for one in result.findings),
        next((result.fault for result in results.values() if result.fault), ""),
    )
    return {
        "verdict": everything.verdict,
        "findings": len(everything.findings),
        "files": [
            {
                "path": path,
                "verdict": result.verdict,
                "fault": result.fault,
                "findings": [one.as_dict() for one in result.findings],
            }
            for path, result in results.items()
        ],
        "skipped": [{"path": path, "reason": reason} for path, reason in skipped.items()],
    }


def as_sarif(results: Mapping[str, Result]) -> dict[str, Any]:
    """A log of the Static Analysis Results Interchange Format, version 2.1.0 (OASIS)."""
    found = [(path, one) for path, result in results.items() for one in result.findings]
    rules = {one.rule: one for _, one in found}
    numbers = {rule: n for n, rule in enumerate(rules)}
    driver = {
        "name": "puna shield",
        "version": __version__,
        "rules": [_rule(one) for one in rules.values()],
    }
    return {
        "$schema": _SARIF_SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {"driver": driver},
                "columnKind": "unicodeCodePoints",
                "results": [_result(path, one, numbers[one.rule]) for path, one in found],
            }
        ],
    }


def _rule(one: Finding) -> dict[str, Any]:
    return {
        "id": one.rule,
        "shortDescription": {"text": one.message},
        "help": {"text": one.fix},
        "defaultConfiguration": {"level": _LEVELS[one.severity]},
        "properties": {
            "tags": ["security", f"external/cwe/{one.cwe.lower()}"],
            "security-severity": _SCORES[one.severity],
        },
    }


def _result(path: str, one: Finding, number: int) -> dict[str, Any]:
    region = {
        "startLine": one.line,
        "startColumn": one.column,
        "endLine": one.end_line,
        "endColumn": one.end_column,
    }
    return {
        "ruleId": one.rule,
        "ruleIndex": number,
        "level": _LEVELS[one.severity],
        "message": {"text": f"{one.message}; instead: {one.fix}"},
        "locations": [{"physicalLocation": {"artifactLocation": {"uri": path}, "region": region}}],
    }
