"""``puna sample``: the best of many answers, kept as chats and pairs."""

import json
from pathlib import Path

import pytest
from cli_calls import Puna, assert_one_line

from puna.core.events import read_events
from puna.data import read_chats, read_pairs

ROWS = [{"question": f"What is {n} + 1?", "answer": str(n + 1)} for n in range(5)]
LAST_NUMBER = "puna.alignment.scoring:last_number"


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "asked.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in ROWS))
    return path


@pytest.fixture
def scoring(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "shortness.py").write_text("def short(text, record):\n    return -len(text)\n")
    monkeypatch.syspath_prepend(tmp_path)
    return "shortness:short"


def test_the_best_answers_are_kept_and_what_to_do_with_them_is_said(
    puna: Puna, model_folder: Path, prompts: Path, scoring: str, tmp_path: Path
) -> None:
    fixed = ("--data", prompts, "--reward", scoring, "--answers", 4, "--max-new-tokens", 40)
    done = puna("sample", model_folder, *fixed, "--runs", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    left = tmp_path / "runs" / "sample-asked" / "sample"
    assert "prompt 5/5 · best" in done.stdout
    assert f"sft MODEL --data {left / 'sft.jsonl'}" in done.stdout
    scored = [json.loads(line) for line in (left / "scored.jsonl").read_text().splitlines()]
    assert [row["prompt"][-1]["content"] for row in scored] == [r["question"] for r in ROWS]
    assert all(row["scores"] == [-len(a["text"]) for a in row["answers"]] for row in scored)
    again = puna("sample", model_folder, *fixed, "--runs", tmp_path / "runs", "--json")
    facts = json.loads(again.stdout)["stages"]["sample"]
    assert (facts["prompts"], facts["answers"]) == (5, 20)
    assert len(list(read_pairs(left / "pairs.jsonl"))) == facts["pairs"] > 0
    assert len(list(read_chats(left / "sft.jsonl"))) == facts["sft_rows"] > 0
    assert list(facts["best_of"]) == ["1", "2", "4"]
    assert facts["best_of"]["4"] > facts["best_of"]["1"] == facts["mean_score"]
    kinds = [event["kind"] for event in read_events(left.parent / "events.jsonl")]
    assert kinds.count("rejection_step") == kinds.count("stage_skip") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--data", "none.jsonl", "--reward", LAST_NUMBER), "no such file or folder: none.jsonl"),
        (("--data", "{asked}", "--reward", "no_such:thing"), "no module 'no_such'"),
        (("--data", "{asked}", "--reward", "nowhere"), "is no folder of a reward model"),
        (("--data", "{asked}", "--reward", "reward"), "is the model of stages.reward: add it"),
        (("--data", "{asked}", "--reward", LAST_NUMBER, "--answers", "1"), "answers"),
        (("--data", "{asked}", "--reward", LAST_NUMBER, "--temperature", "0"), "temperature"),
    ],
)
def test_wrong_use_of_sample_is_one_line(
    puna: Puna,
    model_folder: Path,
    prompts: Path,
    tmp_path: Path,
    arguments: tuple[str, ...],
    message: str,
) -> None:
    given = [argument.format(asked=prompts) for argument in arguments]
    done = puna("sample", model_folder, *given, "--runs", tmp_path / "runs")
    assert_one_line(done, 2, message)
