import errno
import os
from pathlib import Path
from typing import Any

import pytest

from puna.core.errors import PunaError
from puna.core.files import new_folder, sha256_folder, sha256_value, write_bytes, write_json


def names(folder: Path) -> set[str]:
    return {item.name for item in folder.iterdir()}


def test_a_folder_appears_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "model"

    def fail_half_way() -> None:
        with new_folder(target) as folder:
            (folder / "half").write_text("x")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_half_way()
    assert names(tmp_path) == set()
    with new_folder(target) as folder:
        (folder / "a").write_text("1")
    assert names(tmp_path) == {"model"}
    with pytest.raises(RuntimeError):
        fail_half_way()
    assert (target / "a").read_text() == "1"


def test_a_new_folder_replaces_the_old_one_whole(tmp_path: Path) -> None:
    for name in ("old", "new"):
        with new_folder(tmp_path / "model") as folder:
            (folder / name).write_text(name)
    assert names(tmp_path / "model") == {"new"}
    assert names(tmp_path) == {"model"}


@pytest.mark.parametrize(
    ("number", "message"),
    [(errno.ENOSPC, "the disk is full"), (errno.EACCES, "may not write")],
)
def test_a_failed_write_keeps_the_old_file_and_says_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    path = tmp_path / "state.json"
    write_json(path, {"step": 1})

    def full(_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(PunaError, match=message):
        write_json(path, {"step": 2})
    assert path.read_text() == '{\n  "step": 1\n}\n'
    assert names(tmp_path) == {"state.json"}


def test_hashes_see_names_contents_and_not_the_order_of_keys(tmp_path: Path) -> None:
    write_bytes(tmp_path / "a" / "x", b"1")
    first = sha256_folder(tmp_path)
    (tmp_path / "a" / "x").rename(tmp_path / "a" / "y")
    assert sha256_folder(tmp_path) != first
    assert sha256_value({"a": 1, "b": 2}) == sha256_value({"b": 2, "a": 1})
    assert sha256_value([1, 2]) != sha256_value([2, 1])
