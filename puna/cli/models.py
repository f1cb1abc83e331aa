"""Commands on models: chat, generate, bench, eval, convert."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from puna.cli.options import (
    CacheWeights,
    Compile,
    Draft,
    GuardNames,
    Json,
    MaxNewTokens,
    MinP,
    Model,
    PolicyFile,
    PrefixCache,
    RepetitionPenalty,
    Seed,
    ShieldMode,
    Speculation,
    Stop,
    System,
    Temperature,
    TensorParallel,
    TopK,
    TopP,
    Weights,
    guard_of,
    open_engine,
    sampling_of,
    shield_of,
)
from puna.core.errors import UsageError

if TYPE_CHECKING:
    from puna.inference import Engine

_BATCH = "Batch"


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(chat)
    app.command()(generate)
    app.command()(bench)
    app.command("eval")(evaluate)
    app.command()(convert)


def chat(
    model: Model,
    system: System = "",
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    max_new_tokens: MaxNewTokens = 512,
    seed: Seed = 0,
    weights: Weights = "auto",
    speculation: Speculation = None,
    draft: Draft = None,
    compiled: Compile = False,
    cache_weights: CacheWeights = "auto",
    prefix_cache: PrefixCache = True,
    tensor_parallel: TensorParallel = 1,
    shield: ShieldMode = "warn",
    guard: GuardNames = None,
    policy: PolicyFile = None,
) -> None:
    """Talk to a model; /help lists what else one can type."""
    from rich.console import Console

    from puna.cli.talk import talk
    from puna.cli.watch import run
    from puna.safety.chain import chained
    from puna.safety.guard import close_guard

    sampling = sampling_of(
        "chat",
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        max_new_tokens=max_new_tokens,
        seed=seed,
    )
    with Console(stderr=True).status(f"loading {model}"):
        engine = open_engine(
            model,
            weights,
            speculation,
            draft,
            compiled=compiled,
            cache_weights=cache_weights,
            prefix_cache=prefix_cache,
            tensor_parallel=tensor_parallel,
            max_rows=1,
        )
        watching = run(guard_of(guard, policy))
    safeguards = [*shield_of(shield), *([] if watching is None else [watching])]
    try:
        talk(engine, model, system, sampling, chained(safeguards))
    finally:
        if watching is not None:
            run(close_guard(watching))


def generate(
    model: Model,
    prompt: Annotated[
        str | None, typer.Option(help="Text to go on from; - reads standard input.")
    ] = None,
    file: Annotated[Path | None, typer.Option(help="Take the prompt from a file.")] = None,
    as_chat: Annotated[
        bool, typer.Option("--chat", help="Take the prompt as a user's message.")
    ] = False,
    system: System = "",
    n: Annotated[int, typer.Option("--n", min=1, max=256, help="Answers to each prompt.")] = 1,
    schema: Annotated[
        Path | None, typer.Option(help="JSON schema, in a file, that the answer follows.")
    ] = None,
    regex: Annotated[
        str | None, typer.Option(help="Regular expression that the whole answer matches.")
    ] = None,
    as_json: Json = False,
    batch: Annotated[
        Path | None,
        typer.Option(
            metavar="IN.jsonl", help="Answer every line of a file.", rich_help_panel=_BATCH
        ),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="OUT.jsonl",
            help="Where the answers go; the same call again goes on where it was.",
            rich_help_panel=_BATCH,
        ),
    ] = None,
    rows: Annotated[
        int,
        typer.Option(min=1, max=1024, help="Most texts written together.", rich_help_panel=_BATCH),
    ] = 64,
    temperature: Temperature = 0.0,
    top_p: TopP = 1.0,
    top_k: TopK = 0,
    min_p: MinP = 0.0,
    repetition_penalty: RepetitionPenalty = 1.0,
    max_new_tokens: MaxNewTokens = 256,
    seed: Seed = 0,
    stop: Stop = None,
    weights: Weights = "auto",
    speculation: Speculation = None,
    draft: Draft = None,
    compiled: Compile = False,
    cache_weights: CacheWeights = "auto",
    prefix_cache: PrefixCache = True,
    tensor_parallel: TensorParallel = 1,
) -> None:
    """Write on from a prompt, or from every line of a file with --batch."""
    from puna.cli import generate as command

    if sum(source is not None for source in (prompt, file, batch)) != 1:
        raise UsageError("give one of --prompt TEXT, --prompt -, --file FILE and --batch IN.jsonl")
    if (batch is None) != (out is None):
        raise UsageError("--batch IN.jsonl and --out OUT.jsonl go together")
    if system and batch is None and not as_chat:
        raise UsageError("--system speaks to a chat: add --chat")
    sampling = sampling_of(
        "generate",
        temperature=temperature,
        top_p=top_p,
        top_k=top_k,
        min_p=min_p,
        repetition_penalty=repetition_penalty,
        max_new_tokens=max_new_tokens,
        seed=seed,
        stop=tuple(stop or ()),
    )
    task = command.task_of(sampling, as_chat, system, n, schema, regex)
    text = None if batch is not None else command.read_prompt(prompt, file)
    engine = open_engine(
        model,
        weights,
        speculation,
        draft,
        compiled=compiled,
        cache_weights=cache_weights,
        prefix_cache=prefix_cache,
        tensor_parallel=tensor_parallel,
        max_rows=rows if text is None else n,
        max_queue_tokens=2**40,  # the caller bounds what waits
    )
    if text is not None:
        command.write_on(engine, text, task, as_json=as_json)
    elif batch is not None and out is not None:
        settings: dict[str, str] = {"model": model, "weights": weights}
        if cache_weights != "auto":  # batches begun before there was a choice go on
            settings["cache_weights"] = cache_weights
        command.write_batch(engine, batch, out, task, settings, as_json=as_json)


def bench(
    model: Model,
    weights: Weights = "auto",
    speculation: Speculation = None,
    draft: Draft = None,
    compiled: Compile = False,
    cache_weights: CacheWeights = "auto",
    runs: Annotated[
        int, typer.Option(min=1, max=99, help="Times each figure is taken; the median is shown.")
    ] = 5,
    as_json: Json = False,
) -> None:
    """Measure a model here: prefill, decoding, batches, first token, memory, bandwidth."""
    from puna.cli.bench import measure

    def start(*, compiled: bool) -> "Engine":
        return open_engine(
            model,
            weights,
            speculation,
            draft,
            compiled=compiled,
            cache_weights=cache_weights,
            prefix_cache=False,  # a prompt that was read before would not be measured
        )

    measure(start, model, compiled=compiled, runs=runs, as_json=as_json)


def evaluate(
    model: Model,
    questions_per_kind: Annotated[int, typer.Option(min=1, max=200)] = 40,
    pairs: Annotated[int, typer.Option(min=2)] = 300,
    seed: Annotated[
        int | None, typer.Option(help="Split of the questions; default: that of its run.")
    ] = None,
    as_json: Json = False,
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
