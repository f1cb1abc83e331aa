"""Options that the commands which train share: how long, how fast, an adapter, memory."""

import inspect
import json
import re
from collections.abc import Callable
from dataclasses import asdict
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from puna.cli.recipes import carry_out
from puna.core.errors import UsageError

if TYPE_CHECKING:
    from puna.workflow.recipe import Recipe

Group = Callable[..., Any]

_DATA_ENDINGS = (".jsonl", ".json", ".gz", ".parquet", ".arrow", ".csv", ".txt")


def _no_data(model: str) -> str:
    """The argument MODEL; raises `UsageError` where it names data: they come with an option."""
    if model.endswith(_DATA_ENDINGS):
        raise UsageError(f"{model} is data, not a model: write smollm2 --data {model}")
    return model


Base = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="What to start from: a folder, a cached repo id, or smollm2.",
        callback=_no_data,
    ),
]
ChatData = Annotated[
    list[str],
    typer.Option(
        "--data",
        metavar="PATH[:WEIGHT]",
        help="JSONL, JSON, Parquet or a dataset's folder; several times for a mix.",
    ),
]
ChatForm = Annotated[
    Literal["auto", "messages", "sharegpt", "alpaca"],
    typer.Option("--format", help="What a row looks like."),
]
TooLong = Annotated[
    Literal["error", "cut", "drop"], typer.Option(help="What becomes of a chat longer than a row.")
]
BatchRows = Annotated[int, typer.Option(help="Packed rows in an optimizer step.")]
RowLength = Annotated[int, typer.Option(help="Tokens in a packed row.")]
Samples = Annotated[int, typer.Option(min=0, help="Answers shown while it trains.")]
RunName = Annotated[str, typer.Option("--name", help="Run folder; default: COMMAND-FILE.")]
Epochs = Annotated[float, typer.Option(help="Passes over the data.")]
LearningRate = Annotated[
    float | None, typer.Option(help="Peak learning rate; the default is larger for an adapter.")
]
ChatFormat = Annotated[
    Literal["auto", "llama3", "llama3.1", "llama3.2", "chatml"],
    typer.Option(help="How chats are written; auto: as its folder says."),
]
RunSeed = Annotated[
    int | None, typer.Option("--seed", help="Fixes what is drawn; default: the model's own, or 0.")
]

_ADAPTER = "Adapter"
Lora = Annotated[bool, typer.Option("--lora", help="Train an adapter.", rich_help_panel=_ADAPTER)]
QLora = Annotated[
    bool,
    typer.Option(
        "--qlora", help="An adapter on weights in 4 bits (NF4).", rich_help_panel=_ADAPTER
    ),
]
LoraRank = Annotated[
    int, typer.Option(min=1, help="Rank of the changes.", rich_help_panel=_ADAPTER)
]
LoraAlpha = Annotated[
    float | None,
    typer.Option(help="Their weight over the rank; default: twice it.", rich_help_panel=_ADAPTER),
]
LoraTargets = Annotated[
    str,
    typer.Option(
        help="Products with an adapter, by name or expression, separated by commas.",
        rich_help_panel=_ADAPTER,
    ),
]
RsLora = Annotated[
    bool, typer.Option("--rslora", help="Alpha over the rank's root.", rich_help_panel=_ADAPTER)
]
Dora = Annotated[
    bool, typer.Option("--dora", help="Train lengths and directions.", rich_help_panel=_ADAPTER)
]

MEMORY = "Memory"
Optimizer = Annotated[
    Literal["adamw", "adamw8bit", "muon"],
    typer.Option(help="8 bits: moments in a quarter.", rich_help_panel=MEMORY),
]
Recompute = Annotated[
    Literal["none", "selective", "full"],
    typer.Option(help="What blocks forget and compute again.", rich_help_panel=MEMORY),
]
AskEstimate = Annotated[
    bool,
    typer.Option(
        "--estimate", help="Say what memory it takes and what fits.", rich_help_panel=MEMORY
    ),
]


def run_name(command: str, data: Path) -> str:
    """Of the run folder of a command that learns from ``data``."""
    return f"{command}-" + re.sub(r"[^A-Za-z0-9_-]+", "-", data.name.split(".")[0])


def takes(**groups: Group) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command groups of options, each in place of the parameter of its name.

    The command is handed what the group's function makes of them.
    """

    def give(command: Callable[..., None]) -> Callable[..., None]:
        own = inspect.signature(command).parameters
        options = {name: inspect.signature(group).parameters for name, group in groups.items()}
        listed: list[inspect.Parameter] = []
        for name, parameter in own.items():
            listed += options[name].values() if name in options else [parameter]

        @wraps(command)
        def run(**given: Any) -> None:
            for name, group in groups.items():
                given[name] = group(**{option: given.pop(option) for option in options[name]})
            command(**given)

        named = [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in listed]
        run.__signature__ = inspect.Signature(named)  # type: ignore[attr-defined]
        run.__annotations__ = {each.name: each.annotation for each in named}
        return run

    return give


def adapter_options(
    *,
    lora: Lora = False,
    qlora: QLora = False,
    lora_rank: LoraRank = 16,
    lora_alpha: LoraAlpha = None,
    lora_targets: LoraTargets = "",
    rslora: RsLora = False,
    dora: Dora = False,
) -> dict[str, Any] | None:
    """The adapter that is asked for, as a recipe says it; None for none."""
    if not (lora or qlora or rslora or dora):
        if lora_targets or lora_alpha is not None:
            raise UsageError("--lora-targets and --lora-alpha describe an adapter: add --lora")
        return None
    adapter: dict[str, Any] = {
        "rank": lora_rank,
        "alpha": 2.0 * lora_rank if lora_alpha is None else lora_alpha,
        "rslora": rslora,
        "dora": dora,
        "base": "nf4" if qlora else "kept",
    }
    if lora_targets:
        adapter["targets"] = [target.strip() for target in lora_targets.split(",")]
    return adapter


def loop_options(
    *, optimizer: Optimizer = "adamw", recompute: Recompute = "none"
) -> dict[str, Any]:
    """What of the loop is asked for, as a recipe says it."""
    return {"optimizer": optimizer, "recompute": recompute}


def chat_options(
    *,
    epochs: Epochs = 3.0,
    learning_rate: LearningRate = None,
    batch_rows: BatchRows = 8,
    row_length: RowLength = 512,
    too_long: TooLong = "error",
    chat_format: ChatFormat = "auto",
    seed: RunSeed = None,
) -> dict[str, Any]:
    """How one learns from packed chats, by the names of `puna.workflow.single.Tuning`."""
    return locals()


def text_options(
    *,
    epochs: Epochs = 1.0,
    learning_rate: LearningRate = None,
    batch_rows: BatchRows = 8,
    row_length: RowLength = 512,
    seed: RunSeed = None,
) -> dict[str, Any]:
    """How one learns from packed texts, by the names of `puna.workflow.single.Tuning`."""
    return locals()


def start(model: str, recipe: "Recipe", runs: Path, *, estimate: bool, as_json: bool) -> None:
    """Carry out a recipe of one stage, or only say what it would take."""
    if estimate:
        _show_estimate(model, recipe, as_json)
    else:
        carry_out(recipe, runs, as_json)


def _show_estimate(model: str, recipe: "Recipe", as_json: bool) -> None:
    """Say what the one stage of a recipe takes, and what would make it fit."""
    from rich.console import Console
    from rich.table import Table

    from puna.workflow.memory import free_bytes, rungs_of

    rungs, free = rungs_of(model, recipe), free_bytes()
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
