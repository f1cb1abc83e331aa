"""Files and folders scanned: which files hold code, and what each holds."""

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from puna.core.errors import UsageError
from puna.safety.shield import rules
from puna.safety.shield.result import Result
from puna.safety.shield.scanner import known_language, scan, scan_markdown, scan_page
from puna.safety.shield.tags import language_of_path, language_of_tag

MAX_BYTES = 2_000_000
"""Longer files are left out: they are data or made by a program."""
_LEFT_OUT = frozenset({".git", ".hg", ".svn", ".venv", "venv", "node_modules", "__pycache__"})
_PAGES = frozenset({"markdown", "html"})


@dataclass
class Scanned:
    """What a run over files found."""

    results: dict[str, Result] = field(default_factory=dict)
    """By path, as it was named."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Files that were not scanned, and why."""

    @property
    def n_findings(self) -> int:
        """Findings in all files."""
        return sum(len(result.findings) for result in self.results.values())

    @property
    def is_clean(self) -> bool:
        """Whether all that was scanned is allowed."""
        return all(result.verdict == "allow" for result in self.results.values())


def scan_paths(paths: Iterable[Path], language: str | None = None) -> Scanned:
    """Scan files, and folders with all below them.

    Args:
        paths: files are scanned whatever their name; in folders those whose name says a language.
        language: of all files; else each file's name says it.

    Raises `UsageError` for a path that is not there and for an unknown language.
    """
    if language is not None:
        tag = language_of_tag(language)
        language = tag if tag in _PAGES else known_language(language)
    done = Scanned()
    for path in paths:
        if not path.exists():
            raise UsageError(f"no such file or folder: {path}")
        for file in _files(path) if path.is_dir() else [path]:
            _scan_file(file, language, path.is_dir(), done)
    return done


def scan_text(text: str, language: str | None) -> Result:
    """Scan one text: code of a language, a page of HTML, or Markdown when none is named."""
    if language in {None, "markdown", "md"}:
        return scan_markdown(text)
    assert language is not None
    return scan_page(text) if language == "html" else scan(text, language)


def _files(folder: Path) -> Iterator[Path]:
    for root, folders, names in os.walk(folder):
        folders[:] = sorted(name for name in folders if name not in _LEFT_OUT)
        for name in sorted(names):
            if language_of_path(name) in {*rules.languages(), *_PAGES}:
                yield Path(root, name)


def _scan_file(path: Path, language: str | None, found: bool, done: Scanned) -> None:
    chosen = language or language_of_path(path.name)
    if chosen not in {*rules.languages(), *_PAGES}:
        done.skipped[str(path)] = "its name says no language that has rules: use --language"
        return
    try:
        if path.stat().st_size > MAX_BYTES:
            done.skipped[str(path)] = f"longer than {MAX_BYTES:,} bytes"
            return
        data = path.read_bytes()
    except OSError as error:
        if not found:
            raise UsageError(f"{path} cannot be read: {error.strerror}") from None
        done.skipped[str(path)] = f"cannot be read: {error.strerror}"
        return
    if b"\0" in data[:8192]:
        done.skipped[str(path)] = "a binary file"
        return
    done.results[str(path)] = scan_text(data.decode("utf-8", "replace"), chosen)
