"""``puna sft`` and ``puna cpt``: several kinds of data, adapters, and what is said on the way."""

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


def test_a_model_reads_on_in_texts_of_a_field(
    puna: Puna, model_folder: Path, tmp_path: Path
) -> None:
    notes, more = tmp_path / "notes.jsonl", tmp_path / "more"
    lines = [
        {"text": f"Note {n}: llamas graze at {n} by the lake, near the village."} for n in range(60)
    ]
    notes.write_text("".join(json.dumps(line) + "\n" for line in lines))
    more.mkdir()
    (more / "a.md").write_text("A longer text on llamas, alpacas and guanacos of the high plains.")
    asked = ("--data", notes, "--data", more, "--row-length", 64, "--batch-rows", 4)
    done = puna("cpt", model_folder, *asked, "--runs", tmp_path / "runs", "--json")
    assert done.returncode == 0, done.stderr
    facts = json.loads(done.stdout)["stages"]["cpt"]
    assert facts["tokens_by_source"].keys() == {"files", "files-2"}
    assert 0.5 < facts["epochs"] < 2
    assert facts["held_out_loss"] < facts["held_out_loss_before"]
    assert (tmp_path / "runs" / "cpt-notes" / "cpt" / "model" / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--data", "nowhere"), "no such file or folder: nowhere"),
        (
            ("--data", "{notes}", "--beside", "wiki"),
            "--beside wiki: no such source",
        ),
        (("--data", "{notes}", "--beside", "files"), "--beside files: no such source"),
        (("--data", "{empty}"), "there is no text in it"),
    ],
)
def test_texts_that_are_not_there_are_named(
    puna: Puna, model_folder: Path, tmp_path: Path, arguments: tuple[str, ...], said: str
) -> None:
    notes = tmp_path / "notes.txt"
    notes.write_text("llamas graze near the lake. " * 20)
    (tmp_path / "empty.jsonl").write_text("")
    names = {"notes": notes, "empty": tmp_path / "empty.jsonl"}
    given = [argument.format(**names) for argument in arguments]
    done = puna("cpt", model_folder, *given, "--runs", tmp_path / "runs")
    assert_one_line(done, 2, said)


@pytest.mark.parametrize("n", [1, 3, 12])
def test_few_texts_are_read_too(puna: Puna, model_folder: Path, tmp_path: Path, n: int) -> None:
    texts = tmp_path / "my few texts"
    texts.mkdir()
    for number in range(n):
        text = f"Text {number} says that llamas of herd {number} like dry grass and {number} ponds."
        (texts / f"{number}.txt").write_text(text)
    asked = ("--data", texts, "--row-length", 64, "--runs", tmp_path / "runs", "--json")
    done = puna("cpt", model_folder, *asked)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["stages"]
    assert found["cpt"].get("held_out_documents", 0) == found["data"]["validation_documents"]
    assert (found["data"]["validation_documents"] > 0) == (n == 12)
    assert (tmp_path / "runs" / "cpt-my-few-texts").exists()
