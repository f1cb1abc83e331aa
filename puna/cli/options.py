"""Options that several commands share, and what they make: an engine, sampling settings."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

if TYPE_CHECKING:  # imported inside the functions: help and errors come at once
    from puna.inference import Engine, Sampling
    from puna.safety import Safeguard
    from puna.safety.guard import Guard, Policy

DRAFT_TOKENS = 4  # proposed ahead by a draft model when nobody says how many

Model = Annotated[
    str,
    typer.Argument(
        metavar="MODEL", help="A Hugging Face folder, a GGUF file, a cached repo id, or smollm2."
    ),
]

_SAMPLING = "Sampling"
Temperature = Annotated[
    float, typer.Option(min=0, help="0 takes the likeliest token.", rich_help_panel=_SAMPLING)
]
TopP = Annotated[
    float,
    typer.Option(
        "--top-p",
        min=0,
        max=1,
        help="Sample from the fewest tokens that hold this share of the probability.",
        rich_help_panel=_SAMPLING,
    ),
]
TopK = Annotated[
    int,
    typer.Option(
        min=0, help="Sample from this many likeliest; 0 is all.", rich_help_panel=_SAMPLING
    ),
]
MinP = Annotated[
    float,
    typer.Option(
        min=0,
        max=1,
        help="Leave out tokens below this share of the likeliest one's probability.",
        rich_help_panel=_SAMPLING,
    ),
]
RepetitionPenalty = Annotated[
    float,
    typer.Option(
        min=0.01,
        max=10,
        help="Above 1, tokens seen before become less likely.",
        rich_help_panel=_SAMPLING,
    ),
]
MaxNewTokens = Annotated[
    int,
    typer.Option("--max-new-tokens", min=1, help="Longest answer.", rich_help_panel=_SAMPLING),
]
Seed = Annotated[int, typer.Option(help="Seed of the draw.", rich_help_panel=_SAMPLING)]
Stop = Annotated[
    list[str] | None,
    typer.Option(help="A text that ends the answer; repeatable.", rich_help_panel=_SAMPLING),
]

_ENGINE = "Engine"
Weights = Annotated[
    Literal["auto", "fp32", "bf16", "int8", "int4", "w8a8"],
    typer.Option(
        help="int8, int4: fastest for one text. w8a8: for long prompts and many texts, on CPU. "
        "auto: bf16, on GPUs without it fp32.",
        rich_help_panel=_ENGINE,
    ),
]
Speculation = Annotated[
    int | None,
    typer.Option(
        min=0,
        max=16,
        help="Tokens proposed ahead, from the text itself or by --draft. "
        f"Default: 0, or {DRAFT_TOKENS} with --draft.",
        rich_help_panel=_ENGINE,
    ),
]
Draft = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL",
        help="A smaller model of the same vocabulary that proposes tokens.",
        rich_help_panel=_ENGINE,
    ),
]
Compile = Annotated[
    bool,
    typer.Option(
        "--compile/--no-compile",
        help="Compile for decoding: seconds at the first start, faster from then on.",
        rich_help_panel=_ENGINE,
    ),
]
CacheWeights = Annotated[
    Literal["auto", "int8"],
    typer.Option(
        help="Format of keys and values; int8 holds about twice as many tokens in the same memory.",
        rich_help_panel=_ENGINE,
    ),
]
TensorParallel = Annotated[
    int,
    typer.Option(
        "--tensor-parallel",
        metavar="N",
        min=1,
        max=64,
        help="Processes that share each product of the model, started here; on GPUs one each.",
        rich_help_panel=_ENGINE,
    ),
]
PrefixCache = Annotated[
    bool,
    typer.Option(
        "--prefix-cache/--no-prefix-cache",
        help="Keep what was read of earlier texts for prompts that begin alike.",
        rich_help_panel=_ENGINE,
    ),
]

ShieldMode = Annotated[
    Literal["off", "warn", "block"],
    typer.Option(
        help="Insecure code in answers: let it pass, say so, or end the answer before it.",
        rich_help_panel="Safety",
    ),
]

GuardNames = Annotated[
    list[str] | None,
    typer.Option(
        "--guard",
        metavar="FOLDER|MODEL|URL",
        help="Judge prompts and answers by a head of 'puna guard train', a Llama Guard model, or "
        "one behind an address http://HOST/v1[#NAME]; repeatable.",
        rich_help_panel="Safety",
    ),
]
PolicyFile = Annotated[
    Path | None,
    typer.Option(
        "--policy",
        metavar="FILE",
        help="YAML: what is done about each hazard, about secrets and personal data.",
        rich_help_panel="Safety",
    ),
]

System = Annotated[str, typer.Option(help="System prompt of a chat.")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object and nothing else.")]


def open_engine(
    model: str,
    weights: str,
    speculation: int | None,
    draft: str | None,
    *,
    compiled: bool,
    **settings: Any,
) -> "Engine":
    """The engine that these options ask for; ``settings`` are further fields of its config."""
    from puna.inference import EngineConfig, load_engine

    if speculation is None:
        speculation = DRAFT_TOKENS if draft else 0
    fields = {"weights": weights, "speculation": speculation, "compile": compiled, **settings}
    return load_engine(model, EngineConfig.parse(fields, where="engine"), draft=draft)


def sampling_of(where: str, **fields: Any) -> "Sampling":
    """The settings that these options ask for; raises `UsageError` naming the command."""
    from puna.inference import Sampling

    return Sampling.parse(fields, where=where)


def shield_of(mode: Literal["off", "warn", "block"]) -> "list[Safeguard]":
    """The safeguard that ``--shield`` asks for, as a list of one or none."""
    if mode == "off":
        return []
    from puna.safety.shield import Policy, ShieldFilter

    return [ShieldFilter(Policy(mode=mode), preload=True)]


def policy_of(path: Path | None) -> "Policy":
    """The guard's policy in a file, or the default one."""
    from puna.safety.guard import Policy

    return Policy() if path is None else Policy.read(path)


async def guard_of(names: list[str] | None, policy: Path | None) -> "Guard | None":
    """The guard that ``--guard`` and ``--policy`` ask for; None where neither is given."""
    if not names and policy is None:
        return None
    from puna.safety.guard import open_guard

    return await open_guard(names or [], policy_of(policy))
