"""Which model a stage starts from."""

from pathlib import Path
from typing import Any

import pytest

from puna.core.errors import UsageError
from puna.workflow.recipe import Recipe
from puna.workflow.stage import Artifact
from puna.workflow.stages.dpo import DPOStage
from puna.workflow.stages.reward import RewardStage
from puna.workflow.stages.training import digest_of, resolve_base

LOOP = {"steps": 1, "batch_rows": 1, "learning_rate": 0.1}
PAIRS = {"generated_pairs": 4, "row_length": 64, "loop": LOOP}
CHATS = {"generated_chats": 4, "row_length": 64, "loop": LOOP}


def done(*names: str) -> dict[str, Artifact]:
    return {
        name: Artifact(Path("run") / name, f"digest of {name}", {}, 0.0, skipped=False)
        for name in names
    }


def dpo(base: str = "") -> DPOStage:
    return DPOStage.parse({"base": base, **PAIRS}, where="test")


def test_a_stage_goes_on_from_the_policy_before_it_or_from_the_stage_it_names() -> None:
    earlier = done("pretrain", "sft")
    assert resolve_base(dpo(), "sft", earlier) == (Path("run/sft/model"), "digest of sft")
    named = resolve_base(dpo("pretrain"), "sft", earlier)
    assert named == (Path("run/pretrain/model"), "digest of pretrain")


def test_a_reward_model_starts_from_the_pretrained_model_where_there_is_one() -> None:
    reward = RewardStage.parse(PAIRS, where="test")
    assert resolve_base(reward, "sft", done("pretrain", "sft"))[1] == "digest of pretrain"
    assert resolve_base(reward, "sft", done("sft"))[1] == "digest of sft"


def test_a_model_from_elsewhere_is_known_by_its_files_or_else_its_name(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    folder = str(tmp_path)
    assert resolve_base(dpo(folder), "", {}) == (folder, digest_of(tmp_path))
    before = digest_of(tmp_path)
    (tmp_path / "config.json").write_text("{ }")
    assert resolve_base(dpo(folder), "", {})[1] != before
    assert resolve_base(dpo("smollm2"), "", {}) == ("smollm2", "smollm2")


def test_one_stage_with_a_base_is_a_whole_recipe() -> None:
    stages = {"dpo": {"base": "smollm2", **PAIRS}}
    recipe = Recipe.parse({"name": "short", "stages": stages}, where="test")
    assert [name for name, _ in recipe.stages.tuning()] == ["dpo"]


@pytest.mark.parametrize(
    ("stages", "message"),
    [
        ({"dpo": PAIRS}, "stages.dpo has no model: set stages.dpo.base"),
        ({"dpo": {"base": "sft", **PAIRS}}, "no stage 'sft' leaves a model before it"),
        (
            {"sft": {"base": "dpo", **CHATS}, "dpo": PAIRS},
            "stages.sft.base: no stage 'dpo' leaves a model before it",
        ),
        (
            {"reward": {"base": "smollm2", **PAIRS}, "dpo": PAIRS},
            "stages.dpo has no model",
        ),
    ],
)
def test_a_stage_without_a_model_is_named(stages: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        Recipe.parse({"name": "short", "stages": stages}, where="test")
