"""The commands that learn from preferences: dpo, reward."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from puna.cli.recipes import AsJson, Runs
from puna.cli.training import (
    AskEstimate,
    Base,
    ChatFormat,
    Epochs,
    LearningRate,
    RunName,
    RunSeed,
    adapter_options,
    loop_options,
    run_name,
    start,
    takes,
)

_METHOD = "Method"
# Of all weights, and of an adapter.
_LEARNING_RATES = {"dpo": (5e-6, 5e-5), "reward": (2e-5, 2e-4)}
PairData = Annotated[
    list[Path],
    typer.Option(
        "--data",
        metavar="PATH",
        help="Rows with chosen and rejected, with or without prompt; several times for more.",
    ),
]
BatchPairs = Annotated[int, typer.Option(min=1, help="Pairs in an optimizer step.")]
PairLength = Annotated[int, typer.Option(min=8, help="Longest conversation, in tokens.")]
PairTooLong = Annotated[
    Literal["error", "drop"], typer.Option(help="What becomes of a pair longer than that.")
]
HeldOut = Annotated[
    float, typer.Option(help="Share of the prompts to judge on, before and after; 500 at most.")
]


def _pair_options(
    *,
    epochs: Epochs = 1.0,
    learning_rate: LearningRate = None,
    batch_rows: BatchPairs = 16,
    row_length: PairLength = 512,
    too_long: PairTooLong = "error",
    chat_format: ChatFormat = "auto",
    seed: RunSeed = None,
) -> dict[str, Any]:
    """How one learns from pairs, by the names of `puna.workflow.single.Tuning`."""
    return locals()


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(dpo)
    app.command()(reward)


@takes(tuning=_pair_options, adapter=adapter_options, loop=loop_options)
def dpo(
    *,
    model: Base,
    data: PairData,
    name: RunName = "",
    loss: Annotated[
        Literal["dpo", "ipo", "hinge"],
        typer.Option(help="What is made of a pair's margin.", rich_help_panel=_METHOD),
    ] = "dpo",
    beta: Annotated[
        float,
        typer.Option(help="Weight of the pull to the first model.", rich_help_panel=_METHOD),
    ] = 0.1,
    label_smoothing: Annotated[
        float, typer.Option(help="Share of wrong labels (cDPO).", rich_help_panel=_METHOD)
    ] = 0.0,
    length_normalised: Annotated[
        bool,
        typer.Option(
            "--length-normalised",
            help="Compare per token; beta is then about 5.",
            rich_help_panel=_METHOD,
        ),
    ] = False,
    nll_weight: Annotated[
        float,
        typer.Option(help="Weight of the better answer's likelihood.", rich_help_panel=_METHOD),
    ] = 0.2,
    tuning: dict[str, Any],
    held_out: HeldOut = 0.05,
    adapter: dict[str, Any] | None,
    loop: dict[str, Any],
    estimate: AskEstimate = False,
    runs: Runs = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Make the better of two answers more likely, by pairs of your own (DPO)."""
    knobs = {
        "loss": loss, "beta": beta, "label_smoothing": label_smoothing,
        "length_normalised": length_normalised, "nll_weight": nll_weight,
    }  # fmt: skip
    _carry_out(
        "dpo", model, data, runs, name=name, held_out=held_out, knobs=knobs, as_json=as_json,
        estimate=estimate,
        tuning=tuning | {"lora": adapter, "loop": loop},
    )  # fmt: skip


@takes(tuning=_pair_options, adapter=adapter_options, loop=loop_options)
def reward(
    *,
    model: Base,
    data: PairData,
    name: RunName = "",
    margin: Annotated[
        float,
        typer.Option(
            min=0, help="By how much the better should lead; Llama 3: 0.", rich_help_panel=_METHOD
        ),
    ] = 0.0,
    tuning: dict[str, Any],
    held_out: HeldOut = 0.05,
    adapter: dict[str, Any] | None,
    loop: dict[str, Any],
    estimate: AskEstimate = False,
    runs: Runs = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Train a judge: a number for any answer, by pairs of your own (Bradley-Terry)."""
    _carry_out(
        "reward", model, data, runs, name=name, held_out=held_out, knobs={"margin": margin},
        as_json=as_json, estimate=estimate,
        tuning=tuning | {"lora": adapter, "loop": loop},
    )  # fmt: skip


def _carry_out(
    command: str, model: str, data: list[Path], runs: Path, *, name: str, held_out: float,
    knobs: dict[str, Any], as_json: bool, estimate: bool, tuning: dict[str, Any],
) -> None:  # fmt: skip
    """Run the one-stage recipe of ``command``."""
    from puna.workflow.preferences import pair_recipe
    from puna.workflow.single import Tuning

    tuning["name"] = name or run_name(command, data[0])
    whole, adapter = _LEARNING_RATES[command]
    tuning["learning_rate"] = tuning["learning_rate"] or (adapter if tuning["lora"] else whole)
    recipe = pair_recipe(command, model, data, Tuning(**tuning), held_out=held_out, knobs=knobs)
    start(model, recipe, runs, estimate=estimate, as_json=as_json)
