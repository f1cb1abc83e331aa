"""What ``benchmarks/long_context.py`` stands on: its rows with needles."""

import importlib
from pathlib import Path
from types import ModuleType

import pytest
import yaml

from puna.tokenizer import Tokenizer

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("long_context")


def test_rows_with_needles_are_as_long_as_what_reads_them(script: ModuleType) -> None:
    given = yaml.safe_load((FOLDER / "long_context.yaml").read_text())
    settings = script.Settings.parse(given | {"short_rows": 4, "long_rows": 2}, where="test")
    tokenizer = Tokenizer.train(
        ["the number of llama lake village river puna bridge market condor is on"] * 9,
        300,
        digit_group=1,
        n_special=16,
    )
    hay = tokenizer.encode("grass and stones ") * 300
    settings = settings.model_copy(
        update={
            "curriculum": settings.curriculum.model_copy(
                update={"phases": [settings.curriculum.phases[0].model_copy(
                    update={"row_length": 600})]}  # this tokenizer knows few words
            )
        }
    )  # fmt: skip
    rows = list(script.needles(settings, tokenizer, hay))
    stages = [stage.row_length for stage in settings.curriculum.long_context.stages]
    lengths = [600] * 4 + [length for length in stages for _ in range(2)]
    assert [len(ids) for _, ids in rows] == lengths
    assert [name for name, _ in rows] == ["needles-short"] * 4 + ["needles-long"] * 4
    assert list(script.needles(settings, tokenizer, hay)) == rows
