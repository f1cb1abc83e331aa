"""Compiled code on the shelf: found again without compiling, and only when it fits."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from puna.inference import kept_code
from puna.inference.compiled import Step

VARYING = {0: [0], 1: [0]}


@pytest.fixture(autouse=True)
def own_shelves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(kept_code, "_shelves", lambda: tmp_path)
    return tmp_path


def _scaled(x: Tensor, y: Tensor) -> Any:
    return (x * 3 + y).sin(), x.sum(-1)


class Kept(Step):
    """A step that must find its code."""

    def _compile(self, args: Any) -> Any:
        raise AssertionError("compiled anew")


def _pair(rows: int, width: int = 8) -> tuple[Tensor, Tensor]:
    return torch.randn(rows, width), torch.randn(rows, width)


def _assert_right(step: Step, rows: int) -> None:
    x, y = _pair(rows)
    for ours, theirs in zip(step(x, y), _scaled(x, y), strict=True):
        torch.testing.assert_close(ours, theirs)


def test_what_was_compiled_once_runs_without_compiling(own_shelves: Path) -> None:
    _assert_right(Step("scaled", "", _scaled, VARYING), 5)
    assert len(list(own_shelves.iterdir())) == 1
    again = Kept("scaled", "", _scaled, VARYING)
    for rows in (5, 2, 31):
        _assert_right(again, rows)


def test_other_facts_widths_and_types_find_nothing() -> None:
    _assert_right(Step("scaled", "", _scaled, VARYING), 5)
    others = [
        (Kept("other", "", _scaled, VARYING), _pair(5)),
        (Kept("scaled", "another model", _scaled, VARYING), _pair(5)),
        (Kept("scaled", "", _scaled, VARYING), _pair(5, 9)),
        (Kept("scaled", "", _scaled, VARYING), tuple(each.double() for each in _pair(5))),
    ]
    for step, args in others:
        with pytest.raises(AssertionError, match="compiled anew"):
            step(*args)


@pytest.mark.parametrize("file", ["rule.json", "code.py", "library"])
def test_a_damaged_shelf_is_as_an_empty_one(own_shelves: Path, file: str) -> None:
    _assert_right(Step("scaled", "", _scaled, VARYING), 5)
    (kept,) = own_shelves.iterdir()
    path = next(kept.glob("*.so")) if file == "library" else kept / file
    path.unlink()
    path.write_bytes(b"(")
    _assert_right(Step("scaled", "", _scaled, VARYING), 4)
    _assert_right(Kept("scaled", "", _scaled, VARYING), 3)  # and it was mended


def test_sizes_that_were_equal_by_chance_are_told_apart_later() -> None:
    varying = {0: [0, 1], 1: [0, 1]}

    def sums(a: Tensor, b: Tensor) -> Tensor:
        return a.sum(1)[:, None] + b.sum(1)[None]

    Step("sums", "", sums, varying)(torch.randn(4, 4), torch.randn(4, 4))
    for step in (Step("sums", "", sums, varying), Kept("sums", "", sums, varying)):
        a, b = torch.randn(3, 5), torch.randn(2, 7)
        torch.testing.assert_close(step(a, b), sums(a, b))


def test_code_that_needs_inductor_is_not_kept(own_shelves: Path) -> None:
    def product(x: Tensor, y: Tensor) -> Tensor:
        return (x @ y.T).relu()

    x, y = torch.randn(64, 64), torch.randn(64, 64)
    torch.testing.assert_close(Step("product", "", product)(x, y), product(x, y))
    assert not list(own_shelves.iterdir())


def test_what_other_versions_left_goes_when_long_unused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setenv("PUNA_CACHE", str(tmp_path / "cache"))
    old, recent = (tmp_path / "cache" / "compiled" / name for name in ("old", "recent"))
    for folder in (old, recent):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    mine = kept_code._shelves.__wrapped__()
    assert mine.is_dir()
    assert recent.is_dir()
    assert not old.exists()
