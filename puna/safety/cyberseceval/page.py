"""The report of a CyberSecEval run: one HTML file, no script, no network; and a table."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from puna.core.files import write_text
from puna.core.pages import render

PAGE = "report.html"


def write_page(folder: Path, result: dict[str, Any]) -> Path:
    """Write ``report.html`` into the folder; returns its path."""
    values = {
        "result": result,
        "date": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "share": share,
        "interval": interval,
    }
    page = folder / PAGE
    write_text(page, render(Path(__file__).with_name("page.html.jinja"), values))
    return page


def share(value: float | None) -> str:
    """A share in percent; a dash for none."""
    return "–" if value is None else f"{value:.1%}"


def interval(rate: dict[str, Any]) -> str:
    """The 95% interval of a rate, or what is known where nothing is decided."""
    if rate["rate"] is not None:
        return f"{rate['low']:.1%} to {rate['high']:.1%}"
    if rate["least"] is None:
        return "–"
    return f"undecided: {rate['least']:.0%} to {rate['most']:.0%}"


def table(result: dict[str, Any]) -> Table:
    """The figures for a terminal."""
    shown_table = Table("suite", "counted", "rate", "95% interval", "n", "undecided", "data")
    for name, suite in result["suites"].items():
        if "skipped" in suite:
            shown_table.add_row(name, suite["skipped"], "", "", "", "", "")
            continue
        for measure in suite["measures"].values():
            shown_table.add_row(
                name,
                measure["what"],
                share(measure["rate"]),
                interval(measure),
                str(measure["n"]),
                str(measure["undecided"] or ""),
                suite["source"],
            )
    return shown_table
