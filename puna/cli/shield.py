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
        list[str] | None,
        typer.Argument(metavar="FILE...", help="Files and folders, or - for standard input."),
    ] = None,
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
    rules: Annotated[
        bool, typer.Option("--rules", help="Print what is looked for, and scan nothing.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Find insecure code; the exit code is 1 when there is any, for hooks and CI."""
    if as_json and output == "sarif":
        raise UsageError("--json and --format sarif exclude each other")
    if rules:
        _print_rules(language, as_json or output == "json")
        return
    if not paths:
        raise UsageError("no FILE: name files or folders, - for standard input, or ask --rules")
    done = _scanned(paths, language)
    for path, reason in done.skipped.items():
        print(f"puna shield: {path} left out: {reason}", file=sys.stderr)
    _print(done, "json" if as_json else output)
    if not done.is_clean:
        raise typer.Exit(1)


def _print_rules(language: str | None, as_json: bool) -> None:
    from puna.safety.shield.catalogue import as_text, catalogue
    from puna.safety.shield.scanner import known_language

    rows = catalogue(known_language(language) if language else None)
    print(json.dumps({"rules": rows}) if as_json else as_text(rows))


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
