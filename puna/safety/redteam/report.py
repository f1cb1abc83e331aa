"""The report of a run: one HTML file, in the style of all of Puna's."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from puna.core.files import write_text
from puna.core.pages import render
from puna.safety.redteam.findings import Finding
from puna.safety.redteam.goals import group_names

REPORT = "report.html"
_SHOWN_FINDINGS = 40
_PARTS = {
    "by_family": ("By kind of attack", "kind"),
    "by_group": ("By what was asked for", "category"),
    "by_language": ("By language of the request", "language"),
    "by_attack": ("By attack", "attack"),
}


def write_report(folder: Path, summary: Mapping[str, Any], findings: Sequence[Finding]) -> Path:
    """Write ``report.html`` into the run's folder; returns its path."""
    path = folder / REPORT
    write_text(path, render(Path(__file__).parent / "report.html.jinja", _page(summary, findings)))
    return path


def percent(value: float | None) -> str:
    """A share for people; nothing for none."""
    return "" if value is None else f"{value:.1%}"


def outcome(summary: Mapping[str, Any]) -> str:
    """What came out, in two sentences."""
    success, goals = summary["success"], summary["goals_reached"]
    if not success["n"]:
        return "No trial was judged."
    return (
        f"{success['successes']:,} of {success['n']:,} attacks succeeded "
        f"({percent(success['share'])}, 95% interval {percent(success['low'])} to "
        f"{percent(success['high'])}). "
        f"{goals['successes']} of {goals['n']} goals were reached by at least one."
    )


def _page(summary: Mapping[str, Any], findings: Sequence[Finding]) -> dict[str, Any]:
    names = group_names()
    shown = sorted(findings, key=lambda finding: (finding.group, finding.attack))
    return {
        "summary": summary,
        "outcome": outcome(summary),
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "glance": _glance(summary),
        "parts": [
            {
                "title": title,
                "head": head,
                "rows": _rows(summary[key], names if key == "by_group" else {}),
            }
            for key, (title, head) in _PARTS.items()
        ],
        "agreement": [
            [pair, f"{both['n']:,}", percent(both["same"]), _kappa(both["kappa"])]
            for pair, both in summary["agreement"].items()
        ],
        "decided": [[name, f"{n:,}"] for name, n in summary["decided_by"].items()],
        "left_out": summary["left_out"],
        "findings": shown[:_SHOWN_FINDINGS],
        "n_findings": len(findings),
        "group_names": names,
    }


def _glance(summary: Mapping[str, Any]) -> dict[str, str]:
    facts = {
        "Trials": f"{summary['success']['n']:,}",
        "Stopped by a safeguard": f"{summary['blocked']:,}",
        "Refused": f"{summary['refused']:,}",
        "Skipped": f"{summary['skipped']:,}",
        "Failed": f"{summary['failed']:,}",
        "Answers asked for": f"{summary['queries']:,}",
        "Attacker": summary["attacker"] or "none",
        "Judge": summary["judge"] or "none",
        "Guard": summary["guard"] or "none",
        "Seed": str(summary["settings"]["seed"]),
    }
    return {name: text for name, text in facts.items() if text != "0"}


def _rows(shares: Mapping[str, Any], names: Mapping[str, str]) -> list[dict[str, Any]]:
    return [
        {
            "name": _title(name, names),
            "n": f"{part['n']:,}",
            "successes": f"{part['successes']:,}",
            "share": percent(part["share"]),
            "width": f"{100 * part['share']:.1f}%",
            "interval": f"{percent(part['low'])} to {percent(part['high'])}",
        }
        for name, part in shares.items()
    ]


def _title(name: str, names: Mapping[str, str]) -> str:
    """Hazards by code and name, other groups by name."""
    title = names.get(name, name)
    return f"{name} {title}" if name.startswith("S") and title != name else title


def _kappa(value: float | None) -> str:
    return "not defined" if value is None else f"{value:.2f}"
