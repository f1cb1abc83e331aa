"""Recipes of ``puna ppo`` and ``puna grpo``, made from a few settings."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.core.errors import UsageError
from puna.data import read_prompts
from puna.workflow.recipe import Recipe
from puna.workflow.single import loop_of, single_stage

_ROWS_AT_ONCE = 16  # answers in one pass: bounds the memory of activations


@dataclass(frozen=True)
class Learning:
    """What either command was asked for, beside model and prompts."""

    name: str
    reward: str
    n_rollouts: int
    rollouts: dict[str, Any]
    """Settings of `RolloutConfig`: prompts, answers, epochs and more."""
    knobs: dict[str, Any]
    """Further settings of the method."""
    learning_rate: float
    held_out: float
    too_long: str
    chat_format: str
    seed: int | None
    lora: dict[str, Any] | None
    loop: dict[str, Any]
    """Further settings of the loop, e.g. those that save memory."""


def online_recipe(stage: str, model: str, files: Sequence[Path], asked: Learning) -> Recipe:
    """A recipe with one stage, ``ppo`` or ``grpo``; each rollout is learned from in two halves.

    Raises `UsageError` for a file without prompts, before the model is looked for.
    """
    for file in files:
        next(read_prompts(file))
    rollouts = asked.rollouts
    if asked.n_rollouts < 1:
        raise UsageError(f"--rollouts {asked.n_rollouts}: give 1 or more")
    prompts = rollouts["prompts"]
    batch = prompts // 2 if prompts % 2 == 0 else prompts
    steps = asked.n_rollouts * rollouts["epochs"] * (prompts // batch)
    at_once = math.gcd(batch, max(1, _ROWS_AT_ONCE // rollouts["answers"]))
    settings = {
        "base": model,
        "prompts": [str(file) for file in files],
        "reward": asked.reward,
        "held_out_fraction": asked.held_out,
        "too_long": asked.too_long,
        "chat_format": asked.chat_format,
        "lora": asked.lora,
        stage: {"rollouts": rollouts, **asked.knobs},
        "loop": loop_of(steps, batch, asked.learning_rate) | {"micro_rows": at_once} | asked.loop,
    }
    return single_stage(stage, asked.name, settings, asked.seed)
