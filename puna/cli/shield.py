"""``puna shield``: insecure code in files, folders and on standard input."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from puna.cli.options import Json
from puna.core.errors import UsageError

if TYPE_CHECKING:  # imported inside the functions: help and errors come at once
    from puna.safety.shield.files import Scanned

Format = Literal["text", "json", "sarif"]
_STDIN = "-"


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(shield)


def shield(
    paths: Annotated[
        list[str],
        typer.Argument(metavar="FILE...", help="Files and folders, or - for standard input."),
    ],
    language: Annotated[
        str | None,
        typer.Option(
            help="Language of the code; by default the file's name says it, and standard input is "
            "read as Markdown."
        ),
    ] = None,
    output: Annotated[
        Format, typer.Option("--format", help="text, json, or sarif for code hosts.")
    ] = "text",
    as_json: Json = False,
) -> None:
    """Find insecure code; the exit code is 1 when there is any, for hooks and CI."""
    if as_json and output == "sarif":
        raise UsageError("--json and --format sarif exclude each other")
    done = _scanned(paths, language)
    for path, reason in done.skipped.items():
        print(f"puna shield: {path} left out: {reason}", file=sys.stderr)
    _print(done, "json" if as_json else output)
    if not done.is_clean:
        raise typer.Exit(1)


def _scanned(paths: list[str], language: str | None) -> "Scanned":
    from puna.safety.shield.files import Scanned, scan_paths, scan_text

    if _STDIN not in paths:
        return scan_paths([Path(path) for path in paths], language)
    if paths != [_STDIN]:
        raise UsageError("standard input (-) goes alone, not beside files")
    text = sys.stdin.buffer.read().decode("utf-8", "replace")
    return Scanned({"<stdin>": scan_text(text, language)})


def _print(done: "Scanned", output: Format) -> None:
    from puna.safety.shield import report

    if output == "json":
        print(json.dumps(report.as_json(done.results, done.skipped)))
    elif output == "sarif":
        print(json.dumps(report.as_sarif(done.results), indent=2))
    elif not done.is_clean:
        print(report.as_text(done.results))
        print(f"{done.n_findings} found in {len(done.results)} files", file=sys.stderr)
