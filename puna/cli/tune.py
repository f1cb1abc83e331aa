"""The command that tunes a model on chats of one's own: sft."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from puna.cli.recipes import AsJson, Runs, carry_out
from puna.core.errors import UsageError

if TYPE_CHECKING:
    from puna.workflow.recipe import Recipe

ChatFormatName = Literal["auto", "llama3", "llama3.1", "llama3.2", "chatml"]
FormName = Literal["auto", "messages", "sharegpt", "alpaca"]
TooLongName = Literal["error", "cut", "drop"]
OptimizerName = Literal["adamw", "adamw8bit", "muon"]
RecomputeName = Literal["none", "selective", "full"]
_ADAPTER, _MEMORY = "Adapter", "Memory"


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(sft)


def sft(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="What to start from.")],
    data: Annotated[
        list[str],
        typer.Option(
            "--data",
            metavar="PATH[:WEIGHT]",
            help="JSONL, JSON, Parquet or a dataset's folder; several times for a mix.",
        ),
    ],
    form: Annotated[FormName, typer.Option("--format", help="What a row looks like.")] = "auto",
    name: Annotated[str, typer.Option(help="Run folder; default: sft-FILE.")] = "",
    epochs: Annotated[float, typer.Option(help="Passes over the chats.")] = 3.0,
    learning_rate: Annotated[
        float | None, typer.Option(help="Peak learning rate; default: 1e-4, of an adapter 2e-4.")
    ] = None,
    batch_rows: Annotated[int, typer.Option(help="Packed rows in an optimizer step.")] = 8,
    row_length: Annotated[int, typer.Option(help="Tokens in a packed row.")] = 512,
    too_long: Annotated[
        TooLongName, typer.Option(help="What becomes of a chat longer than a row.")
    ] = "error",
    chat_format: Annotated[
        ChatFormatName,
        typer.Option(help="How chats are written; auto: as its folder says."),
    ] = "auto",
    samples: Annotated[int, typer.Option(min=0, help="Answers shown while it trains.")] = 2,
    lora: Annotated[
        bool, typer.Option("--lora", help="Train an adapter.", rich_help_panel=_ADAPTER)
    ] = False,
    qlora: Annotated[
        bool,
        typer.Option(
            "--qlora", help="An adapter on weights in 4 bits (NF4).", rich_help_panel=_ADAPTER
        ),
    ] = False,
    lora_rank: Annotated[
        int, typer.Option(min=1, help="Rank of the changes.", rich_help_panel=_ADAPTER)
    ] = 16,
    lora_alpha: Annotated[
        float | None,
        typer.Option(
            help="Their weight over the rank; default: twice it.", rich_help_panel=_ADAPTER
        ),
    ] = None,
    lora_targets: Annotated[
        str,
        typer.Option(
            help="Products with an adapter, by name or expression, separated by commas.",
            rich_help_panel=_ADAPTER,
        ),
    ] = "",
    rslora: Annotated[
        bool,
        typer.Option("--rslora", help="Alpha over the rank's root.", rich_help_panel=_ADAPTER),
    ] = False,
    dora: Annotated[
        bool,
        typer.Option("--dora", help="Train lengths and directions.", rich_help_panel=_ADAPTER),
    ] = False,
    optimizer: Annotated[
        OptimizerName, typer.Option(help="8 bits: moments in a quarter.", rich_help_panel=_MEMORY)
    ] = "adamw",
    recompute: Annotated[
        RecomputeName,
        typer.Option(help="What blocks forget and compute again.", rich_help_panel=_MEMORY),
    ] = "none",
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate", help="Say what memory it takes and what fits.", rich_help_panel=_MEMORY
        ),
    ] = False,
    seed: Annotated[
        int | None, typer.Option(help="Fixes order and split; default: the model's own, or 0.")
    ] = None,
    runs: Runs = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Tune a model on chats of your own."""
    from puna.workflow.tune import Tuning, data_file, sft_recipe

    files = [data_file(text, form) for text in data]
    adapter: dict[str, Any] | None = None
    if lora or qlora or rslora or dora:
        adapter = {
            "rank": lora_rank,
            "alpha": 2.0 * lora_rank if lora_alpha is None else lora_alpha,
            "rslora": rslora,
            "dora": dora,
            "base": "nf4" if qlora else "kept",
        }
        if lora_targets:
            adapter["targets"] = [target.strip() for target in lora_targets.split(",")]
    elif lora_targets or lora_alpha is not None:
        raise UsageError("--lora-targets and --lora-alpha describe an adapter: add --lora")
    tuning = Tuning(
        name=name or f"sft-{files[0].path.name.split('.')[0]}",
        epochs=epochs,
        learning_rate=learning_rate or (1e-4 if adapter is None else 2e-4),
        batch_rows=batch_rows,
        row_length=row_length,
        seed=seed,
        chat_format=chat_format,
        too_long=too_long,
        samples=samples,
        lora=adapter,
        loop={"optimizer": optimizer, "recompute": recompute},
    )
    recipe = sft_recipe(model, files, tuning)
    if estimate:
        _show_estimate(model, recipe, as_json)
    else:
        carry_out(recipe, runs, as_json)


def _show_estimate(model: str, recipe: "Recipe", as_json: bool) -> None:
    from rich.console import Console
    from rich.table import Table

    from puna.workflow.memory import free_bytes, sft_rungs

    rungs, free = sft_rungs(model, recipe), free_bytes()
    if as_json:
        found = {rung.name: asdict(rung.bytes) | {"peak": rung.bytes.peak} for rung in rungs}
        print(json.dumps({"free_bytes": free, "bytes": found}))
        return
    console = Console()
    parts = ", ".join(f"{name} {size:.2f}" for name, size in rungs[0].bytes.table())
    console.print(f"GB as asked: {parts}", highlight=False, soft_wrap=True)
    table = Table("at most", "fits", "with", title=f"{free / 1e9:.1f} GB are free")
    for rung in rungs:
        peak = f"{rung.bytes.peak / 1e9:.2f} GB"
        table.add_row(peak, "yes" if rung.fits else "no", rung.name)
    console.print(table)
