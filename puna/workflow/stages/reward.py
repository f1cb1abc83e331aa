"""The stage that trains a reward model on preferences."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, ClassVar

from puna.alignment import (
    Comparison,
    RankedRows,
    RewardConfig,
    RewardModel,
    RewardObjective,
    judge_rewards,
    save_reward_model,
)
from puna.alignment.reward import RewardReport
from puna.core.random import stable_seed
from puna.training import RowSource
from puna.training.loop import compute_dtype
from puna.workflow.stages.pairs import PairStage, read_stage_pairs
from puna.workflow.stages.training import Given, adapt, check_whole, open_base, train_and_save


class RewardStage(PairStage):
    """Preferences as a number for any answer; the policy goes on from the stage before."""

    leaves_policy: ClassVar[bool] = False
    """It leaves a judge, not a model to talk to."""
    usual_base: ClassVar[str] = "pretrain"
    """As Llama 3, whose reward model starts from the pretrained checkpoint."""

    reward: RewardConfig = RewardConfig()
    """The method's own knobs."""


def run_reward(config: RewardStage, given: Given, folder: Path) -> dict[str, Any]:
    """Train a reward model; with an adapter its head is trained too, and both are merged."""
    check_whole(config.loop, "a reward model's head is held whole, the layout spreads the model")
    policy, tokenizer = open_base(config, given, config.lora)
    pairs = read_stage_pairs(config, given, tokenizer)
    model = RewardModel.from_policy(policy)
    adapt(model, config.lora, given)
    model.compute_dtype = compute_dtype(config.loop, model.device)
    given.events.emit("note", text=f"{len(pairs.train):,} pairs")
    before = _tell(given, folder.name, "before", model, pairs.held_out)
    source = RowSource(RankedRows(pairs.train), stable_seed(given.seed, "reward"), config.loop)
    judged: list[RewardReport | None] = []

    def judge() -> None:
        judged.append(_tell(given, folder.name, "after", model, pairs.held_out))

    facts = train_and_save(
        model, tokenizer, RewardObjective(config.reward), source, config.loop, config.row_length,
        given.events, folder, save=save_reward_model, trained=judge,
    )  # fmt: skip
    facts |= {"pairs": len(pairs.train)}
    after = judged[0]
    if before is None or after is None:
        return facts
    return facts | {
        "held_out_pairs": after.n,
        "held_out_accuracy_before": before.accuracy,
        "held_out_accuracy": after.accuracy,
        "held_out_calibration_error_before": before.calibration_error,
        "held_out_calibration_error": after.calibration_error,
        "held_out_margin": after.mean_gap,
    }


def _tell(
    given: Given, stage: str, when: str, model: RewardModel, pairs: Sequence[Comparison]
) -> RewardReport | None:
    """Judge the model on held-out pairs, where there are any."""
    if not pairs:
        return None
    report = judge_rewards(model, pairs)
    found = asdict(report)
    found["margin"] = found.pop("mean_gap")
    given.events.emit("held_out_pairs", stage=stage, when=when, **found)
    return report
