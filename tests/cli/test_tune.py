"""``puna sft``: several kinds of data, adapters, and what is said on the way."""

import importlib
import json
from pathlib import Path
from typing import Any

import pytest
from cli_calls import Puna, assert_one_line

from puna.core.events import read_events

ROWS = [
    {"conversations": [{"from": "human", "value": f"Is {n} big?"}, {"from": "gpt", "value": "No."}]}
    for n in range(40)
]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "talks.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


def sft(puna: Puna, model: Path, tmp_path: Path, *arguments: object) -> Any:
    fixed = ("--row-length", 90, "--runs", tmp_path / "runs", "--epochs", 1)
    return puna("sft", model, *fixed, *arguments)


def test_a_mix_tunes_an_adapter_and_ends_by_saying_how_to_talk_to_it(
    puna: Puna, model_folder: Path, data: Path, tmp_path: Path
) -> None:
    pyarrow, parquet = (importlib.import_module(n) for n in ("pyarrow", "pyarrow.parquet"))
    other = tmp_path / "other.parquet"
    rows = [{"instruction": f"Say {n}", "output": str(n)} for n in range(40)]
    parquet.write_table(pyarrow.Table.from_pylist(rows), other)
    mixed = ("--data", f"{data}:3", "--data", f"{other}:1")
    adapter = ("--qlora", "--lora-rank", 4, "--lora-targets", "q_proj,v_proj")
    done = sft(puna, model_folder, tmp_path, *mixed, *adapter)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "sft-talks"
    said = " ".join(done.stdout.split())
    assert "80 chats" in said
    assert "held-out loss" in said
    assert f"chat {run}/sft/model" in said
    events = list(read_events(run / "events.jsonl"))
    assert next(e["step"] for e in events if e["kind"] == "validation") == 0
    assert {e["question"][:2] for e in events if e["kind"] == "sample"} <= {"Is", "Sa"}
    config = json.loads((run / "sft" / "adapter" / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (4, 8.0)
    assert (run / "sft" / "model" / "model.safetensors").exists()


def test_the_estimate_starts_nothing(
    puna: Puna, model_folder: Path, data: Path, tmp_path: Path
) -> None:
    done = sft(puna, model_folder, tmp_path, "--data", data, "--estimate", "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    peaks = {name: parts["peak"] for name, parts in found["bytes"].items()}
    assert peaks["--qlora --recompute full"] < peaks["--lora --recompute full"]
    assert peaks["--recompute full"] < peaks["as asked"] < found["free_bytes"]
    shown = sft(puna, model_folder, tmp_path, "--data", data, "--estimate").stdout
    assert "GB are free" in shown
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "{data}:-1"), "'weight' is -1.0"),
        (("--data", "{data}:2", "--data", "{data}"), "some files have a weight and some have none"),
        (("--data", "{data}", "--format", "alpaca"), 'line 1: expected strings in "instruction"'),
        (("--data", "{data}", "--format", "csv"), "'csv' is not one of"),
        (("--data", "{data}", "--lora-alpha", "3"), "add --lora"),
        (("--data", "{data}", "--lora", "--lora-targets", "head"), "'head' fits no product"),
        (("--data", "{data}", "--chat-format", "chatml"), "it needs ['<|im_start|>'"),
        (("--data", "{data}", "--row-length", "20"), "exceed the row length of 20"),
        (("--data", "nowhere.parquet"), "no such file or folder: nowhere.parquet"),
    ],
)
def test_wrong_use_of_sft_is_one_line(
    puna: Puna,
    model_folder: Path,
    data: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    given = [argument.format(data=data) for argument in arguments]
    done = sft(puna, model_folder, tmp_path, *given)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_a_path_with_a_colon_is_a_path(puna: Puna, model_folder: Path, tmp_path: Path) -> None:
    done = sft(puna, model_folder, tmp_path, "--data", "odd:name.jsonl")
    assert_one_line(done, 2, "no such file or folder: odd:name.jsonl")
