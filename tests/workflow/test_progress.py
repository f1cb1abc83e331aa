"""The time left that the terminal shows: of the stage, and of all training."""

import io
from typing import Any

import pytest
from rich.console import Console

from puna.core.events import EventLog
from puna.workflow.progress import TerminalProgress
from puna.workflow.shipped import find_recipe

WORK = {"pretrain": (100, 1000), "sft": (50, 500), "dpo": (30, 300)}


def step(stage: str, steps: int, tokens: int, left_s: float) -> dict[str, Any]:
    figures = {"stage": stage, "step": steps // 2, "steps": steps, "loss": 0.5, "mfu": 0.1}
    return {**figures, "seconds": 1.0, "tokens": tokens, "tokens_per_s": 2.0, "left_s": left_s}


def left(event: dict[str, Any]) -> str:
    """What the line of a training step ends with."""
    target = io.StringIO()
    log = EventLog(readers=(TerminalProgress(Console(file=target, width=200)),))
    log.emit("run_start", name="a", machine={}, work=WORK)
    log.emit("train_step", **event)
    return target.getvalue().strip().rpartition(" · ")[2]


def test_what_later_stages_take_is_foretold_from_this_ones_speed() -> None:
    assert left(step("pretrain", 100, 400, 300.0)) == "5:00 left, all training 11:40"
    # rows that are not full: what is left of this stage is known better from its steps
    assert left(step("sft", 50, 20, 50.0)) == "0:50 left, all training 3:20"


def test_a_phase_of_several_counts_those_behind_it() -> None:
    """Its own time left ends with the phase."""
    assert left(step("pretrain", 10, 400, 20.0)) == "0:20 left, all training 11:40"
    assert left(step("dpo", 20, 100, 20.0)) == "0:20 left, all training 1:40"


@pytest.mark.parametrize("terminal", [True, False])
def test_a_later_phase_shows_its_steps_too(terminal: bool) -> None:
    target = io.StringIO()
    reader = TerminalProgress(Console(file=target, width=200, force_terminal=terminal))
    log = EventLog(readers=(reader,))
    log.emit("run_start", name="a", machine={}, work=WORK)
    log.emit("stage_start", stage="pretrain")
    log.emit("train_step", **{**step("pretrain", 40, 400, 0.0), "step": 40})
    log.emit("train_resume", stage="pretrain", step=40, steps=90)
    log.emit("train_step", **{**step("pretrain", 90, 600, 9.0), "step": 70})
    reader.close()
    assert "step 70/90" in target.getvalue()


@pytest.mark.parametrize("stage", ["dpo", "ppo", "sft-2"])
def test_the_last_stage_and_one_that_is_not_foretold_say_their_own(stage: str) -> None:
    assert left(step(stage, 30, 10, 100.0)) == "1:40 left"


def test_a_recipe_tells_the_work_of_each_stage_that_trains_without_sampling() -> None:
    work = find_recipe("quickstart").load([]).stages.work()
    assert list(work) == ["pretrain", "cpt", "sft", "reward", "dpo"]
    assert work["pretrain"] == (620, 620 * 8 * 256)
    assert work["cpt"] == (520, 520 * 8 * 256)  # of its phases, not the cosine's 680 steps
