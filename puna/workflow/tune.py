"""A recipe for one's own chats, made from a few settings."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from puna.core.errors import UsageError
from puna.data import read_chats
from puna.workflow.recipe import Recipe
from puna.workflow.stage import origin_of

_ROW_FILL = 0.98  # of a packed row, as best-fit packing reaches
_CHARS_PER_TOKEN = 3.5  # enough to count steps; the rows themselves are packed from real tokens
_CHECKPOINTS = 5
_ROWS_AT_ONCE = 2  # bounds the memory of activations


def sft_recipe(
    model: str,
    files: Sequence[Path],
    *,
    name: str,
    epochs: float,
    learning_rate: float,
    batch_rows: int,
    row_length: int,
    seed: int | None,
) -> Recipe:
    """A recipe with the one stage ``sft``, as many steps as about ``epochs`` passes take."""
    if epochs <= 0:
        raise UsageError(f"--epochs {epochs}: give a number above 0")
    chats = [chat for path in files for chat in read_chats(path)]
    chars = sum(len(message.content) + 30 for chat in chats for message in chat.messages)
    rows = max(1.0, chars / _CHARS_PER_TOKEN / (row_length * _ROW_FILL))
    batch_rows = min(batch_rows, math.ceil(rows))  # a few chats make a few small steps
    steps = max(1, math.ceil(epochs * rows / batch_rows))
    loop = {
        "steps": steps,
        "batch_rows": batch_rows,
        "micro_rows": math.gcd(batch_rows, _ROWS_AT_ONCE),
        "learning_rate": learning_rate,
        "warmup_steps": min(steps // 10, 100),
        "checkpoint_every": max(1, steps // _CHECKPOINTS),
        "log_every": 1,
        "weight_decay": 0.0,
    }
    sft = {
        "base": model,
        "files": [str(path) for path in files],
        "row_length": row_length,
        "loop": loop,
    }
    recipe: dict[str, Any] = {"name": name, "stages": {"sft": sft}}
    if origin := origin_of(model):  # so that what was held out of the base stays held out
        recipe |= {"seed": origin.seed, "kinds": origin.kinds}
    if seed is not None:
        recipe["seed"] = seed
    return Recipe.parse(recipe, where="puna sft")
