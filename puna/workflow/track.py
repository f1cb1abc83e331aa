"""Weights & Biases and TensorBoard as readers of events."""

import importlib
import os
from pathlib import Path
from typing import Any, Literal, Protocol

from puna.core.errors import ExtraMissing
from puna.core.events import Event

Tracker = Literal["none", "wandb", "tensorboard"]
_NOT_PLOTTED = {"time", "kind", "stage", "step", "steps"}


class TrackReader(Protocol):
    """An event reader that must be closed for its data to be complete."""

    def __call__(self, event: Event) -> None: ...

    def close(self) -> None: ...


def _import(package: str) -> Any:
    try:
        return importlib.import_module(package)
    except ImportError as error:
        name = "tensorboard" if package.startswith("torch.") else package
        raise ExtraMissing(name, f"track: {name}") from error


def _scalars(event: Event) -> dict[str, float]:
    """The plottable figures of an event, named ``stage/figure``."""
    if event["kind"] not in ("train_step", "validation", "evaluation", "rollout"):
        return {}
    return {
        f"{event['stage']}/{name}": float(value)
        for name, value in event.items()
        if name not in _NOT_PLOTTED and isinstance(value, int | float)
    }


class WandbReader:
    """Sends figures to Weights & Biases; without an account they are written offline.

    The mode is W&B's own: ``WANDB_MODE`` when set, else online with an API key, else offline.
    """

    def __init__(self, name: str, config: dict[str, Any], folder: Path) -> None:
        wandb = _import("wandb")
        known = os.environ.get("WANDB_API_KEY") or (Path.home() / ".netrc").exists()
        mode = os.environ.get("WANDB_MODE") or ("online" if known else "offline")
        self._run = wandb.init(
            project="puna", name=name, config=config, dir=str(folder), mode=mode, resume="allow"
        )

    def __call__(self, event: Event) -> None:
        if scalars := _scalars(event):
            step = {f"{event['stage']}/step": event["step"]} if "step" in event else {}
            self._run.log(scalars | step)

    def close(self) -> None:
        self._run.finish()


class TensorBoardReader:
    """Writes figures as TensorBoard event files into the run folder."""

    def __init__(self, folder: Path) -> None:
        self._writer = _import("torch.utils.tensorboard").SummaryWriter(str(folder))

    def __call__(self, event: Event) -> None:
        for name, value in _scalars(event).items():
            self._writer.add_scalar(name, value, event.get("step", 0))

    def close(self) -> None:
        self._writer.close()


def build_tracker(
    tracker: Tracker, name: str, config: dict[str, Any], folder: Path
) -> TrackReader | None:
    """The reader that ``track:`` names; raises `ExtraMissing` with the line that installs it."""
    if tracker == "wandb":
        return WandbReader(name, config, folder)
    if tracker == "tensorboard":
        return TensorBoardReader(folder / "tensorboard")
    return None
