"""Every kind of file a data set comes in gives the same rows."""

import gzip
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from puna.core.errors import ExtraMissing, UsageError
from puna.data import records
from puna.data.records import read_records

ROWS: list[dict[str, Any]] = [
    {
        "messages": [
            {"role": "user", "content": f"question {n} «é» {'x' * (n % 7)}"},
            {"role": "assistant", "content": f"answer {n}, 你好"},
        ]
    }
    for n in range(60)
]


def jsonl(path: Path) -> Path:
    path = path / "rows.jsonl"
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS))
    return path


def jsonl_gz(path: Path) -> Path:
    target = path / "rows.jsonl.gz"
    target.write_bytes(gzip.compress(jsonl(path).read_bytes()))
    return target


def json_list(path: Path) -> Path:
    path = path / "rows.json"
    path.write_text("\ufeff" + json.dumps(ROWS, indent=1, ensure_ascii=False))
    return path


def json_object(path: Path) -> Path:
    path = path / "rows.json"
    path.write_text(json.dumps({"version": 1, "data": ROWS}))
    return path


def parquet(path: Path) -> Path:
    pyarrow, parquet = (importlib.import_module(n) for n in ("pyarrow", "pyarrow.parquet"))
    target = path / "rows.parquet"
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), target, row_group_size=13)
    return target


def saved_to_disk(path: Path) -> Path:
    """The layout of ``Dataset.save_to_disk``, written by pyarrow alone."""
    pyarrow = importlib.import_module("pyarrow")
    folder = path / "saved"
    folder.mkdir()
    names = [f"data-{n:05}-of-00002.arrow" for n in range(2)]
    for name, rows in zip(names, (ROWS[:31], ROWS[31:]), strict=True):
        table = pyarrow.Table.from_pylist(rows)
        with pyarrow.ipc.new_stream(str(folder / name), table.schema) as writer:
            writer.write_table(table, max_chunksize=7)
    state = {"_data_files": [{"filename": name} for name in names]}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text("{}")
    return folder


def splits_saved_to_disk(path: Path) -> Path:
    folder = path / "splits"
    folder.mkdir()
    saved_to_disk(path).rename(folder / "train")
    (folder / "test").mkdir()
    (folder / "dataset_dict.json").write_text('{"splits": ["test", "train"]}')
    return folder


def folder_of_parquet(path: Path) -> Path:
    folder = path / "data"
    folder.mkdir()
    parquet(path).rename(folder / "train-00000-of-00001.parquet")
    (folder / "test-00000-of-00001.parquet").write_bytes(b"not read")
    (folder / "README.md").write_text("about")
    return folder


@pytest.mark.parametrize(
    "write",
    [
        jsonl,
        jsonl_gz,
        json_list,
        json_object,
        parquet,
        saved_to_disk,
        splits_saved_to_disk,
        folder_of_parquet,
    ],
)
def test_every_file_and_folder_gives_the_rows_in_order(
    tmp_path: Path, write: Callable[[Path], Path]
) -> None:
    assert [record.fields for record in read_records(write(tmp_path))] == ROWS


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64, 1000])
def test_a_list_read_in_chunks_of_any_size_is_the_list(
    tmp_path: Path, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "_CHUNK_CHARS", size)
    assert [record.fields for record in read_records(json_list(tmp_path))] == ROWS


def test_a_list_is_read_no_further_than_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "_CHUNK_CHARS", 256)
    path = tmp_path / "rows.json"
    path.write_bytes(json.dumps(ROWS * 20).encode() + b"\xff")
    reader = read_records(path)
    assert [next(reader).fields for _ in range(60)] == ROWS
    with pytest.raises(UsageError, match="not UTF-8"):
        list(reader)


def test_what_arrow_adds_to_every_row_is_taken_away(tmp_path: Path) -> None:
    pyarrow, parquet = (importlib.import_module(n) for n in ("pyarrow", "pyarrow.parquet"))
    rows = [{"a": {"x": 1}}, {"a": {"y": [{"u": 1}, {"v": 2}]}}, {"b": "z"}]
    parquet.write_table(pyarrow.Table.from_pylist([*rows, {"b": "w"}]), tmp_path / "r.parquet")
    found = [record.fields for record in read_records(tmp_path / "r.parquet")]
    assert found[0] == {"a": {"x": 1}}
    assert found[1] == {"a": {"y": [{"u": 1}, {"v": 2}]}}


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.jsonl", b'{"x": 1}\n{"x"', "a.jsonl, line 2: not valid JSON"),
        ("a.jsonl", b'{"x": 1}\n\n{"x": "\xff"}', "a.jsonl, line 3: not UTF-8"),
        ("a.jsonl", b"[1]\n", "a.jsonl, line 1: expected a JSON object, found list"),
        ("a.jsonl", b"\n\n", "a.jsonl holds no rows"),
        ("a.json", b'[{"x": 1}, {"x": }]', "a.json, item 2: not valid JSON"),
        ("a.json", b'[{"x": 1}, {"x": 2}', "a.json, item 3: not valid JSON"),
        ("a.json", b'[{"x": 1}, 5]', "a.json, item 2: expected a JSON object, found int"),
        ("a.json", b'{"x": 1}\n{"x": 2}', "one object a line is .jsonl"),
        ("a.json", b'{"rows": []}', 'one under "data"'),
        ("a.json", b'[{"x": "\xff\xff\xff\xff"}]', "a.json is not UTF-8"),
        ("a.parquet", b"PAR1 but not", "a.parquet is no whole Parquet file"),
        ("a.arrow", b"no arrow at all, nowhere", "a.arrow is no whole Arrow file"),
        ("a.csv", b"x,y", "a.csv: give a file of .jsonl, .json"),
    ],
)
def test_what_cannot_be_read_is_named(
    tmp_path: Path, name: str, content: bytes, message: str
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UsageError) as error:
        list(read_records(tmp_path / name))
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_without_a_train_split_asks_for_a_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="holds no file of"):
        list(read_records(tmp_path))
    (tmp_path / "test-0.jsonl").write_text('{"x": 1}')
    with pytest.raises(UsageError, match="no file of the split train"):
        list(read_records(tmp_path))
    (tmp_path / "dataset_dict.json").write_text('{"splits": ["a", "b"]}')
    with pytest.raises(UsageError, match="has the splits a, b: name the folder of one"):
        list(read_records(tmp_path))


def test_without_pyarrow_the_line_that_installs_it_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = parquet(tmp_path)

    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(ExtraMissing, match="pip install pyarrow"):
        list(read_records(path))


@pytest.mark.parametrize("asked", ["row.jsonl", "rows.json", "Rows.JSONL", "rows.jsonl.gz"])
def test_a_near_miss_of_a_name_is_guessed(tmp_path: Path, asked: str) -> None:
    path = jsonl(tmp_path)
    with pytest.raises(UsageError) as error:
        list(read_records(tmp_path / asked, "a row is so"))
    assert str(error.value) == (
        f"no such file or folder: {tmp_path / asked}: did you mean {path}? a row is so"
    )


def test_a_file_that_is_not_read_says_what_a_row_is(tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b\n")
    with pytest.raises(UsageError, match=r"give a file of \.jsonl, .*folder; a row is so"):
        list(read_records(tmp_path / "rows.csv", "a row is so"))
    with pytest.raises(UsageError) as error:
        list(read_records(tmp_path / "pairs.parquet", "a row is so"))
    assert "did you mean" not in str(error.value)
