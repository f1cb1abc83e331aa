"""Recipes of one stage, made from the few settings a command takes."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from puna.core.errors import UsageError
from puna.workflow.recipe import Recipe
from puna.workflow.stage import origin_of

_CHECKPOINTS = 5
_ROWS_AT_ONCE = 2  # bounds the memory of activations


@dataclass(frozen=True)
class Tuning:
    """What a command that trains was asked for, beside model and data."""

    name: str
    epochs: float
    learning_rate: float
    batch_rows: int
    row_length: int
    seed: int | None
    chat_format: str = "auto"
    too_long: str = "error"
    lora: dict[str, Any] | None = None
    loop: dict[str, Any] | None = None
    """Further settings of the loop, e.g. those that save memory."""

    def shared(self, model: str) -> dict[str, Any]:
        """What stages that train on a model take alike, without their loop."""
        return {
            "base": model,
            "row_length": self.row_length,
            "chat_format": self.chat_format,
            "too_long": self.too_long,
            **({"lora": self.lora} if self.lora else {}),
        }

    def loop_for(self, rows: float) -> dict[str, Any]:
        """The loop's settings, as many steps as about ``epochs`` passes over ``rows`` rows take.

        Raises `UsageError` for epochs that are no passes.
        """
        if self.epochs <= 0:
            raise UsageError(f"--epochs {self.epochs}: give a number above 0")
        batch_rows = max(1, min(self.batch_rows, math.ceil(rows)))  # few rows: a few small steps
        steps = max(1, math.ceil(self.epochs * rows / batch_rows))
        return loop_of(steps, batch_rows, self.learning_rate) | (self.loop or {})


def loop_of(steps: int, batch_rows: int, learning_rate: float) -> dict[str, Any]:
    """A loop's settings for tuning: short warm-up, no decay, a few checkpoints, every step told."""
    return {
        "steps": steps,
        "batch_rows": batch_rows,
        "micro_rows": math.gcd(batch_rows, _ROWS_AT_ONCE),
        "learning_rate": learning_rate,
        "warmup_steps": min(steps // 10, 100),
        "checkpoint_every": max(1, steps // _CHECKPOINTS),
        "log_every": 1,
        "weight_decay": 0.0,
    }


def single_stage(
    stage: str,
    name: str,
    settings: dict[str, Any],
    seed: int | None,
    before: Mapping[str, Any] = MappingProxyType({}),
) -> Recipe:
    """A recipe with one stage that starts from the model ``settings["base"]``.

    Args:
        stage: its name, the command's too.
        name: of the run folder.
        settings: the stage's.
        seed: None takes the one the model was made with, so that what was held out of it stays so.
        before: stages that need no model, by name, with their settings.
    """
    recipe: dict[str, Any] = {"name": name, "stages": {**before, stage: settings}}
    if origin := origin_of(settings["base"]):
        recipe |= {"seed": origin.seed, "kinds": origin.kinds}
    if seed is not None:
        recipe["seed"] = seed
    return Recipe.parse(recipe, where=f"puna {stage}")
