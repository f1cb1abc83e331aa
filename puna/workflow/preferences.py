"""Recipes of ``puna dpo`` and ``puna reward``, made from a few settings."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from puna.core.errors import UsageError
from puna.data import read_pairs
from puna.workflow.recipe import Recipe
from puna.workflow.single import Tuning, single_stage


def pair_recipe(
    stage: str,
    model: str,
    files: Sequence[Path],
    tuning: Tuning,
    *,
    held_out: float,
    knobs: dict[str, Any],
) -> Recipe:
    """A recipe with one stage that learns from pairs, about ``epochs`` passes over them.

    Args:
        stage: ``dpo`` or ``reward``.
        held_out: share of the prompts the model is judged on.
        knobs: settings of the method itself.

    Raises `UsageError` for files without a pair.
    """
    rows = sum(map(_n_pairs, files)) * (1 - held_out)
    settings = {
        **tuning.shared(model),
        "files": [str(file) for file in files],
        "held_out_fraction": held_out,
        stage: knobs,
        "loop": tuning.loop_for(rows),
    }
    return single_stage(stage, tuning.name, settings, tuning.seed)


def _n_pairs(path: Path) -> int:
    """Pairs of a file, without the rows that say no preference: the stage tells of those."""
    unfit: list[UsageError] = []
    n = sum(1 for _ in read_pairs(path, unfit.append))
    if not n:
        raise unfit[0] if unfit else UsageError(f"{path} holds no pairs: give it a row at least")
    return n
