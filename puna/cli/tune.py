"""The commands that train a model on what one has: cpt on texts, sft on chats."""

from pathlib import Path
from typing import Annotated, Any

import typer

from puna.cli.recipes import AsJson, Runs
from puna.cli.training import (
    AskEstimate,
    Base,
    ChatData,
    ChatForm,
    RunName,
    Samples,
    adapter_options,
    chat_options,
    loop_options,
    run_name,
    start,
    takes,
    text_options,
)


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(cpt)
    app.command()(sft)


@takes(tuning=text_options, adapter=adapter_options, loop=loop_options)
def cpt(
    *,
    model: Base,
    data: Annotated[
        list[Path],
        typer.Option(
            metavar="PATH",
            help="A .txt, .md or .jsonl file (a text a line, in 'text') or a folder; repeatable.",
        ),
    ],
    beside: Annotated[
        list[str] | None,
        typer.Option(
            metavar="SOURCE",
            help="General text read beside it, against forgetting: wikipedia-en; repeatable.",
        ),
    ] = None,
    name: RunName = "",
    tuning: dict[str, Any],
    adapter: dict[str, Any] | None,
    loop: dict[str, Any],
    estimate: AskEstimate = False,
    runs: Runs = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Go on pretraining a model on texts of your field (continued pretraining)."""
    from puna.workflow.single import Tuning
    from puna.workflow.texts import text_recipe

    tuning["learning_rate"] = tuning["learning_rate"] or (2e-4 if adapter else 1e-4)
    called = name or run_name("cpt", data[0])
    asked = Tuning(name=called, lora=adapter, loop=loop, **tuning)
    recipe = text_recipe(model, data, beside or [], asked)
    start(model, recipe, runs, estimate=estimate, as_json=as_json)


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
    estimate: AskEstimate = False,
    runs: Runs = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Tune a model on chats of your own."""
    from puna.workflow.single import Tuning
    from puna.workflow.tune import chat_recipe, data_file

    files = [data_file(text, form) for text in data]
    tuning["learning_rate"] = tuning["learning_rate"] or (2e-4 if adapter else 1e-4)
    called = name or run_name("sft", files[0].path)
    asked = Tuning(name=called, lora=adapter, loop=loop, **tuning)
    recipe = chat_recipe("sft", model, files, asked, samples=samples)
    start(model, recipe, runs, estimate=estimate, as_json=as_json)
