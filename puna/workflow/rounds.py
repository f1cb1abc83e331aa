"""Rounds of post-training, each a small recipe of its own in a folder of the run.

The stages of a round see its artifacts by the names that stages have (``reward``, ``sample``,
``sft``), and those of the recipe. Each is a stage like any other: a finished one is skipped, a
killed one goes on.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from puna.core.config import Config
from puna.core.errors import UsageError
from puna.formats import average_models
from puna.workflow.stages.rounds import RoundsStage
from puna.workflow.stages.training import MODEL, FromModel

if TYPE_CHECKING:
    from puna.workflow.run import Run

Tune = Callable[["Run", str, FromModel], None]
"""``(run, name, config)``: carry out a stage that starts from a model."""
Judge = Callable[["Run", str, str], None]
"""``(run, stage, name)``: judge the model that a stage left, under a name."""
AVERAGE = "average"


class _Average(Config):
    """How the models of a round are averaged."""

    weights: tuple[float, ...]
    """What each counts; empty: all alike."""


def carry_out_rounds(run: "Run", config: RoundsStage, tune: Tune, judge: Judge) -> None:
    """All rounds, one after the other; the recipe goes on from the best model or the newest."""
    usual = config.usual_base if config.usual_base in run.done else run.policy
    base = config.base or usual
    sampler = config.sampler or run.policy or base
    left: list[str] = []
    for number in range(1, config.count + 1):
        _check_collected(run, config, number, sampler)
        left.append(_round(run, config, number, base, sampler, tune))
        judge(run, left[-1], f"round-{number}")
        sampler = run.policy = _best(run, config, left)


def _round(
    run: "Run", config: RoundsStage, number: int, base: str, sampler: str, tune: Tune
) -> str:
    """One round; returns the stage that left its model, as the run calls it."""
    place = f"round-{number}"
    part = replace(
        run,
        recipe=_unjudged(run.recipe),  # a round is judged once, by its result
        folder=run.folder / place,
        events=run.events.within(place),
        done=dict(run.done),
    )
    if config.reward:
        tune(part, "reward", _from(config.reward, config, base, _pairs(config, number, number)))
    first = {"generated_from": (number - 1) * config.sample.generated_prompts}
    tune(part, "sample", _from(config.sample, config, sampler, first))
    tune(part, "sft", _from(config.sft, config, base if config.sft_from == "base" else sampler))
    variants = ["dpo"] if len(config.dpo) == 1 else [f"dpo-{n + 1}" for n in range(len(config.dpo))]
    for name, dpo in zip(variants, config.dpo, strict=True):
        tune(part, name, _from(dpo, config, "sft", _pairs(config, number, config.newest)))
    result = variants[0] if variants else "sft"
    if len(variants) > 1:
        result = _average(part, config, variants)
    made = {
        name: artifact for name, artifact in part.done.items() if run.done.get(name) is not artifact
    }
    run.done |= {f"{place}/{name}": artifact for name, artifact in made.items()}
    return f"{place}/{result}"


def _unjudged(recipe: Any) -> Any:
    return recipe.model_copy(update={"stages": recipe.stages.model_copy(update={"evaluate": None})})


def _from(
    stage: FromModel, config: RoundsStage, base: str, changes: Mapping[str, Any] | None = None
) -> FromModel:
    """A stage of a round, started from ``base`` unless it says otherwise itself."""
    settings: dict[str, Any] = {"base": stage.base or base, **(changes or {})}
    if stage.chat_format == "auto":
        settings["chat_format"] = config.chat_format
    return stage.model_copy(update=settings)


def _pairs(config: RoundsStage, number: int, newest: int) -> dict[str, Any]:
    """Settings that name the pairs of the newest batches of a round; they follow each other."""
    last = min(number, len(config.preferences))
    first = max(0, last - newest)
    older, batches = config.preferences[:first], config.preferences[first:last]
    return {
        "files": tuple(path for batch in batches for path in batch.files),
        "generated_pairs": sum(batch.generated_pairs for batch in batches),
        "generated_from": sum(batch.generated_pairs for batch in older),
    }


def _average(part: "Run", config: RoundsStage, names: Sequence[str]) -> str:
    folders = [part.done[name].folder / MODEL for name in names]
    weights = config.average or (1.0,) * len(names)

    def work(folder: Path) -> dict[str, Any]:
        average_models(folders, folder / MODEL, weights)
        return {"models": len(folders)}

    part.stage(AVERAGE, _Average(weights=weights), [part.done[n].digest for n in names], work)
    return AVERAGE


def _best(run: "Run", config: RoundsStage, left: Sequence[str]) -> str:
    """The stage whose model was judged best, the newest of equals; or simply the newest."""
    if not config.best_by:
        return left[-1]
    figures = [
        run.done[f"evaluate-round-{n}"].facts[config.best_by] for n in range(1, len(left) + 1)
    ]
    return max(zip(figures, range(len(left)), left, strict=True))[2]


def _check_collected(run: "Run", config: RoundsStage, number: int, sampler: str) -> None:
    """Preferences of a round may be collected after the rounds before: say when it is time."""
    for path in (path for batch in config.preferences[:number] for path in batch.files):
        if not path.exists():
            model = run.folder / sampler / MODEL if sampler in run.done else sampler
            raise UsageError(
                f"round {number} learns from {path}, which is not there: write it with preferences "
                f"between answers of {model}, then run again; finished rounds are kept"
            )
