"""The commands that make a model fit where it is to run: distill, qat."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from puna.cli.recipes import AsJson, Runs, carry_out
from puna.cli.training import (
    Base,
    BatchRows,
    ChatData,
    ChatForm,
    ChatFormat,
    Epochs,
    LearningRate,
    Optimizer,
    Recompute,
    RowLength,
    RunName,
    RunSeed,
    Samples,
    TooLong,
)

_LEARNING_RATES = {"distill": 1e-4, "qat": 2e-5}


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(distill)
    app.command()(qat)


def distill(
    model: Base,
    teacher: Annotated[
        str, typer.Option(metavar="MODEL", help="What to learn from; of the same tokenizer.")
    ],
    data: ChatData,
    form: ChatForm = "auto",
    name: RunName = "",
    layers: Annotated[
        int, typer.Option(min=0, help="Blocks of the student that are kept; 0 keeps all.")
    ] = 0,
    divergence: Annotated[
        Literal["forward", "reverse", "symmetric"],
        typer.Option(help="forward: cover all the teacher says; reverse: what it says most."),
    ] = "forward",
    temperature: Annotated[float, typer.Option(help="Divides the logits of both.")] = 1.0,
    label_weight: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the plain next-token loss.")
    ] = 0.0,
    epochs: Epochs = 3.0,
    learning_rate: LearningRate = None,
    batch_rows: BatchRows = 8,
    row_length: RowLength = 512,
    too_long: TooLong = "error",
    chat_format: ChatFormat = "auto",
    samples: Samples = 2,
    optimizer: Optimizer = "adamw",
    recompute: Recompute = "none",
    seed: RunSeed = None,
    runs: Runs = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Bring a small model closer to a large one, on chats of your own."""
    knobs = {"divergence": divergence, "temperature": temperature, "label_weight": label_weight}
    _carry_out(
        "distill", model, data, form, runs, name=name, as_json=as_json,
        tuning={
            "epochs": epochs, "learning_rate": learning_rate, "batch_rows": batch_rows,
            "row_length": row_length, "seed": seed, "chat_format": chat_format,
            "too_long": too_long, "loop": {"optimizer": optimizer, "recompute": recompute},
        },
        stage={"teacher": teacher, "layers": layers, "samples": samples, "distill": knobs},
    )  # fmt: skip


def qat(
    model: Base,
    data: ChatData,
    form: ChatForm = "auto",
    name: RunName = "",
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Also train without the rounding, to show the gain."),
    ] = False,
    epochs: Epochs = 3.0,
    learning_rate: LearningRate = None,
    batch_rows: BatchRows = 8,
    row_length: RowLength = 512,
    too_long: TooLong = "error",
    chat_format: ChatFormat = "auto",
    samples: Samples = 2,
    optimizer: Optimizer = "adamw",
    recompute: Recompute = "none",
    seed: RunSeed = None,
    runs: Runs = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Tune a model with the rounding of an edge device: 4-bit weights, 8-bit activations."""
    _carry_out(
        "qat", model, data, form, runs, name=name, as_json=as_json,
        tuning={
            "epochs": epochs, "learning_rate": learning_rate, "batch_rows": batch_rows,
            "row_length": row_length, "seed": seed, "chat_format": chat_format,
            "too_long": too_long, "loop": {"optimizer": optimizer, "recompute": recompute},
        },
        stage={"compare": compare, "samples": samples},
    )  # fmt: skip


def _carry_out(
    command: str, model: str, data: list[str], form: Any, runs: Path, *, name: str,
    as_json: bool, tuning: dict[str, Any], stage: dict[str, Any],
) -> None:  # fmt: skip
    """Run the one-stage recipe of ``command``."""
    from puna.workflow.single import Tuning
    from puna.workflow.tune import chat_recipe, data_file

    files = [data_file(text, form) for text in data]
    tuning["name"] = name or f"{command}-{files[0].path.name.split('.')[0]}"
    tuning["learning_rate"] = tuning["learning_rate"] or _LEARNING_RATES[command]
    carry_out(chat_recipe(command, model, files, Tuning(**tuning), **stage), runs, as_json)
