"""A user's own texts: ``.txt``, ``.md`` and ``.jsonl`` files, or a folder of them."""

import json
from collections.abc import Iterator
from pathlib import Path

from puna.core.errors import UsageError
from puna.data.document import Document

SUFFIXES = (".txt", ".md", ".jsonl")
# A whole book as one document could not be split between training and validation.
MAX_CHARS = 20_000


def read_files(path: Path, source: str) -> list[Document]:
    """Documents of a file, or of all files below a folder, by name.

    A ``.txt`` or ``.md`` file is one document, or several of about `MAX_CHARS` cut at blank lines
    where it is longer; a ``.jsonl`` file has one a line, in its field ``text``.

    Raises:
        UsageError: names the file, and the line of a broken record.
    """
    if not path.exists():
        raise UsageError(f"source '{source}': no such file or folder: {path}")
    if path.is_file() and path.suffix not in SUFFIXES:
        raise UsageError(f"source '{source}': {path} is none of {', '.join(SUFFIXES)}")
    base = path if path.is_dir() else path.parent
    found = sorted(path.rglob("*")) if path.is_dir() else [path]
    files = [file for file in found if file.is_file() and file.suffix in SUFFIXES]
    if not files:
        raise UsageError(f"source '{source}': {path} holds no file of {', '.join(SUFFIXES)}")
    return [
        Document(text, source, f"{file.relative_to(base).as_posix()}:{number}")
        for file in files
        for number, text in _texts(file)
    ]


def _texts(file: Path) -> Iterator[tuple[int, str]]:
    """Each text of a file with its number: the line of a record, the rank of a piece."""
    try:
        content = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8 text (byte {error.start}): convert it") from error
    if file.suffix == ".jsonl":
        for number, line in enumerate(content.split("\n"), start=1):
            if line.strip():
                yield number, _record_text(line, f"{file}, line {number}")
    else:
        yield from enumerate(cut(content, MAX_CHARS), start=1)


def _record_text(line: str, where: str) -> str:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where}: not valid JSON: {error.msg}") from error
    text = record.get("text") if isinstance(record, dict) else None
    if not isinstance(text, str):
        raise UsageError(f'{where}: expected an object with a string in "text"')
    return text


def cut(text: str, max_chars: int) -> Iterator[str]:
    """Pieces of at most ``max_chars`` cut at blank lines; a longer paragraph stays whole."""
    piece: list[str] = []
    size = 0
    for paragraph in text.split("\n\n"):
        if piece and size + len(paragraph) > max_chars:
            yield "\n\n".join(piece)
            piece, size = [], 0
        piece.append(paragraph)
        size += len(paragraph) + 2
    yield "\n\n".join(piece)
