"""Options that the commands which train share: how long, how fast, an adapter, memory."""

from typing import Annotated, Any, Literal

import typer

from puna.core.errors import UsageError

Base = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="What to start from: a folder, a cached repo id, or smollm2.",
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


def adapter_of(
    *, lora: bool, qlora: bool, rank: int, alpha: float | None, targets: str, rslora: bool,
    dora: bool,
) -> dict[str, Any] | None:  # fmt: skip
    """The adapter that these options ask for, as a recipe says it; None for none."""
    if not (lora or qlora or rslora or dora):
        if targets or alpha is not None:
            raise UsageError("--lora-targets and --lora-alpha describe an adapter: add --lora")
        return None
    adapter: dict[str, Any] = {
        "rank": rank,
        "alpha": 2.0 * rank if alpha is None else alpha,
        "rslora": rslora,
        "dora": dora,
        "base": "nf4" if qlora else "kept",
    }
    if targets:
        adapter["targets"] = [target.strip() for target in targets.split(",")]
    return adapter
