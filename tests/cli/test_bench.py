"""``puna bench``: its figures fit together."""

import json
from pathlib import Path

import pytest
from cli_calls import Puna


def test_json_holds_figures_that_fit_together(puna: Puna, model_folder: Path) -> None:
    done = puna("bench", model_folder, "--runs", 3, "--weights", "fp32", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    for figure in (
        found["prefill"],
        found["decode"],
        found["first_token"],
        *found["batches"].values(),
    ):
        assert 0 < figure["low"] <= figure["median"] <= figure["high"]
    assert set(found["batches"]) == {"16", "64"}
    assert found["prompt"] == 48  # half of this model's context of 96
    share = found["weight_bytes"] * found["decode"]["median"] / found["bandwidth"]
    assert found["bandwidth_share"] == pytest.approx(share)
    table = json.loads((model_folder / "config.json").read_text())["vocab_size"] * 32
    assert found["weight_bytes"] == 4 * (found["parameters"] - table)  # the head is not tied


def test_the_table_names_weights_and_machine(puna: Puna, model_folder: Path) -> None:
    options = ("--weights", "int8", "--cache-weights", "int8")
    done = puna("bench", model_folder, "--runs", 1, *options)
    assert done.returncode == 0, done.stderr
    assert "int8, int8 cache" in " ".join(done.stdout.split())  # a long path breaks the title
    assert "share used in decoding" in done.stdout
    assert "median of 1" in done.stdout
