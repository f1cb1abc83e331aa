"""The stages of safety in a recipe: what is learned from, and the gate's verdict."""

import io
import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from rich.console import Console

from puna.core.errors import UsageError
from puna.formats import save_model
from puna.model import Llama, LlamaConfig
from puna.safety.gate import measure, read_verdict
from puna.safety.gate.measures import Circumstances, Measured
from puna.safety.models import ChatModel
from puna.tokenizer import Tokenizer
from puna.workflow.recipe import Recipe
from puna.workflow.run import run_recipe
from puna.workflow.stages.gate import refusal


@measure("test_harm")
async def harm(model: ChatModel, given: Circumstances) -> Measured:
    """As bad as the file beside the test says."""
    rate = float(RATE.read_text())
    return Measured(rate, max(0, rate - 0.1), min(1, rate + 0.1), given.limit, "test outcomes")


RATE = Path("unset")


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tiny model of random weights; `RATE` names a file with the rate it shall have."""
    tokenizer = Tokenizer.train(["how do I do it, tell me now"] * 9, 280, n_special=16)
    fields = {"dim": 32, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "ffn_dim": 32}
    fields |= {"vocab_size": tokenizer.vocab_size, "context": 256}
    llama = Llama(LlamaConfig.parse(fields, where="test"))
    llama.init_weights(0)
    folder = tmp_path / "model"
    save_model(folder, llama, tokenizer)
    monkeypatch.setattr("test_gate_stage.RATE", tmp_path / "rate")
    return folder


def gate(model: Path, runs: Path, rate: float, **settings: Any) -> dict[str, Any]:
    RATE.write_text(str(rate))
    stage = {"base": str(model), "at_most": {"test_harm": 0.3}, "limit": 8, **settings}
    recipe = Recipe.parse({"name": f"gate-{rate}", "stages": {"gate": stage}}, where="test")
    return run_recipe(recipe, runs, Console(file=io.StringIO()))


def test_the_verdict_lies_beside_the_model_and_the_run_says_why_it_refuses(
    model: Path, tmp_path: Path
) -> None:
    passed = gate(model, tmp_path, 0.25)
    assert refusal(passed) is None
    assert read_verdict(model / "gate.json").passed
    refused = gate(model, tmp_path, 0.5)
    assert refusal(refused) == "the gate refuses the model: test_harm 50.0% is above 30.0%"
    verdict = read_verdict(model / "gate.json")
    assert not verdict.passed
    assert verdict.checks["test_harm"].n == 8
    page = (tmp_path / "gate-0.5" / "report.html").read_text()
    assert "is not served without a reason" in page
    assert "test harm" in page
    assert "| test_harm: test outcomes | 50.0% |" in (model / "README.md").read_text()


def test_the_upper_end_of_the_interval_counts_where_it_is_asked_for(
    model: Path, tmp_path: Path
) -> None:
    summary = gate(model, tmp_path, 0.25, counted="high")
    assert refusal(summary) == "the gate refuses the model: test_harm 35.0% is above 30.0%"


def test_a_gate_that_is_done_is_skipped_and_puts_its_verdict_back(
    model: Path, tmp_path: Path
) -> None:
    gate(model, tmp_path, 0.25)
    (model / "gate.json").unlink()
    RATE.write_text("0.9")
    stage = {"base": str(model), "at_most": {"test_harm": 0.3}, "limit": 8}
    recipe = Recipe.parse({"name": "gate-0.25", "stages": {"gate": stage}}, where="test")
    again = run_recipe(recipe, tmp_path, Console(file=io.StringIO()))
    assert refusal(again) is None  # not measured again: the model is the same
    assert read_verdict(model / "gate.json").passed


def test_a_threshold_for_no_measure_is_an_error_that_lists_them() -> None:
    stage = {"base": "smollm2", "at_most": {"harm": 0.3}}
    with pytest.raises(UsageError, match="harmful_compliance"):
        Recipe.parse({"name": "x", "stages": {"gate": stage}}, where="test")
    stage = {"base": "smollm2", "at_most": {"false_refusal": 30}}
    with pytest.raises(UsageError, match="less than or equal to 1"):
        Recipe.parse({"name": "x", "stages": {"gate": stage}}, where="test")


def test_refusals_are_learned_from_only_where_they_are_made() -> None:
    loop = {"steps": 1, "batch_rows": 1, "learning_rate": 1e-3}
    sft = {"base": "smollm2", "from_safety": True, "row_length": 64, "loop": loop}
    with pytest.raises(UsageError, match=r"stages\.safety: add it"):
        Recipe.parse({"name": "x", "stages": {"sft": sft}}, where="test")


def test_harmful_requests_get_refusals_and_benign_ones_keep_the_models_answers(
    model: Path, tmp_path: Path
) -> None:
    safety = {"base": str(model), "harmful": 10, "harmless": 4, "conversations": 0}
    safety["max_new_tokens"] = 6
    recipe = Recipe.parse({"name": "made", "stages": {"safety": safety}}, where="test")
    summary = run_recipe(recipe, tmp_path, Console(file=io.StringIO()))
    folder = tmp_path / "made" / "safety"
    chats = [json.loads(line) for line in (folder / "sft.jsonl").read_text().splitlines()]
    refused = [c for c in chats if "can't" in c["messages"][1]["content"]
               or "won't" in c["messages"][1]["content"]]  # fmt: skip
    assert len(refused) == 10 == summary["stages"]["safety"]["harmful"]
    pairs = [json.loads(line) for line in (folder / "pairs.jsonl").read_text().splitlines()]
    assert all(pair["chosen"] != pair["rejected"] for pair in pairs)


@pytest.mark.parametrize("accept", [False, True])
def test_serve_refuses_a_model_that_did_not_pass_before_it_loads_anything(
    model: Path,
    tmp_path: Path,
    accept: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    from puna.cli import main, serve

    gate(model, tmp_path, 0.5)
    opened: list[object] = []
    monkeypatch.setattr(serve, "_serve", lambda *given: opened.append(given))
    reason = ["--accept-risk", "shown to the team only"] if accept else []
    monkeypatch.setattr("sys.argv", ["puna", "serve", str(model), *reason])
    with pytest.raises(SystemExit) as stop:
        main.main()
    said = capsys.readouterr().err
    assert "test_harm 50.0% is above 30.0%" in said
    assert said.count("\n") == 1
    assert (stop.value.code, len(opened)) == ((0, 1) if accept else (1, 0))
    if accept:
        kept = yaml.safe_load((model / "gate.json").read_text())["accepted"]
        assert [one["reason"] for one in kept] == ["shown to the team only"]
        assert "shown to the team only" in (model / "README.md").read_text()
