"""What is shown of rollouts: a table in the terminal, curves in the report, figures elsewhere."""

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from puna.core.events import EventLog
from puna.workflow.plots import rollout_plots, training_steps
from puna.workflow.progress import TerminalProgress
from puna.workflow.track import build_tracker


def rollout(number: int, **more: float) -> dict[str, Any]:
    """A PPO row."""
    figures = {"reward": number / 10, "kl": 0.5, "entropy": 1.25, "clip_fraction": 0.031}
    figures |= {"length": 17.5, "ended": 1.0, "explained_variance": -0.25}
    return {"stage": "ppo", "step": 4 * number, "rollout": number, **figures, **more}


def shown(kinds: list[tuple[str, dict[str, Any]]]) -> list[str]:
    target = io.StringIO()
    log = EventLog(readers=(TerminalProgress(Console(file=target, width=60)),))
    for kind, fields in kinds:
        log.emit(kind, **fields)
    return target.getvalue().splitlines()


def test_each_rollout_is_a_row_below_one_head() -> None:
    lines = shown([("stage_start", {"stage": "ppo"})] + [("rollout", rollout(n)) for n in (1, 2)])
    head, *rows = (line.split() for line in lines[1:])
    titles = "rollout reward KL entropy clipped explained length ended"
    assert head == titles.split()
    assert [row[:2] for row in rows] == [["1", "0.100"], ["2", "0.200"]]
    assert rows[0][2:] == ["0.500", "1.250", "3.1%", "-0.25", "17.5", "100%"]
    assert len({len(line) for line in lines[1:]}) == 1  # columns stand below each other


def test_a_method_without_a_value_model_has_no_such_column() -> None:
    row = rollout(1, undecided=0.5)
    del row["explained_variance"]
    lines = shown([("rollout", row)])
    assert "explained" not in lines[0]
    assert "undecided" in lines[0]
    assert "50%" in lines[1]


def test_the_time_left_is_of_steps_that_sample_and_steps_that_do_not() -> None:
    step = {"stage": "ppo", "steps": 10, "loss": 0.5, "policy_kl": 0.0, "mfu": 0.1, "left_s": 1.0}
    step |= {"step": 5, "tokens": 1000, "seconds": 100.0, "tokens_per_s": 900.0}
    (line,) = shown([("train_step", step)])
    assert line == "  step 5/10 · loss 0.500 · 10 tokens/s · 1:40 left"


def test_curves_say_what_they_show_and_leave_out_what_was_done_again() -> None:
    events: list[dict[str, Any]] = [{"kind": "stage_start", "stage": "ppo"}]
    events += [{"kind": "rollout", **rollout(n)} for n in (1, 2)]
    events += [{"kind": "train_resume", "stage": "ppo", "step": 5}]
    events += [{"kind": "rollout", **rollout(n, reward=0.9)} for n in (2, 3)]
    rows = training_steps(events, "rollout")["ppo"]
    assert [row["reward"] for row in rows] == [0.1, 0.9, 0.9]
    reward, policy = rollout_plots("ppo", rows)
    assert "reward 0.100, then 0.900" in reward.description
    assert "KL, nats an answer" in reward.svg
    for title in ("entropy", "clipped share", "explained variance", "length"):
        assert title in policy.description
        assert title in policy.svg


def test_trackers_get_the_figures_of_each_rollout(tmp_path: Path) -> None:
    tracker = build_tracker("tensorboard", "run", {}, tmp_path)
    assert tracker is not None
    EventLog(readers=(tracker,)).emit("rollout", **rollout(3))
    tracker.close()
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    (scalar,) = found.Scalars("ppo/reward")
    assert (scalar.step, scalar.value) == (12, pytest.approx(0.3))
