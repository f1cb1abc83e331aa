"""Records of a user's data set, one after the other, whatever file or folder holds them.

Nothing but the row at hand (and a batch of Parquet) is in memory, however large the file.
"""

import difflib
import gzip
import importlib
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from puna.core.errors import ExtraMissing, UsageError

SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".parquet", ".arrow")
_CHUNK_CHARS = 1 << 20
_BATCH_ROWS = 1024
_GAP = re.compile(r"[\s,]*")
_SPLIT = re.compile(r"^(train|test|validation|valid|val|dev|eval)(?=[-_.])")


@dataclass(frozen=True)
class Record:
    """A row: its fields, and where it is from, for messages (``"my.jsonl, line 3"``)."""

    where: str
    fields: dict[str, Any]


def missing(path: Path, rows: str = "") -> UsageError:
    """The error of a path that is not there: it names a file beside it with nearly that name.

    ``rows``: what a row looks like, see `read_records`.
    """
    folder = path.parent
    if not folder.is_dir():
        return UsageError(_with(f"no such file or folder: {path}: nor is there {folder}", rows))
    beside = {item.name.lower(): item.name for item in sorted(folder.iterdir())}
    near = difflib.get_close_matches(path.name.lower(), beside, n=1, cutoff=0.7)
    meant = f": did you mean {folder / beside[near[0]]}?" if near else ""
    return UsageError(_with(f"no such file or folder: {path}{meant}", rows))


def _with(message: str, rows: str) -> str:
    return f"{message}{' ' if message.endswith('?') else '; '}{rows}" if rows else message


def near_keys(fields: Iterable[Any], known: Sequence[str]) -> str:
    """What the keys of a row are, and which known one an unknown one is near to."""
    given = [str(key) for key in fields]
    for key in (key for key in given if key not in known):
        if near := difflib.get_close_matches(key.lower(), known, n=1, cutoff=0.7):
            return f'its keys: {", ".join(given)}; is "{key}" meant to be "{near[0]}"?'
    return f"its keys: {', '.join(given) or 'none'}"


def read_records(path: Path, rows: str = "") -> Iterator[Record]:
    """Rows of a JSONL, JSON, Parquet or Arrow file, or of a Hugging Face dataset's folder.

    A folder is what ``save_to_disk`` wrote (of several splits: ``train``), or holds such files: all
    of them by name, or only those of ``train`` where names begin with a split's.

    Args:
        rows: what a row looks like, for the message about a file that cannot be opened.

    Raises `UsageError` naming file and row of what cannot be read, `ExtraMissing` where Parquet or
    Arrow needs pyarrow.
    """
    files = _files(path, rows)
    found = False
    for file in files:
        for record in _records_of(file):
            found = True
            yield record
    if not found:
        raise UsageError(_with(f"{path} holds no rows: write one JSON object a line", rows))


def _files(path: Path, rows: str) -> list[Path]:
    if not path.exists():
        raise missing(path, rows)
    if path.is_file():
        if not path.name.endswith(SUFFIXES):
            kinds = f"give a file of {', '.join(SUFFIXES)}, or a dataset's folder"
            raise UsageError(_with(f"{path}: {kinds}", rows))
        return [path]
    if (path / "dataset_dict.json").exists():
        return _files(_train_split(path), rows)
    if (path / "state.json").exists():
        listed = _json_object(path / "state.json").get("_data_files", [])
        return [path / item["filename"] for item in listed]
    files = [item for item in sorted(path.rglob("*")) if item.name.endswith(SUFFIXES)]
    train = [item for item in files if (found := _SPLIT.match(item.name)) and found[1] == "train"]
    split = any(_SPLIT.match(item.name) for item in files)
    if not files or (split and not train):
        kind = "file of the split train" if files else f"file of {', '.join(SUFFIXES)}"
        raise UsageError(f"{path} holds no {kind}: name one of its files")
    return train if split else files


def _train_split(path: Path) -> Path:
    splits = _json_object(path / "dataset_dict.json").get("splits", [])
    if "train" in splits or len(splits) == 1:
        return path / ("train" if "train" in splits else splits[0])
    raise UsageError(f"{path} has the splits {', '.join(splits)}: name the folder of one")


def _json_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UsageError(f"{path} is not valid JSON: copy the folder again") from error
    return value if isinstance(value, dict) else {}


def _records_of(file: Path) -> Iterator[Record]:
    if file.suffix == ".parquet":
        rows = _parquet_rows(file)
    elif file.suffix == ".arrow":
        rows = _arrow_rows(file)
    elif ".jsonl" in file.suffixes[-2:]:
        rows = _json_lines(file)
    else:
        rows = _json_items(file)
    for where, row in rows:
        if not isinstance(row, dict):
            raise UsageError(f"{where}: expected a JSON object, found {type(row).__name__}")
        yield Record(where, row)


def _open(file: Path) -> BinaryIO:
    return cast(BinaryIO, gzip.open(file, "rb")) if file.suffix == ".gz" else file.open("rb")


def _json_lines(file: Path) -> Iterator[tuple[str, Any]]:
    with _open(file) as lines:
        for number, line in enumerate(lines, start=1):
            where = f"{file}, line {number}"
            try:
                text = line.decode("utf-8-sig" if number == 1 else "utf-8")
                if text.strip():
                    yield where, json.loads(text)
            except UnicodeDecodeError as error:
                raise UsageError(f"{where}: not UTF-8 text: convert the file") from error
            except json.JSONDecodeError as error:
                raise UsageError(f"{where}: not valid JSON: {error.msg}") from error


def _json_items(file: Path) -> Iterator[tuple[str, Any]]:
    """Items of a list, or of the list ``data`` of an object."""
    try:
        with _open(file) as raw:
            stream = io.TextIOWrapper(raw, encoding="utf-8-sig")
            text = stream.read(_CHUNK_CHARS)
            while text.isspace():
                text = stream.read(_CHUNK_CHARS)
            text = text.lstrip()
            items = _listed(stream, text[1:], file) if text.startswith("[") else None
            for number, item in enumerate(items or _under_data(text + stream.read(), file), 1):
                yield f"{file}, item {number}", item
    except UnicodeDecodeError as error:
        raise UsageError(f"{file} is not UTF-8 text: convert it") from error


def _under_data(text: str, file: Path) -> list[Any]:
    try:
        value = json.loads(text)
    except json.JSONDecodeError as error:
        raise UsageError(
            f"{file}: not valid JSON ({error.msg}, line {error.lineno}); "
            "one object a line is .jsonl"
        ) from error
    items = value.get("data") if isinstance(value, dict) else None
    if not isinstance(items, list):
        raise UsageError(f'{file}: expected a list of objects, or one under "data"')
    return items


def _listed(stream: io.TextIOWrapper, text: str, file: Path) -> Iterator[Any]:
    """Items of a list while its text arrives; ``text`` follows the opening bracket."""
    decoder = json.JSONDecoder()
    at, number = 0, 1
    while True:
        gap = _GAP.match(text, at)
        at = gap.end() if gap else at
        if text.startswith("]", at):
            return
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            more = stream.read(max(_CHUNK_CHARS, len(text)))  # doubles: a long item costs once
            if not more:
                raise UsageError(f"{file}, item {number}: not valid JSON: {error.msg}") from error
            text, at = text[at:] + more, 0
        else:
            yield value
            number += 1


def _pyarrow(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ExtraMissing("pyarrow", "reading Parquet and Arrow files") from error


def _parquet_rows(file: Path) -> Iterator[tuple[str, Any]]:
    pyarrow, parquet = _pyarrow("pyarrow"), _pyarrow("pyarrow.parquet")
    try:
        batches = parquet.ParquetFile(file).iter_batches(batch_size=_BATCH_ROWS)
        yield from _rows(file, batches)
    except pyarrow.ArrowInvalid as error:
        raise UsageError(f"{file} is no whole Parquet file: fetch it again") from error


def _arrow_rows(file: Path) -> Iterator[tuple[str, Any]]:
    pyarrow = _pyarrow("pyarrow")
    try:
        with pyarrow.memory_map(str(file)) as mapped:
            yield from _rows(file, pyarrow.ipc.open_stream(mapped))
    except pyarrow.ArrowInvalid as error:
        raise UsageError(f"{file} is no whole Arrow file of a dataset: save it again") from error


def _rows(file: Path, batches: Any) -> Iterator[tuple[str, Any]]:
    number = 1
    for batch in batches:
        for start in range(0, batch.num_rows, _BATCH_ROWS):
            for row in batch.slice(start, _BATCH_ROWS).to_pylist():
                yield f"{file}, row {number}", _without_nulls(row)
                number += 1


def _without_nulls(value: Any) -> Any:
    """Arrow gives every object the keys of all: those that are null here were not there."""
    if isinstance(value, dict):
        return {key: _without_nulls(item) for key, item in value.items() if item is not None}
    return [_without_nulls(item) for item in value] if isinstance(value, list) else value
