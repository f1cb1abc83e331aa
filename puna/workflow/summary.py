"""Every figure of a run in one JSON file, and the table that shows them."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.table import Table

from puna import __version__
from puna.core.devices import describe_machine
from puna.core.errors import UsageError
from puna.core.files import write_json
from puna.workflow.recipe import Recipe
from puna.workflow.stage import Artifact
from puna.workflow.stages.training import MODEL

SUMMARY = "summary.json"
_EVALUATE = "evaluate-"
_ROWS = (
    # figure, title, format
    ("bits_per_byte", "Validation bits per byte", "{:.3f}"),
    ("exact_match", "Held-out questions, exact match", "{:.1%}"),
    ("capital", "Held-out countries: capital", "{:.1%}"),
    ("continent", "Held-out countries: continent", "{:.1%}"),
    ("stop_rate", "Ends its turn", "{:.1%}"),
    ("in_format", "Answers in a known form", "{:.1%}"),
    ("full_sentences", "Answers in a full sentence", "{:.1%}"),
    ("preference_accuracy", "Held-out preference accuracy", "{:.1%}"),
)
_STAGE_ROWS = (
    # figure of a stage, its number, of what, title, format
    ("held_out_loss", "held_out_chats", "chats", "loss", "{:.3f}"),
    ("held_out_loss", "held_out_documents", "documents", "loss", "{:.3f}"),
    ("held_out_accuracy", "held_out_pairs", "pairs", "preference accuracy", "{:.1%}"),
    ("held_out_margin", "held_out_pairs", "pairs", "margin, nats", "{:.2f}"),
    ("held_out_calibration_error", "held_out_pairs", "pairs", "calibration error", "{:.3f}"),
    ("held_out_reward", "held_out_prompts", "prompts", "reward", "{:.3f}"),
)
STAGE_HEAD = ("stage", "held out", "measured", "before", "after")


def write_summary(
    folder: Path, recipe: Recipe, done: Mapping[str, Artifact], policy: str
) -> dict[str, Any]:
    """Gather the stages' figures into ``summary.json``; returns them.

    Args:
        policy: the last stage that left a model to talk to; empty for none.
    """
    summary = {
        "name": recipe.name,
        "seed": recipe.seed,
        "puna": __version__,
        "machine": describe_machine(),
        "model": str(Path(policy) / MODEL) if policy else None,
        "stages": {
            name: {"seconds": round(artifact.seconds, 2), **artifact.facts}
            for name, artifact in done.items()
            if not name.startswith(_EVALUATE)
        },
        "evaluation": {
            name.removeprefix(_EVALUATE): artifact.facts
            for name, artifact in done.items()
            if name.startswith(_EVALUATE)
        },
    }
    write_json(folder / SUMMARY, summary)
    return summary


def read_summary(folder: Path) -> dict[str, Any]:
    """The figures of a finished run; raises `UsageError` when there are none."""
    try:
        found: dict[str, Any] = json.loads((folder / SUMMARY).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{folder} holds no {SUMMARY}: name a finished run") from error
    except ValueError as error:
        raise UsageError(f"{folder / SUMMARY} is not JSON: run the recipe again") from error
    return found


def figure(facts: Mapping[str, Any], name: str) -> float | None:
    """One figure of an evaluation, or a kind of fact by its name."""
    value = facts.get(name, facts.get("facts", {}).get(name))
    return None if value is None else float(value)


def table_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """The before-and-after table as text: a head, then a row for each figure."""
    models = summary["evaluation"]
    baselines = summary["stages"].get("baselines")
    rows = [["", *models]]
    for name, title, form in _ROWS:
        values = [figure(facts, name) for facts in models.values()]
        if any(value is not None for value in values):
            rows.append([title, *("" if v is None else form.format(v) for v in values)])
        if name == "bits_per_byte" and baselines:
            rows += [
                ["  5-byte PPMd, knowing the training text", f"{baselines['ppmd']:.3f}"],
                ["  5-gram Kneser-Ney", f"{baselines['five_gram']:.3f}"],
                ["  xz -9, knowing the training text", f"{baselines['xz_primed']:.3f}"],
                ["  xz -9", f"{baselines['xz_alone']:.3f}"],
            ]
    width = len(rows[0])
    return [row + [""] * (width - len(row)) for row in rows]


def stage_rows(summary: Mapping[str, Any]) -> list[list[str]]:
    """What stages measured on data they held out, before and after; below `STAGE_HEAD`."""
    return [
        [
            stage,
            f"{facts[number]:,} {what}",
            title,
            form.format(facts[f"{name}_before"]) if f"{name}_before" in facts else "",
            form.format(facts[name]),
        ]
        for stage, facts in summary["stages"].items()
        for name, number, what, title, form in _STAGE_ROWS
        if name in facts and number in facts
    ]


def stage_table(summary: Mapping[str, Any]) -> Table:
    """The figures on held-out data for a terminal."""
    table = Table(title="On what was held out", title_justify="left")
    for name in STAGE_HEAD:
        table.add_column(name, justify="right" if name in STAGE_HEAD[3:] else "left")
    for row in stage_rows(summary):
        table.add_row(*row)
    return table


def terminal_table(summary: Mapping[str, Any]) -> Table:
    """The before-and-after table for a terminal."""
    head, *rows = table_rows(summary)
    table = Table(title="Before and after", title_justify="left")
    table.add_column("")
    for model in head[1:]:
        table.add_column(model, justify="right")
    for row in rows:
        table.add_row(*row)
    return table
