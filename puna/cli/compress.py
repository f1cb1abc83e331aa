"""The commands that make a model fit where it is to run: distill, qat."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from puna.cli.recipes import AsJson, Runs, carry_out
from puna.cli.training import (
    Base,
    ChatData,
    ChatForm,
    RunName,
    Samples,
    chat_options,
    loop_options,
    run_name,
    takes,
)

_LEARNING_RATES = {"distill": 1e-4, "qat": 2e-5}


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(distill)
    app.command()(qat)


@takes(tuning=chat_options, loop=loop_options)
def distill(
    *,
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
    tuning: dict[str, Any],
    samples: Samples = 2,
    loop: dict[str, Any],
    runs: Runs = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Bring a small model closer to a large one, on chats of your own."""
    knobs = {"divergence": divergence, "temperature": temperature, "label_weight": label_weight}
    _carry_out(
        "distill", model, data, form, runs, name=name, as_json=as_json,
        tuning=tuning | {"loop": loop},
        stage={"teacher": teacher, "layers": layers, "samples": samples, "distill": knobs},
    )  # fmt: skip


@takes(tuning=chat_options, loop=loop_options)
def qat(
    *,
    model: Base,
    data: ChatData,
    form: ChatForm = "auto",
    name: RunName = "",
    compare: Annotated[
        bool,
        typer.Option("--compare", help="Also train without the rounding, to show the gain."),
    ] = False,
    tuning: dict[str, Any],
    samples: Samples = 2,
    loop: dict[str, Any],
    runs: Runs = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Tune a model with the rounding of an edge device: 4-bit weights, 8-bit activations."""
    _carry_out(
        "qat", model, data, form, runs, name=name, as_json=as_json,
        tuning=tuning | {"loop": loop},
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
    tuning["name"] = name or run_name(command, files[0].path)
    tuning["learning_rate"] = tuning["learning_rate"] or _LEARNING_RATES[command]
    carry_out(chat_recipe(command, model, files, Tuning(**tuning), **stage), runs, as_json)
