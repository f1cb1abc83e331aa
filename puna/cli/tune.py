"""The command that tunes a model on chats of one's own: sft."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from puna.cli.recipes import AsJson, Runs, carry_out
from puna.cli.training import (
    MEMORY,
    Base,
    BatchRows,
    ChatData,
    ChatForm,
    ChatFormat,
    Dora,
    Epochs,
    LearningRate,
    Lora,
    LoraAlpha,
    LoraRank,
    LoraTargets,
    Optimizer,
    QLora,
    Recompute,
    RowLength,
    RsLora,
    RunName,
    RunSeed,
    Samples,
    TooLong,
    adapter_of,
)

if TYPE_CHECKING:
    from puna.workflow.recipe import Recipe


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(sft)


def sft(
    model: Base,
    data: ChatData,
    form: ChatForm = "auto",
    name: RunName = "",
    epochs: Epochs = 3.0,
    learning_rate: LearningRate = None,
    batch_rows: BatchRows = 8,
    row_length: RowLength = 512,
    too_long: TooLong = "error",
    chat_format: ChatFormat = "auto",
    samples: Samples = 2,
    lora: Lora = False,
    qlora: QLora = False,
    lora_rank: LoraRank = 16,
    lora_alpha: LoraAlpha = None,
    lora_targets: LoraTargets = "",
    rslora: RsLora = False,
    dora: Dora = False,
    optimizer: Optimizer = "adamw",
    recompute: Recompute = "none",
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate", help="Say what memory it takes and what fits.", rich_help_panel=MEMORY
        ),
    ] = False,
    seed: RunSeed = None,
    runs: Runs = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Tune a model on chats of your own."""
    from puna.workflow.single import Tuning
    from puna.workflow.tune import chat_recipe, data_file

    files = [data_file(text, form) for text in data]
    adapter = adapter_of(
        lora=lora, qlora=qlora, rank=lora_rank, alpha=lora_alpha, targets=lora_targets,
        rslora=rslora, dora=dora,
    )  # fmt: skip
    tuning = Tuning(
        name=name or f"sft-{files[0].path.name.split('.')[0]}",
        epochs=epochs,
        learning_rate=learning_rate or (1e-4 if adapter is None else 2e-4),
        batch_rows=batch_rows,
        row_length=row_length,
        seed=seed,
        chat_format=chat_format,
        too_long=too_long,
        lora=adapter,
        loop={"optimizer": optimizer, "recompute": recompute},
    )
    recipe = chat_recipe("sft", model, files, tuning, samples=samples)
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
