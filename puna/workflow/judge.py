"""One model judged on the generated questions and preferences, outside a recipe."""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from rich.table import Table

from puna.core.devices import default_device
from puna.core.events import EventLog
from puna.data.generators.kinds import WEIGHTS
from puna.formats import load_model
from puna.workflow.stage import origin_of
from puna.workflow.stages.corpus import exercises
from puna.workflow.stages.evaluate import EvaluateStage, run_evaluate
from puna.workflow.summary import table_rows


def judge(model: str, questions_per_kind: int, pairs: int, seed: int | None) -> dict[str, Any]:
    """Figures of a model.

    The seed splits trained from held-out problems, so a model of a run is judged with the seed and
    kinds it was trained with, found in its stage's manifest. Another model gets all kinds, and
    seed 0 unless one is given.
    """
    config = EvaluateStage(questions_per_kind=questions_per_kind, pairs=pairs)
    origin = origin_of(model)
    kinds = origin.kinds if origin else WEIGHTS
    if seed is None:
        seed = origin.seed if origin else 0
    load = partial(load_model, model, device=default_device())
    with TemporaryDirectory() as scratch:
        return run_evaluate(config, seed, load, None, exercises(kinds), EventLog(), Path(scratch))


def judgement_table(model: str, facts: dict[str, Any]) -> Table:
    """The figures for a terminal."""
    head, *rows = table_rows({"evaluation": {model: facts}, "stages": {}})
    table = Table(*head)
    for row in rows:
        table.add_row(*row)
    for kind, value in facts["exact_match_by_kind"].items():
        table.add_row(f"  {kind}", f"{value:.1%}")
    return table
