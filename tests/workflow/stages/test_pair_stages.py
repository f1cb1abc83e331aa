"""Stages that learn from pairs: what is held out, what is learned, what is left behind."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from small_models import small_model
from transformers import AutoModelForSequenceClassification

from puna.alignment import RewardModel, encode_pair
from puna.alignment.reward import score_comparisons
from puna.core.errors import PunaError, UsageError
from puna.core.events import EventLog
from puna.data import read_pairs
from puna.formats import load_model, save_model
from puna.formats.peft import load_adapter
from puna.training import checkpoint
from puna.workflow.stages.corpus import exercises
from puna.workflow.stages.dpo import DPOStage, run_dpo
from puna.workflow.stages.reward import RewardStage, run_reward
from puna.workflow.stages.training import Given

LOOP = {"steps": 25, "batch_rows": 8, "learning_rate": 3e-3, "log_every": 5}
LORA = {"rank": 4, "alpha": 16.0}
STAGES = {"dpo": (DPOStage, run_dpo), "reward": (RewardStage, run_reward)}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model, tokenizer = small_model(2, ffn_dim=48)
    folder = tmp_path_factory.mktemp("models") / "base"
    save_model(folder, model, tokenizer)
    return folder


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    """Two pairs to each of 60 prompts; a fresh policy prefers the worse, shorter answer."""
    path = tmp_path / "pairs.jsonl"
    rows = [
        {"prompt": f"Is {n} big?", "chosen": f"Yes{end}", "rejected": f"No{end}"}
        for n in range(60)
        for end in (".", "!")
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def learn(
    stage: str, base: Path, folder: Path, **fields: Any
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    events: list[dict[str, Any]] = []
    config_class, run = STAGES[stage]
    config = config_class.parse({"row_length": 96, "loop": LOOP} | fields, where="test")
    log = EventLog(readers=(events.append,))
    given = Given(base, 3, exercises({"addition": 1.0}), log, {})
    folder.mkdir(exist_ok=True)
    return run(config, given, folder), events


@pytest.mark.parametrize("lora", [None, LORA])
@pytest.mark.parametrize("stage", STAGES)
def test_preferences_for_prompts_never_seen_are_learned(
    base: Path, pairs: Path, tmp_path: Path, stage: str, lora: dict[str, Any] | None
) -> None:
    settings = {"files": [pairs], "held_out_fraction": 0.2, "lora": lora}
    facts, events = learn(stage, base, tmp_path / stage, **settings)
    assert facts["held_out_pairs"] == 24, "both pairs of a prompt stand on one side"
    assert facts["pairs"] == 96
    assert facts["held_out_accuracy"] == 1.0
    assert facts["held_out_margin"] > 1.0
    told = [event for event in events if event["kind"] == "held_out_pairs"]
    assert [event["when"] for event in told] == ["before", "after"]
    assert told[0]["accuracy"] == facts["held_out_accuracy_before"] < 1.0
    assert told[1]["margin"] == facts["held_out_margin"]


def test_an_untrained_reward_model_tosses_a_coin_and_knows_it(
    base: Path, pairs: Path, tmp_path: Path
) -> None:
    facts, _ = learn("reward", base, tmp_path / "reward", files=[pairs])
    assert facts["held_out_accuracy_before"] == 0.5
    assert facts["held_out_calibration_error_before"] == 0.0
    assert facts["held_out_calibration_error"] < 0.2


def test_the_margin_is_that_of_the_model_left_behind(
    base: Path, pairs: Path, tmp_path: Path
) -> None:
    facts, _ = learn("reward", base, tmp_path / "reward", files=[pairs], lora=LORA)
    model, tokenizer = load_model(tmp_path / "reward" / "model", cls=RewardModel)
    all_pairs = [
        encode_pair(tokenizer, p.prompt, p.chosen, p.rejected, 96, p.name)
        for p in read_pairs(pairs)
    ]
    leads = [better - worse for better, worse in score_comparisons(model, all_pairs)]
    assert sum(leads) / len(leads) == pytest.approx(facts["held_out_margin"], rel=0.2)
    assert not (tmp_path / "reward" / "adapter").exists(), "without its head it would be no model"
    peer = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward" / "model")
    ids = [*all_pairs[0].prompt, *all_pairs[0].answers[0].ids]
    theirs = float(peer(torch.tensor([ids])).logits.detach())
    assert theirs == pytest.approx(score_comparisons(model, all_pairs[:1])[0][0], rel=1e-3)


def test_the_adapter_of_dpo_on_its_base_is_the_model_left_behind(
    base: Path, pairs: Path, tmp_path: Path
) -> None:
    learn("dpo", base, tmp_path / "dpo", files=[pairs], lora=LORA)
    merged, _ = load_model(tmp_path / "dpo" / "model")
    model, _ = load_model(base)
    load_adapter(tmp_path / "dpo" / "adapter", model)
    ids_bt = torch.arange(12)[None]
    torch.testing.assert_close(model(ids_bt), merged(ids_bt), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_that_was_stopped_ends_as_one_that_was_not(
    base: Path, pairs: Path, tmp_path: Path, stage: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = {"files": [pairs], "loop": LOOP | {"steps": 6, "checkpoint_every": 2}}
    straight, _ = learn(stage, base, tmp_path / "straight", **settings)
    save, calls = checkpoint.save_file, 0

    def fills_up(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(28, "No space left on device")
        save(*arguments)

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "save_file", fills_up)
        with pytest.raises(PunaError, match="the disk is full"):
            learn(stage, base, tmp_path / "stopped", **settings)
    resumed, events = learn(stage, base, tmp_path / "stopped", **settings)
    assert [e["step"] for e in events if e["kind"] == "train_resume"] == [2]
    timing = ("train_seconds", "tokens_per_s")
    assert {k: v for k, v in resumed.items() if k not in timing} == {
        k: v for k, v in straight.items() if k not in timing
    }


def test_generated_pairs_are_judged_on_problems_held_out(base: Path, tmp_path: Path) -> None:
    settings = {"generated_pairs": 40, "held_out_fraction": 0.25, "row_length": 192}
    facts, _ = learn("reward", base, tmp_path / "reward", **settings)
    assert (facts["pairs"], facts["held_out_pairs"]) == (40, 10)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "no pairs: set files, generated_pairs"),
        ({"generated_pairs": 4, "row_length": 9}, "tokens exceed the row length of 9"),
        ({"generated_pairs": 4, "row_length": 9, "too_long": "drop"}, "no pair is left"),
    ],
)
def test_what_cannot_be_learned_from_is_named(
    base: Path, tmp_path: Path, fields: dict[str, Any], message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        learn("reward", base, tmp_path / "reward", **fields)
