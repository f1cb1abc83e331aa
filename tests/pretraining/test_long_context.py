"""What ``benchmarks/long_context.py`` stands on: its rows with needles."""

import importlib
import json
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


def test_rows_with_needles_are_as_long_as_they_should(script: ModuleType) -> None:
    given = yaml.safe_load((FOLDER / "long_context.yaml").read_text())
    kinds = {"needles-short": (600, 4), "needles-long": (900, 2)}  # this tokenizer knows few words
    rows_of = {name: {"row_length": n, "rows": count} for name, (n, count) in kinds.items()}
    settings = script.Settings.parse(given | {"needles": rows_of}, where="test")
    tokenizer = Tokenizer.train(
        ["the number of llama lake village river puna bridge market condor is on"] * 9,
        300,
        digit_group=1,
        n_special=16,
    )
    hay = tokenizer.encode("grass and stones ") * 300
    rows = list(script.needles(settings, tokenizer, hay))
    expected = [(name, n) for name, (n, count) in kinds.items() for _ in range(count)]
    assert [(name, len(ids)) for name, ids in rows] == expected
    assert list(script.needles(settings, tokenizer, hay)) == rows


def test_the_kept_figures_are_those_of_the_settings(script: ModuleType) -> None:
    """The picture in the docs is drawn from what these settings gave."""
    given = yaml.safe_load((FOLDER / "long_context.yaml").read_text())
    kept = json.loads(script.KEPT.read_text())
    assert kept["settings"] == given
    assert list(kept["models"]) == list(script.MODELS)
    n = given["judge"]["rows"] * given["judge"]["depths"]
    found = [sum(model["found"]["32768"]) / n for model in kept["models"].values()]
    assert found[1] == 0
    assert found[3] >= 0.95
