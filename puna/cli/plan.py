"""The command that plans a run for machines one does not have, or says whether a recipe fits."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from puna.cli.options import Json
from puna.core.errors import UsageError

if TYPE_CHECKING:
    from puna.pretraining.planner.search import Wish

_LAYOUT, _FAILURES = "Layout (left out, the planner chooses)", "Failures"


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(plan)


def plan(
    recipe: Annotated[
        str, typer.Argument(metavar="[RECIPE]", help="Says whether its stages fit; or --model.")
    ] = "",
    model: Annotated[str, typer.Option(help="A published size, a folder, smollm2.")] = "",
    gpus: Annotated[int, typer.Option(min=1, help="How many.")] = 1,
    gpu: Annotated[str, typer.Option(help="a100, h100, h200, b200; cpu: here, measured.")] = "",
    length: Annotated[int, typer.Option(min=1, help="Tokens in a row.")] = 8192,
    tokens: Annotated[float, typer.Option(min=0, help="Tokens to train on, e.g. 15.6e12.")] = 0.0,
    batch_tokens: Annotated[float, typer.Option(min=1, help="Tokens of a step.")] = 16_777_216,
    float8: Annotated[bool, typer.Option("--float8", help="Products in 8 bits.")] = False,
    tp: Annotated[int, typer.Option(min=0, rich_help_panel=_LAYOUT)] = 0,
    cp: Annotated[int, typer.Option(min=0, rich_help_panel=_LAYOUT)] = 0,
    pp: Annotated[int, typer.Option(min=0, rich_help_panel=_LAYOUT)] = 0,
    dp: Annotated[int, typer.Option(min=0, rich_help_panel=_LAYOUT)] = 0,
    batch_per_dp: Annotated[
        int, typer.Option(min=0, help="Rows of a step for each dp part.", rich_help_panel=_LAYOUT)
    ] = 0,
    micro_rows: Annotated[
        int, typer.Option(min=0, help="Rows of one pass.", rich_help_panel=_LAYOUT)
    ] = 0,
    schedule: Annotated[
        Literal["auto", "1f1b", "interleaved", "interleaved-zero-bubble", "zbv", "dualpipev"],
        typer.Option(rich_help_panel=_LAYOUT),
    ] = "auto",
    recompute: Annotated[
        Literal["auto", "none", "selective", "full"], typer.Option(rich_help_panel=_LAYOUT)
    ] = "auto",
    gpu_mtbf: Annotated[
        float,
        typer.Option(
            min=0,
            help="Hours of one GPU per failure; Llama 3 405B had 45600. 0: no failures.",
            rich_help_panel=_FAILURES,
        ),
    ] = 0.0,
    restart_s: Annotated[
        float, typer.Option(min=0, help="From failure to training.", rich_help_panel=_FAILURES)
    ] = 300.0,
    stall_s: Annotated[
        float,
        typer.Option(
            min=0,
            help="Of a checkpoint; 0: copying it to the host.",
            rich_help_panel=_FAILURES,
        ),
    ] = 0.0,
    hardware: Annotated[
        Path | None, typer.Option(help="YAML with GPUs and prices of your own.")
    ] = None,
    show_hardware: Annotated[
        bool, typer.Option("--show-hardware", help="Print the table, to copy and change.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Compare the planner with published runs.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Plan a run from formulas, without its machines: layout, memory, speed, days, price."""
    from puna.pretraining.planner.hardware import TABLE
    from puna.pretraining.planner.hardware import hardware as find
    from puna.pretraining.planner.job import Style
    from puna.pretraining.planner.plan import Failures, plan_text
    from puna.pretraining.planner.plan import plan as make
    from puna.pretraining.planner.search import Wish
    from puna.workflow.memory import shape_of

    if show_hardware:
        print(TABLE.read_text(), end="")
        return
    if check:
        _check(as_json)
        return
    if recipe:
        if model:
            raise UsageError("plan: give a recipe or --model, not both")
        _recipe(recipe, gpu, gpus, hardware, as_json)
        return
    if not model:
        raise UsageError("plan: name a model, e.g. --model llama3-405b, or a recipe")
    wish = Wish(
        model=shape_of(model),
        gpu=find(gpu or "h100", hardware),
        n_gpus=gpus,
        row_length=length,
        batch_tokens=int(batch_tokens),
        tp=tp,
        cp=cp,
        pp=pp,
        dp=dp,
        rows=batch_per_dp,
        micro_rows=micro_rows,
        schedule=None if schedule == "auto" else schedule,
        recompute=None if recompute == "auto" else recompute,
        style=Style(float8=float8),
    )
    _within_context(wish)
    failures = Failures(gpu_mtbf, restart_s, stall_s) if gpu_mtbf else None
    figures, found = make(wish, tokens, failures)
    print(json.dumps({"model": model, **figures}) if as_json else plan_text(figures, found))


def _within_context(wish: "Wish") -> None:
    if wish.row_length > wish.model.context:
        raise UsageError(
            f"--length {wish.row_length} exceeds the model's context of {wish.model.context}: "
            "lower it, or take a model with RoPE scaling"
        )


def _check(as_json: bool) -> None:
    from puna.pretraining.planner.published import compare, published_runs

    rows: list[dict[str, Any]] = []
    for run in published_runs():
        found = compare(run)
        rows.append(
            {
                "run": run.name,
                "source": run.source,
                "fitted": run.fitted,
                "published_tflops": run.tflops or None,
                "published_tokens_per_s": run.tokens_per_s or None,
                "tflops": found.tflops,
                "tokens_per_s": found.tokens_per_s,
                "speed_error": found.speed_error,
                "published_memory_gib": run.memory_gib or None,
                "memory_gib": found.memory_gib,
                "memory_error": found.memory_error,
            }
        )
    if as_json:
        print(json.dumps({"runs": rows}))
        return
    for row in rows:
        speed = row["published_tflops"] or row["published_tokens_per_s"]
        unit = "TFLOP/s" if row["published_tflops"] else "tokens/s"
        planned = row["tflops"] if row["published_tflops"] else row["tokens_per_s"]
        memory = ""
        if row["memory_error"] is not None:
            memory = f"; {row['published_memory_gib']} GiB, {row['memory_gib']:.1f} planned"
            memory += f" ({row['memory_error']:+.0%})"
        state = "fitted on" if row["fitted"] else "held out"
        print(
            f"{row['run']} ({state}): {speed:,.0f} {unit}, {planned:,.0f} planned "
            f"({row['speed_error']:+.0%}){memory}"
        )


def _recipe(name: str, gpu: str, n_gpus: int, table: Path | None, as_json: bool) -> None:
    """Print what each stage of a recipe takes; raise `PunaError` where one does not fit."""
    from puna.core.errors import PunaError
    from puna.pretraining.planner.hardware import hardware as find
    from puna.workflow.fits import fits_of
    from puna.workflow.shipped import find_recipe

    found = find_recipe(name).load([])
    stages = fits_of(found, find(gpu, table) if gpu else None, n_gpus)
    if as_json:
        fits = all(stage.fits for stage in stages)
        print(json.dumps({"recipe": found.name, "fits": fits, "stages": [vars(s) for s in stages]}))
    else:
        for stage in stages:
            verdict = "fits" if stage.fits else "DOES NOT FIT"
            print(f"{stage.stage}: {stage.needs_gib:.1f} of {stage.free_gib:.1f} GiB, {verdict}")
            print(f"  {stage.how}")
    bad = [stage for stage in stages if not stage.fits]
    if bad:
        raise PunaError(
            f"{found.name}: {bad[0].stage} needs {bad[0].needs_gib:.1f} GiB where "
            f"{bad[0].free_gib:.1f} are: set recompute, lower micro_rows, or plan more GPUs"
        )
