"""The command that tunes a model on chats of one's own: sft."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from puna.cli.recipes import AsJson, Runs, carry_out
from puna.cli.training import (
    MEMORY,
    Base,
    ChatData,
    ChatForm,
    RunName,
    Samples,
    adapter_options,
    chat_options,
    loop_options,
    takes,
)

if TYPE_CHECKING:
    from puna.workflow.recipe import Recipe


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(sft)


@takes(tuning=chat_options, adapter=adapter_options, loop=loop_options)
def sft(
    *,
    model: Base,
    data: ChatData,
    form: ChatForm = "auto",
    name: RunName = "",
    tuning: dict[str, Any],
    samples: Samples = 2,
    adapter: dict[str, Any] | None,
    loop: dict[str, Any],
    estimate: Annotated[
        bool,
        typer.Option(
            "--estimate", help="Say what memory it takes and what fits.", rich_help_panel=MEMORY
        ),
    ] = False,
    runs: Runs = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Tune a model on chats of your own."""
    from puna.workflow.single import Tuning
    from puna.workflow.tune import chat_recipe, data_file

    files = [data_file(text, form) for text in data]
    tuning["learning_rate"] = tuning["learning_rate"] or (2e-4 if adapter else 1e-4)
    called = name or f"sft-{files[0].path.name.split('.')[0]}"
    asked = Tuning(name=called, lora=adapter, loop=loop, **tuning)
    recipe = chat_recipe("sft", model, files, asked, samples=samples)
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
