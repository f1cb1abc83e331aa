"""The file a batch's answers go to: whole lines, one writer, and what it holds already."""

import fcntl
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from puna.core.errors import UsageError
from puna.core.files import explain_os_errors, write_json
from puna.inference.batch import Line, Record


class Results:
    """Appends records to ``path``; a later one with the same settings goes on where it was.

    A killed run leaves whole lines and perhaps one torn line, which is cut off. Lines with an
    error are taken out, to be tried again. The settings lie beside it in ``path.settings.json``.

    Args:
        path: the file.
        settings: what its answers depend on, as a JSON value.

    Raises `UsageError` when the file was begun with other settings, is not such a file, or is being
    written by another process.
    """

    def __init__(self, path: Path, settings: Mapping[str, Any]) -> None:
        self._path = path
        self._done: dict[int, str] = {}
        beside = path.with_name(f"{path.name}.settings.json")
        with explain_os_errors(path):
            if not beside.exists():
                if path.exists():
                    raise UsageError(f"{path} exists and holds no batch: name another --out")
                write_json(beside, settings)
            self._lock = beside.open("rb")
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                self._lock.close()
                raise UsageError(f"{path} is being written by another process") from error
            try:
                _check_same(path, json.loads(beside.read_bytes()), settings)
                self._read()
                self._file = path.open("ab", buffering=0)
            except BaseException:
                self._lock.close()
                raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._file.close()
        self._lock.close()

    @property
    def n_done(self) -> int:
        """Lines whose answers the file held when it was opened."""
        return len(self._done)

    def missing(self, lines: Iterable[Line]) -> Iterator[Line]:
        """The lines without an answer here.

        Raises `UsageError` when an answered line is not what it was: line numbers tell whose answer
        is whose, so the input may grow but not change.
        """
        for line in lines:
            known = self._done.get(line.number)
            if known is None:
                yield line
            elif known != line.digest:
                raise UsageError(
                    f"line {line.number} of the input is not the one answered in {self._path}: "
                    "put it back, or name another --out"
                )

    def append(self, record: Record) -> None:
        """Write one record: in one call, so that a kill leaves whole lines."""
        content = (json.dumps(record, ensure_ascii=False) + "\n").encode(errors="replace")
        with explain_os_errors(self._path):
            while content:
                content = content[self._file.write(content) :]

    def _read(self) -> None:
        """Note which lines are answered; cut off a torn line and take out errors."""
        if not self._path.exists():
            return
        n_whole = failed = 0
        with self._path.open("rb") as file:
            for n, content in enumerate(file, start=1):
                if not content.endswith(b"\n"):
                    break
                n_whole += len(content)
                record = self._record(n, content)
                if "error" in record:
                    failed += 1
                else:
                    self._done[record["line"]] = record["input"]
        os.truncate(self._path, n_whole)
        if failed:
            self._take_out_errors()

    def _record(self, n: int, content: bytes) -> Record:
        try:
            record: Record = json.loads(content)
            if {"line", "input"} <= record.keys():
                return record
        except (ValueError, AttributeError):
            pass
        raise UsageError(f"{self._path}, line {n}, is not a batch's record: name another --out")

    def _take_out_errors(self) -> None:
        kept = self._path.with_name(f".{self._path.name}.{os.getpid()}.tmp")
        try:
            with self._path.open("rb") as file, kept.open("wb") as copy:
                copy.writelines(line for line in file if "error" not in json.loads(line))
                copy.flush()
                os.fsync(copy.fileno())
            shutil.copymode(self._path, kept)
            kept.replace(self._path)
        finally:
            kept.unlink(missing_ok=True)


def _check_same(path: Path, old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    for key in sorted(old.keys() | new.keys()):
        if old.get(key) != new.get(key):
            raise UsageError(
                f"{path} was begun with {key} {_short(old.get(key))}, now it is "
                f"{_short(new.get(key))}: give the same settings, or name another --out"
            )


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."
