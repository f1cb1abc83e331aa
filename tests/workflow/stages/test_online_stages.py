"""Learning from rewards as a stage: it gains where it got no reward, and goes on after a kill."""

import json
from pathlib import Path
from typing import Any

import pytest
from small_models import killed_in_step, small_model

from puna.core.errors import UsageError
from puna.core.events import EventLog, read_events
from puna.formats import save_model
from puna.workflow.stages.corpus import exercises
from puna.workflow.stages.online import GRPOStage, PPOStage, run_grpo, run_ppo
from puna.workflow.stages.training import Given

LOOP = {"steps": 12, "batch_rows": 8, "learning_rate": 2e-2, "weight_decay": 0.0}
LOOP |= {"checkpoint_every": 5, "log_every": 1}
ROLLOUTS = {"prompts": 16, "max_new_tokens": 6, "missing_end_penalty": 0.0}
METHODS: dict[str, Any] = {
    "ppo": (PPOStage, run_ppo, {"ppo": {"rollouts": {**ROLLOUTS, "epochs": 2}}}),
    "grpo": (GRPOStage, run_grpo, {"grpo": {"rollouts": {**ROLLOUTS, "answers": 4}}}),
    "rloo": (
        GRPOStage,
        run_grpo,
        {"grpo": {"method": "rloo", "rollouts": {**ROLLOUTS, "answers": 4}}},
    ),
}


def lower_case(text: str, record: dict[str, Any]) -> float:
    """The share of small letters."""
    assert record["kind"] == "any"  # the row comes along
    return sum(character.islower() for character in text) / max(1, len(text))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    save_model(folder, *small_model(2))
    return folder


def prompts_file(folder: Path) -> Path:
    path = folder / "prompts.jsonl"
    rows = [{"prompt": f"Say {n}.", "kind": "any"} for n in range(40)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def learn(base: Path, folder: Path, method: str, **fields: Any) -> dict[str, Any]:
    stage, run, settings = METHODS[method]
    folder.mkdir(parents=True, exist_ok=True)
    given = {"prompts": [prompts_file(folder.parent)], "reward": f"{__name__}:lower_case"}
    config = stage.parse({"loop": LOOP, **given, **settings, **fields}, where="test")
    events = EventLog(folder.parent / "events.jsonl")
    facts: dict[str, Any] = run(
        config, Given(base, 3, exercises({"addition": 1.0}), events, {}), folder
    )
    return facts


@pytest.mark.parametrize("method", METHODS)
def test_prompts_without_a_reward_gain_too(base: Path, tmp_path: Path, method: str) -> None:
    facts = learn(base, tmp_path / method, method, loop=LOOP | {"steps": 40})
    assert (facts["prompts"], facts["held_out_prompts"]) == (36, 4)
    assert facts["held_out_reward_before"] < 0.5
    assert facts["held_out_reward"] > 0.9
    rows = [e for e in read_events(tmp_path / "events.jsonl") if e["kind"] == "rollout"]
    assert rows[-1]["reward"] > rows[0]["reward"] + 0.15
    assert {row["stage"] for row in rows} == {method}


@pytest.mark.parametrize(("method", "lora"), [("ppo", None), ("grpo", {"rank": 4})])
def test_a_killed_run_goes_on_to_the_same_weights(
    base: Path,
    tmp_path: Path,
    method: str,
    lora: dict[str, int] | None,
) -> None:
    straight = learn(base, tmp_path / "a" / method, method, lora=lora)

    with killed_in_step(7):
        learn(base, tmp_path / "b" / method, method, lora=lora)
    resumed = learn(base, tmp_path / "b" / method, method, lora=lora)
    assert resumed["held_out_reward_before"] == straight["held_out_reward_before"]
    assert resumed["held_out_reward"] == straight["held_out_reward"]
    left = [tmp_path / side / method for side in "ab"]
    weights = [(folder / "model" / "model.safetensors").read_bytes() for folder in left]
    assert weights[0] == weights[1]
    assert (left[0] / "adapter").exists() == bool(lora)


def test_a_prompt_without_room_for_its_answer_is_named_or_dropped(
    base: Path, tmp_path: Path
) -> None:
    rollouts = {"ppo": {"rollouts": {**ROLLOUTS, "max_new_tokens": 240}}}
    with pytest.raises(UsageError, match=r"line \d+: .* lower max_new_tokens") as raised:
        learn(base, tmp_path / "ppo", "ppo", **rollouts)
    assert "prompts.jsonl" in str(raised.value)
    with pytest.raises(UsageError, match="no prompts to answer"):
        learn(base, tmp_path / "ppo", "ppo", too_long="drop", **rollouts)


def test_generated_prompts_are_judged_on_problems_that_are_held_out(
    base: Path, tmp_path: Path
) -> None:
    facts = learn(
        base,
        tmp_path / "ppo",
        "ppo",
        prompts=[],
        generated_prompts=30,
        held_out_prompts=7,
        reward="puna.evaluation.questions:right_sentence",
        loop=LOOP | {"steps": 1},
    )
    assert (facts["prompts"], facts["held_out_prompts"]) == (30, 7)
