"""What memory a stage that trains will take and which settings make it fit, before it starts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from puna.alignment.memory import Critic, online_estimate, pair_estimate
from puna.core.devices import default_device
from puna.formats import load_model
from puna.formats.hf_config import load_config
from puna.formats.resolve import SMOLLM2, smollm2_folder
from puna.model import LlamaConfig, LoraConfig, llama_config, published_size
from puna.training import LoopConfig
from puna.training.estimate import Estimate, estimate
from puna.workflow.recipe import Recipe

PROMPT_TOKENS = 256
"""Of a prompt of PPO or GRPO: their data are not read for an estimate."""


@dataclass(frozen=True)
class Rung:
    """One way to tune and what it takes."""

    name: str
    """The options that ask for it."""
    bytes: Estimate
    fits: bool
    """Whether the memory that is free would do."""


def free_bytes() -> int:
    """Memory that is free for the tensors of a training here: the GPU's, or the machine's."""
    if default_device().type == "cuda":
        return torch.cuda.mem_get_info()[0]
    return int(psutil.virtual_memory().available)


def rungs_of(model: str, recipe: Recipe) -> list[Rung]:
    """The one tuning of a recipe as asked for, then with each means to save memory, mildest first.

    ``model`` is what it starts from.
    """
    tunings: list[tuple[str, Any]] = list(recipe.stages.tuning())
    ((name, stage),) = tunings
    config, free = shape_of(model), free_bytes()
    asked: LoopConfig = stage.loop
    ways = [("as asked", {}, stage.lora), *_ways(asked, stage.lora)]
    rungs = []
    for options, changes, lora in ways:
        loop = LoopConfig.parse(asked.model_dump() | changes, where=options)
        changed = stage.model_copy(update={"loop": loop, "lora": lora})
        found = stage_estimate(name, config, changed)
        rungs.append(Rung(options, found, found.peak <= free))
    return rungs


def stage_estimate(name: str, config: LlamaConfig, stage: Any) -> Estimate:
    """Bytes that a stage with a loop takes, rows full, answers as long as they may be.

    Args:
        name: of the stage, which begins with its method's.
        config: the shape of the model it trains.
        stage: its settings.
    """
    method, loop, lora = name.partition("-")[0], stage.loop, getattr(stage, "lora", None)
    if method in ("dpo", "reward"):
        tokens = 2 * stage.row_length  # of both answers; the prompt is there once
        return pair_estimate(config, loop, tokens, lora, scores=method == "reward")
    if method in ("ppo", "grpo"):
        knobs = getattr(stage, method)
        critic: Critic = "none"
        if method == "ppo":
            critic = "shared" if knobs.shared_trunk else "own"
        rollouts = knobs.rollouts
        prompt = max(1, min(PROMPT_TOKENS, config.context - rollouts.max_new_tokens))
        return online_estimate(config, loop, rollouts, prompt, lora, critic=critic)
    return estimate(config, loop, stage.row_length, lora)


def _ways(
    asked: LoopConfig, lora: LoraConfig | None
) -> list[tuple[str, dict[str, Any], LoraConfig | None]]:
    """Options, the changes of the loop they make, and the adapter they train."""
    recompute = {"recompute": "full"}
    ways: list[tuple[str, dict[str, Any], LoraConfig | None]] = []
    if asked.recompute != "full":
        ways.append(("--recompute full", recompute, lora))
    if lora is None:
        if asked.optimizer == "adamw":
            changes = recompute | {"optimizer": "adamw8bit"}
            ways.append(("--recompute full --optimizer adamw8bit", changes, None))
        ways.append(("--lora --recompute full", recompute, LoraConfig()))
    if lora is None or lora.base != "nf4":
        four_bits = (lora or LoraConfig()).model_copy(update={"base": "nf4"})
        ways.append(("--qlora --recompute full", recompute, four_bits))
    return ways


def shape_of(model: str) -> LlamaConfig:
    """The shape of the model called so; a published one need not be here."""
    path = smollm2_folder() if model == SMOLLM2 else Path(model)
    if path.is_dir():
        return load_config(path)
    size = published_size(model)
    return llama_config(size) if size else load_model(model)[0].config
