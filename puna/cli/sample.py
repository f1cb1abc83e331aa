"""The command of rejection sampling: sample."""

from pathlib import Path
from typing import Annotated

import typer

from puna.cli.options import TopP, Weights
from puna.cli.recipes import AsJson, Runs, carry_out
from puna.cli.training import run_name


def register(app: typer.Typer) -> None:
    """Add this module's command."""
    app.command()(sample)


def sample(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="What answers.")],
    data: Annotated[
        list[Path],
        typer.Option(
            "--data", metavar="PATH", help="Prompts: rows with messages, prompt or question."
        ),
    ],
    reward: Annotated[
        str,
        typer.Option(
            metavar="REWARD", help="What scores answers: module:function, or a reward model."
        ),
    ],
    answers: Annotated[int, typer.Option(min=2, help="Answers to each prompt.")] = 16,
    temperature: Annotated[float, typer.Option(help="Of sampling.")] = 1.0,
    top_p: TopP = 1.0,
    max_new_tokens: Annotated[int, typer.Option(min=1, help="Longest answer.")] = 256,
    least_score: Annotated[
        float | None, typer.Option(help="Best answers below it are not kept as chats.")
    ] = None,
    least_gap: Annotated[
        float, typer.Option(min=0, help="Best and worst closer than this make no pair.")
    ] = 0.0,
    weights: Weights = "auto",
    name: Annotated[str, typer.Option(help="Run folder; default: sample-FILE.")] = "",
    seed: Annotated[int | None, typer.Option(help="Of the draw; default: the model's own.")] = None,
    runs: Runs = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Answer prompts many times and keep the best: chats for sft, pairs for dpo.

    Started again with the same options after an interruption, it goes on where it was.
    """
    from puna.data import read_prompts
    from puna.workflow.single import single_stage

    for path in data:  # before the model is looked for
        next(read_prompts(path))
    rejection = {
        "answers": answers,
        "temperature": temperature,
        "top_p": top_p,
        "max_new_tokens": max_new_tokens,
        "least_score": least_score,
        "least_gap": least_gap,
    }
    settings = {
        "base": model,
        "prompts": [str(path) for path in data],
        "reward": reward,
        "weights": weights,
        "rejection": rejection,
    }
    folder = name or run_name("sample", data[0])
    carry_out(single_stage("sample", folder, settings, seed), runs, as_json)
