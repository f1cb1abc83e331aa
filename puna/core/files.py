"""Writes that either happen whole or not at all, and the hashes that prove it."""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from puna.core.errors import PunaError


@contextmanager
def explain_os_errors(path: Path) -> Iterator[None]:
    """Turn the system's errors while writing ``path`` into a `PunaError` with the mend."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise PunaError(
                f"the disk is full while writing {path}: free some space and run again, "
                "finished work is kept"
            ) from error
        if error.errno in (errno.EACCES, errno.EROFS, errno.EPERM):
            raise PunaError(f"may not write {path}: choose a folder you own") from error
        raise


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_bytes(path: Path, content: bytes, *, mode: int = 0o666) -> None:
    """Write ``content`` to ``path`` atomically: readers see the old file or the new one, whole.

    The file gets the permissions ``mode``, less the process's umask.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with explain_os_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            with open(os.open(temporary, flags, mode), "wb") as handle:
                handle.write(content)
                handle.flush()
                os.fsync(handle.fileno())
            temporary.replace(path)
            _sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


def write_text(path: Path, content: str) -> None:
    """`write_bytes` for text, as UTF-8."""
    write_bytes(path, content.encode("utf-8"))


def write_json(path: Path, value: Any) -> None:
    """`write_text` for a JSON value, indented, keys in the order given."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False) + "\n")


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """Yield an empty folder that becomes ``path`` only if the body ends well.

    Every file in it is synced before the rename, so a folder under its final name is complete even
    after SIGKILL or a power cut. An existing ``path`` is replaced.
    """
    building = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with explain_os_errors(path):
        shutil.rmtree(building, ignore_errors=True)
        building.mkdir(parents=True)
        try:
            yield building
            for item in sorted(building.rglob("*")):
                if item.is_file():
                    _sync(item)
            if path.exists():
                retired = path.with_name(f".{path.name}.{os.getpid()}.old")
                path.rename(retired)
                building.rename(path)
                shutil.rmtree(retired)
            else:
                building.rename(path)
            _sync(path.parent)
        finally:
            shutil.rmtree(building, ignore_errors=True)


def remove_unfinished(folder: Path) -> None:
    """Remove what killed writers left below ``folder``: temporary files and retired folders."""
    for left in [item for end in ("tmp", "old") for item in folder.rglob(f".*.{end}")]:
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes, read in pieces."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def sha256_folder(path: Path, *, without: Collection[str] = ()) -> str:
    """Hex SHA-256 over the names and contents of all files below ``path``.

    ``without`` names files, as paths within the folder, that do not count.
    """
    digest = hashlib.sha256()
    for item in sorted(path.rglob("*")):
        name = item.relative_to(path).as_posix()
        if item.is_file() and name not in without:
            digest.update(f"{name}\0{sha256_file(item)}\n".encode())
    return digest.hexdigest()


def sha256_value(value: Any) -> str:
    """Hex SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
