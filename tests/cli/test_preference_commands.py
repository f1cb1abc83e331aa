"""``puna dpo`` and ``puna reward``: what they leave, and what is said on the way."""

import json
from pathlib import Path
from typing import Any

import pytest
from cli_calls import Puna, assert_one_line

ADAPTER = ("--qlora", "--lora-rank", 4, "--lora-targets", "q_proj,v_proj")


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    path = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"Is {n} big?", "chosen": "Yes.", "rejected": "No."} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def learn(puna: Puna, command: str, model: Path, tmp_path: Path, *arguments: object) -> Any:
    fixed = ("--row-length", 90, "--runs", tmp_path / "runs", "--learning-rate", 0.01)
    return puna(command, model, *fixed, *arguments)


@pytest.mark.parametrize("loss", ["dpo", "ipo"])
def test_dpo_says_what_it_prefers_before_and_after(
    puna: Puna, model_folder: Path, pairs: Path, tmp_path: Path, loss: str
) -> None:
    method = ("--loss", loss, "--beta", 0.2, "--epochs", 3)
    done = learn(puna, "dpo", model_folder, tmp_path, "--data", pairs, *method, *ADAPTER)
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / "dpo-pairs"
    said = " ".join(done.stdout.split())
    assert "before · 2 held-out pairs" in said
    assert "after · 2 held-out pairs" in said
    assert f"chat {run}/dpo/model" in said
    config = json.loads((run / "dpo" / "manifest.json").read_text())["config"]
    assert (config["dpo"]["loss"], config["dpo"]["beta"]) == (loss, 0.2)
    assert config["lora"]["base"] == "nf4"
    assert (run / "dpo" / "adapter" / "adapter_config.json").exists()
    assert "preference accuracy" in (run / "report.html").read_text()


def test_reward_leaves_a_judge_and_says_what_to_do_with_it(
    puna: Puna, model_folder: Path, pairs: Path, tmp_path: Path
) -> None:
    given = ("--data", pairs, "--held-out", 0.25, "--epochs", 4, "--name", "judge")
    done = learn(puna, "reward", model_folder, tmp_path, *given)
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "judge" / "reward" / "model"
    said = " ".join(done.stdout.split())
    assert f"sample MODEL --data prompts.jsonl --reward {folder}" in said
    assert "calibration error" in said
    assert "LlamaForSequenceClassification" in (folder / "config.json").read_text()
    again = learn(puna, "reward", model_folder, tmp_path, *given, "--json")
    facts = json.loads(again.stdout)["stages"]["reward"]
    assert facts["held_out_pairs"] == 10
    assert (facts["held_out_accuracy_before"], facts["held_out_accuracy"]) == (0.5, 1.0)


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("dpo", ("--epochs", 0), "--epochs 0.0: give a number above 0"),
        ("dpo", ("--lora-targets", "q_proj"), "--lora-targets and --lora-alpha describe"),
        ("dpo", ("--loss", "ipo", "--label-smoothing", 0.1), "label_smoothing is for the loss dpo"),
        ("reward", ("--held-out", 1), "held_out_fraction"),
        ("reward", ("--data", "none.jsonl"), "none.jsonl"),
        ("reward", ("--row-length", 8), "tokens exceed the row length of 8"),
    ],
)
def test_bad_input_gets_one_line(
    puna: Puna,
    model_folder: Path,
    pairs: Path,
    tmp_path: Path,
    command: str,
    arguments: tuple[object, ...],
    message: str,
) -> None:
    done = learn(puna, command, model_folder, tmp_path, "--data", pairs, *arguments)
    assert_one_line(done, 2, message)


def test_a_file_of_no_preferences_is_named(puna: Puna, model_folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "same.jsonl"
    path.write_text(json.dumps({"prompt": "x", "chosen": "a", "rejected": "a"}) + "\n")
    done = learn(puna, "dpo", model_folder, tmp_path, "--data", path)
    assert_one_line(done, 2, "same.jsonl, line 1: chosen and rejected are equal")


def test_the_estimate_counts_both_answers_and_no_head_of_a_judge(
    puna: Puna, model_folder: Path, pairs: Path, tmp_path: Path
) -> None:
    peaks = {}
    for command in ("dpo", "reward"):
        done = learn(puna, command, model_folder, tmp_path, "--data", pairs, "--estimate", "--json")
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)["bytes"]
        peaks[command] = found["as asked"]["peak"]
        assert found["--recompute full"]["activations"] < found["as asked"]["activations"]
        assert (found["as asked"]["logits"] == 0) == (command == "reward")
    assert peaks["reward"] < peaks["dpo"]
    assert not (tmp_path / "runs").exists()
