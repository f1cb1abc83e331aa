"""Commands on models: chat, generate, eval, convert."""

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from puna.core.errors import UsageError

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A Hugging Face folder, a GGUF file, a cached repo id, or smollm2."
    ),
]
Temperature = Annotated[float, typer.Option(min=0, help="0 takes the likeliest token.")]
TopP = Annotated[float, typer.Option("--top-p", min=0, max=1, help="Nucleus sampling.")]
MaxNewTokens = Annotated[int, typer.Option("--max-new-tokens", min=1)]
Seed = Annotated[int, typer.Option(help="Seed of the draw.")]
System = Annotated[str, typer.Option(help="System prompt.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(chat)
    app.command()(generate)
    app.command("eval")(evaluate)
    app.command()(convert)


def chat(
    model: Model,
    system: System = "",
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    max_new_tokens: MaxNewTokens = 256,
    seed: Seed = 0,
) -> None:
    """Talk to a model; /new starts over, /quit leaves."""
    from puna.cli.talk import talk
    from puna.inference import Sampling

    fields = {"temperature": temperature, "top_p": top_p, "seed": seed}
    sampling = Sampling.parse(fields | {"max_new_tokens": max_new_tokens}, where="chat")
    talk(model, system, sampling)


def generate(
    model: Model,
    prompt: Annotated[str, typer.Option(help="Text to go on from; - reads standard input.")],
    as_chat: Annotated[
        bool, typer.Option("--chat", help="Take the prompt as a user's message.")
    ] = False,
    system: System = "",
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    max_new_tokens: MaxNewTokens = 256,
    seed: Seed = 0,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Write on from a prompt, once."""
    from puna.cli.talk import write_on
    from puna.inference import Sampling

    if system and not as_chat:
        raise UsageError("--system speaks to a chat: add --chat")
    fields = {"temperature": temperature, "top_p": top_p, "seed": seed}
    sampling = Sampling.parse(fields | {"max_new_tokens": max_new_tokens}, where="generate")
    text = sys.stdin.read() if prompt == "-" else prompt
    write_on(model, text, as_chat=as_chat, system=system, sampling=sampling, as_json=as_json)


def evaluate(
    model: Model,
    questions_per_kind: Annotated[int, typer.Option(min=1, max=200)] = 40,
    pairs: Annotated[int, typer.Option(min=2)] = 300,
    seed: Annotated[
        int | None, typer.Option(help="Split of the questions; default: that of its run.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Judge a model on the held-out generated questions and preferences."""
    from puna.workflow.judge import judge, judgement_table

    facts = judge(model, questions_per_kind, pairs, seed)
    if as_json:
        print(json.dumps(facts, ensure_ascii=False))
    else:
        from rich.console import Console

        Console().print(judgement_table(model, facts))


def convert(
    source: Annotated[str, typer.Argument(metavar="SRC", help="Any MODEL.")],
    target: Annotated[Path, typer.Argument(metavar="DST", help="A folder that does not exist.")],
    bf16: Annotated[bool, typer.Option("--bf16", help="Store bf16 instead of fp32.")] = False,
) -> None:
    """Write a model as a Hugging Face folder."""
    import torch

    from puna.formats import load_model, save_model

    if target.exists():
        raise UsageError(f"{target} exists already: name a new folder")
    dtype = torch.bfloat16 if bf16 else torch.float32
    save_model(target, *load_model(source, dtype=dtype))
    print(target)
