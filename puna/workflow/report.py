"""The report of a run: one HTML file with everything in it, no network."""

from pathlib import Path
from typing import Any

from puna.core.files import write_text


def write_report(folder: Path, summary: dict[str, Any]) -> Path:
    """Write ``report.html`` into the run folder; returns its path."""
    path = folder / "report.html"
    write_text(path, f"<pre>{summary}</pre>")
    return path
