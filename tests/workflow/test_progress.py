"""The time left that the terminal shows: of the stage, and of all training."""

import io
from typing import Any

import pytest
from rich.console import Console

from puna.core.events import EventLog
from puna.workflow.progress import TerminalProgress
from puna.workflow.shipped import find_recipe

TOKENS = {"pretrain": 1000, "sft": 500, "dpo": 300}


def step(stage: str, tokens: int, left_s: float) -> dict[str, Any]:
    figures = {"stage": stage, "step": 5, "steps": 10, "loss": 0.5, "mfu": 0.1, "seconds": 1.0}
    return {**figures, "tokens": tokens, "tokens_per_s": 2.0, "left_s": left_s}


def left(event: dict[str, Any]) -> str:
    """What the line of a training step ends with."""
    target = io.StringIO()
    log = EventLog(readers=(TerminalProgress(Console(file=target, width=200)),))
    log.emit("run_start", name="a", machine={}, tokens=TOKENS)
    log.emit("train_step", **event)
    return target.getvalue().strip().rpartition(" · ")[2]


def test_what_later_stages_take_is_foretold_from_this_ones_speed() -> None:
    assert left(step("pretrain", 400, 300.0)) == "5:00 left, all training 11:40"
    assert left(step("sft", 400, 50.0)) == "0:50 left, all training 3:20"


def test_a_phase_of_a_curriculum_counts_the_phases_behind_it() -> None:
    """Its own time left ends with the phase; the stage's tokens do not."""
    assert left(step("dpo", 100, 20.0)) == "0:20 left, all training 1:40"


@pytest.mark.parametrize("stage", ["dpo", "ppo", "sft-2"])
def test_the_last_stage_and_one_that_is_not_foretold_say_their_own(stage: str) -> None:
    assert left(step(stage, 100, 100.0)) == "1:40 left"


def test_a_recipe_tells_the_tokens_of_each_stage_that_trains_without_sampling() -> None:
    tokens = find_recipe("quickstart").load([]).stages.training_tokens()
    assert list(tokens) == ["pretrain", "cpt", "sft", "reward", "dpo"]
    assert tokens["pretrain"] == 750 * 8 * 256
    assert tokens["cpt"] == (130 + 150 + 240) * 8 * 256  # its phases, not the cosine's 680 steps
