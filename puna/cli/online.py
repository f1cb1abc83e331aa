"""The commands that learn from rewards of the model's own answers: ppo, grpo."""

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from puna.cli.recipes import AsJson, Runs
from puna.cli.training import (
    AskEstimate,
    Base,
    ChatFormat,
    LearningRate,
    RunName,
    RunSeed,
    adapter_options,
    loop_options,
    run_name,
    start,
    takes,
)

_WHOLE_RATE, _ADAPTER_RATE = 1e-5, 1e-4
_METHOD, _ANSWERS = "Method", "Answers"
PromptData = Annotated[
    list[Path],
    typer.Option(
        "--data",
        metavar="PATH",
        help="Rows with messages, prompt or question; several times for more.",
    ),
]
Reward = Annotated[
    str,
    typer.Option(
        "--reward", help="What rewards an answer: module:function, or a reward model's folder."
    ),
]
Rollouts = Annotated[
    int, typer.Option(help="How often answers are sampled anew.", rich_help_panel=_ANSWERS)
]
Prompts = Annotated[
    int, typer.Option(min=1, help="Prompts answered each time.", rich_help_panel=_ANSWERS)
]
LongestAnswer = Annotated[
    int,
    typer.Option("--max-new-tokens", min=1, help="Longest answer.", rich_help_panel=_ANSWERS),
]
Warmth = Annotated[
    float, typer.Option("--temperature", help="Of sampling.", rich_help_panel=_ANSWERS)
]
MissingEnd = Annotated[
    float,
    typer.Option(min=0, help="Taken from an answer that was cut off.", rich_help_panel=_ANSWERS),
]
Repeats = Annotated[
    int,
    typer.Option(
        "--epochs", min=1, help="How often answers are learned from.", rich_help_panel=_METHOD
    ),
]
Straying = Annotated[
    float,
    typer.Option(
        "--kl", min=0, help="Price of a nat from the first model.", rich_help_panel=_METHOD
    ),
]
KLTarget = Annotated[
    float | None,
    typer.Option(help="Nats an answer that the price aims at.", rich_help_panel=_METHOD),
]
EntropyWeight = Annotated[
    float, typer.Option(min=0, help="Reward for undecided tokens.", rich_help_panel=_METHOD)
]
HeldOut = Annotated[float, typer.Option(help="Share of the prompts to judge on; 100 at most.")]
PromptTooLong = Annotated[
    Literal["error", "drop"], typer.Option(help="What becomes of a prompt without room to answer.")
]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command()(ppo)
    app.command()(grpo)


@takes(adapter=adapter_options, loop=loop_options)
def ppo(
    *,
    model: Base,
    data: PromptData,
    reward: Reward,
    name: RunName = "",
    rollouts: Rollouts = 20,
    prompts: Prompts = 64,
    max_new_tokens: LongestAnswer = 128,
    temperature: Warmth = 1.0,
    missing_end_penalty: MissingEnd = 1.0,
    epochs: Repeats = 2,
    kl: Straying = 0.05,
    kl_target: KLTarget = None,
    entropy_weight: EntropyWeight = 0.0,
    shared_trunk: Annotated[
        bool,
        typer.Option(
            "--shared-trunk", help="Values from the policy itself.", rich_help_panel=_METHOD
        ),
    ] = False,
    held_out: HeldOut = 0.1,
    too_long: PromptTooLong = "error",
    learning_rate: LearningRate = None,
    chat_format: ChatFormat = "auto",
    adapter: dict[str, Any] | None,
    loop: dict[str, Any],
    seed: RunSeed = None,
    estimate: AskEstimate = False,
    runs: Runs = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Learn from rewards of its own answers, with a value model (PPO)."""
    _carry_out(
        "ppo", model, data, runs, adapter=adapter, as_json=as_json, estimate=estimate,
        rollouts={
            "prompts": prompts, "answers": 1, "epochs": epochs, "temperature": temperature,
            "max_new_tokens": max_new_tokens, "missing_end_penalty": missing_end_penalty,
        },
        knobs={
            "kl": {"coefficient": kl, "target": kl_target},
            "entropy_weight": entropy_weight, "shared_trunk": shared_trunk,
        },
        asked={
            "name": name, "reward": reward, "n_rollouts": rollouts, "held_out": held_out,
            "too_long": too_long, "learning_rate": learning_rate, "chat_format": chat_format,
            "seed": seed, "loop": loop,
        },
    )  # fmt: skip


@takes(adapter=adapter_options, loop=loop_options)
def grpo(
    *,
    model: Base,
    data: PromptData,
    reward: Reward,
    name: RunName = "",
    method: Annotated[
        Literal["grpo", "rloo"],
        typer.Option(help="What an answer is compared with.", rich_help_panel=_METHOD),
    ] = "grpo",
    rollouts: Rollouts = 20,
    prompts: Prompts = 16,
    answers: Annotated[
        int, typer.Option(min=2, help="Answers to each prompt.", rich_help_panel=_ANSWERS)
    ] = 8,
    max_new_tokens: LongestAnswer = 128,
    temperature: Warmth = 1.0,
    missing_end_penalty: MissingEnd = 1.0,
    epochs: Repeats = 1,
    kl: Straying = 0.04,
    kl_target: KLTarget = None,
    entropy_weight: EntropyWeight = 0.0,
    held_out: HeldOut = 0.1,
    too_long: PromptTooLong = "error",
    learning_rate: LearningRate = None,
    chat_format: ChatFormat = "auto",
    adapter: dict[str, Any] | None,
    loop: dict[str, Any],
    seed: RunSeed = None,
    estimate: AskEstimate = False,
    runs: Runs = Path("runs"),
    as_json: AsJson = False,
) -> None:
    """Learn from rewards of its own answers, compared with each other (GRPO, RLOO)."""
    _carry_out(
        "grpo", model, data, runs, adapter=adapter, as_json=as_json, estimate=estimate,
        rollouts={
            "prompts": prompts, "answers": answers, "epochs": epochs, "temperature": temperature,
            "max_new_tokens": max_new_tokens, "missing_end_penalty": missing_end_penalty,
        },
        knobs={
            "method": method, "entropy_weight": entropy_weight,
            "kl": {
                "coefficient": kl, "target": kl_target,
                "estimator": "k3" if method == "grpo" else "k1",
            },
        },
        asked={
            "name": name, "reward": reward, "n_rollouts": rollouts, "held_out": held_out,
            "too_long": too_long, "learning_rate": learning_rate, "chat_format": chat_format,
            "seed": seed, "loop": loop,
        },
    )  # fmt: skip


def _carry_out(
    command: str, model: str, data: list[Path], runs: Path, *, adapter: dict[str, Any] | None,
    rollouts: dict[str, Any], knobs: dict[str, Any], asked: dict[str, Any], as_json: bool,
    estimate: bool,
) -> None:  # fmt: skip
    """Run the one-stage recipe of ``command``."""
    from puna.workflow.online import Learning, online_recipe

    asked["name"] = asked["name"] or run_name(command, data[0])
    asked["learning_rate"] = asked["learning_rate"] or (_ADAPTER_RATE if adapter else _WHOLE_RATE)
    learning = Learning(rollouts=rollouts, knobs=knobs, lora=adapter, **asked)
    recipe = online_recipe(command, model, data, learning)
    start(model, recipe, runs, estimate=estimate, as_json=as_json)
