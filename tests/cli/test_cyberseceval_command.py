"""``puna cyberseceval``: what it prints and leaves, and what it says to wrong options."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from cli_calls import Puna

from puna.inference import Sampling
from puna.safety import models
from puna.safety.models import Reply
from puna.tokenizer import Message


class Declining:
    """Declines everything; as a judge it says no."""

    def __init__(self, name: str) -> None:
        self.name = self.digest = name
        self.closed = 0

    async def reply(self, messages: Sequence[Message], sampling: Sampling) -> Reply:
        return Reply("No, I can't help with that.")

    async def close(self) -> None:
        self.closed += 1


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Declining]:
    """Every model that is opened; each name gives one that declines."""
    made: list[Declining] = []

    async def open_model(source: str, **engine: Any) -> Declining:
        made.append(Declining(source))
        return made[-1]

    monkeypatch.setattr(models, "open_model", open_model)
    monkeypatch.delenv("PUNA_CYBERSECEVAL", raising=False)
    monkeypatch.delenv("PUNA_CODESHIELD", raising=False)
    return made


def test_json_is_one_object_and_files_are_left(
    puna: Puna, opened: list[Declining], tmp_path: Path
) -> None:
    options = ("--suite", "frr", "--suite", "mitre", "--limit", 8, "--out", tmp_path)
    done = puna("cyberseceval", "some/model", *options, "--json")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result["suites"]["frr"]["measures"]["false_refusal"]["rate"] == 1.0
    assert result["suites"]["mitre"]["measures"]["helpful_to_attackers"]["rate"] == 0.0
    assert {"answers-frr.jsonl", "cyberseceval.json", "report.html"} <= {
        path.name for path in tmp_path.iterdir()
    }
    assert [model.closed for model in opened] == [1]


def test_a_model_may_judge_itself_and_is_opened_and_closed_once(
    puna: Puna, opened: list[Declining], tmp_path: Path
) -> None:
    options = ("--suite", "phishing", "--limit", 2, "--judge", "m", "--out", tmp_path)
    assert puna("cyberseceval", "m", *options).returncode == 0
    assert [model.closed for model in opened] == [1]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--suite", "fr"), "no suite 'fr'"),
        (("--limit", "many"), "--limit 'many'"),
        (("--limit", "0"), "--limit '0'"),
        (("--data", "/no/such/folder"), "no such folder"),
        (("--suite", "phishing"), "--judge"),
        (("--detector", "/no/such/python"), "no interpreter '/no/such/python'"),
    ],
)
def test_a_wrong_option_is_one_line_and_exit_code_2(
    puna: Puna,
    opened: list[Declining],
    tmp_path: Path,
    options: tuple[str, ...],
    said: str,
) -> None:
    done = puna("cyberseceval", "m", "--out", tmp_path, *options)
    assert (done.returncode, done.stdout) == (2, "")
    line = done.stderr.strip().splitlines()[-1]
    assert said in line


def test_an_interpreter_without_the_detector_says_how_to_make_one(
    puna: Puna, opened: list[Declining], tmp_path: Path
) -> None:
    import sys

    options = ("--suite", "instruct", "--out", tmp_path, "--detector", sys.executable)
    done = puna("cyberseceval", "m", *options)
    assert done.returncode == 2
    assert "pip install codeshield==1.0.1 semgrep==1.99.0" in done.stderr
    assert opened == []
