"""W&B and TensorBoard as readers of events, without an account and without the network."""

import sys
import time
from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from puna.core.errors import ExtraMissing
from puna.core.events import EventLog
from puna.workflow.track import build_tracker

STEP = {"stage": "sft", "step": 7, "steps": 9, "loss": 1.5, "mfu": 0.25}


def test_tensorboard_gets_the_figures_of_each_step(tmp_path: Path) -> None:
    tracker = build_tracker("tensorboard", "run", {}, tmp_path)
    assert tracker is not None
    log = EventLog(readers=(tracker,))
    log.emit("train_step", **STEP)
    log.emit("note", text="no figures here")
    tracker.close()
    found = EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    assert set(found.Tags()["scalars"]) == {"sft/loss", "sft/mfu"}
    (scalar,) = found.Scalars("sft/loss")
    assert (scalar.step, scalar.value) == (7, 1.5)


def test_wandb_works_offline_without_an_account(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    tracker = build_tracker("wandb", "run", {"seed": 1}, tmp_path)
    assert tracker is not None
    EventLog(readers=(tracker,)).emit("train_step", **STEP)
    tracker.close()
    (record,) = tmp_path.glob("wandb/offline-run-*/run-*.wandb")
    # W&B's own process writes the file, and on a busy machine ends after `close` has returned
    until = time.monotonic() + 30
    while b"sft/loss" not in record.read_bytes() and time.monotonic() < until:
        time.sleep(0.1)
    assert b"sft/loss" in record.read_bytes()


@pytest.mark.parametrize("tracker", ["wandb", "tensorboard"])
def test_a_missing_package_gives_the_line_that_installs_it(
    tracker: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("wandb", "torch.utils.tensorboard"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ExtraMissing, match=f"pip install {tracker}"):
        build_tracker(tracker, "run", {}, tmp_path)  # type: ignore[arg-type]


def test_no_tracker_is_no_reader(tmp_path: Path) -> None:
    assert build_tracker("none", "run", {}, tmp_path) is None
