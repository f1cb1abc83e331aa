"""What memory a tuning will take, and which settings would make it fit, before it starts."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from puna.core.devices import default_device
from puna.formats import load_model
from puna.formats.hf_config import load_config
from puna.formats.resolve import SMOLLM2, smollm2_folder
from puna.model import LlamaConfig, LoraConfig, llama_config, published_size
from puna.training import LoopConfig
from puna.training.estimate import Estimate, estimate
from puna.workflow.recipe import Recipe


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


def sft_rungs(model: str, recipe: Recipe) -> list[Rung]:
    """The tuning as asked for, then with each means to save memory, the mildest first."""
    stage = recipe.stages.sft
    assert stage is not None
    config, free = shape_of(model), free_bytes()
    asked, lora = stage.loop, stage.lora
    rungs = [_rung("as asked", config, asked, stage.row_length, lora, free)]
    for name, changes, adapter in _ways(asked, lora):
        loop = LoopConfig.parse(asked.model_dump() | changes, where=name)
        rungs.append(_rung(name, config, loop, stage.row_length, adapter, free))
    return rungs


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


def _rung(
    name: str, config: LlamaConfig, loop: LoopConfig, row_length: int, lora: LoraConfig | None,
    free: int,
) -> Rung:  # fmt: skip
    found = estimate(config, loop, row_length, lora)
    return Rung(name, found, found.peak <= free)


def shape_of(model: str) -> LlamaConfig:
    """The shape of the model called so; a published one need not be here."""
    path = smollm2_folder() if model == SMOLLM2 else Path(model)
    if path.is_dir():
        return load_config(path)
    size = published_size(model)
    return llama_config(size) if size else load_model(model)[0].config
