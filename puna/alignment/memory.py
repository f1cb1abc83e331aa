"""What memory the methods beside SFT take: `puna.training.estimate`, and what they hold besides.

A row of DPO or of a reward model is a prompt with both answers; a row of PPO or GRPO a prompt with
all of its answers. PPO and GRPO also hold the engine's weights and cache, a reference, a value
model; before sampling, new weights of the engine are there beside the old ones.
"""

from dataclasses import replace
from typing import Literal

import torch

from puna.alignment.rollouts import RolloutConfig, cache_tokens, engine_rows
from puna.core.devices import default_device
from puna.inference.cache import PagedStore
from puna.model import LlamaConfig, LoraConfig
from puna.training.config import LoopConfig
from puna.training.estimate import Estimate, estimate
from puna.training.loop import compute_dtype

Critic = Literal["none", "shared", "own"]
"""GRPO's, PPO's on the policy's trunk, PPO's on a trunk of its own."""


def pair_estimate(
    config: LlamaConfig,
    loop: LoopConfig,
    pair_tokens: int,
    lora: LoraConfig | None = None,
    *,
    scores: bool = False,
    device: torch.device | None = None,
) -> Estimate:
    """Bytes that DPO takes, or a reward model where ``scores``.

    Args:
        pair_tokens: of a prompt with both answers; at most twice the stage's ``row_length``.
        scores: whether a head of one row stands in place of that over the vocabulary.
    """
    found = estimate(_wide(config, pair_tokens), loop, pair_tokens, lora, device=device)
    if not scores:
        return found
    head = config.vocab_size * config.dim
    trained = 0 if lora else 4 * head
    found = replace(found, logits=0, early_gradients=found.early_gradients - trained)
    if config.tie_embeddings:  # one gradient, of the look-up
        return replace(found, gradients=found.gradients - trained)
    width = 4 if lora is None or lora.base == "kept" else 2
    moments = 2 * (1 if loop.optimizer == "adamw8bit" else 4) * head if trained else 0
    return replace(
        found,
        weights=found.weights - width * head,
        optimizer=found.optimizer - moments,
        gradients=found.gradients - trained,
    )


def online_estimate(
    config: LlamaConfig,
    loop: LoopConfig,
    rollouts: RolloutConfig,
    prompt_tokens: int,
    lora: LoraConfig | None = None,
    *,
    critic: Critic = "none",
    device: torch.device | None = None,
) -> Estimate:
    """Bytes that PPO or GRPO takes, answers as long as they may be.

    What the engine, the reference and a value model of its own hold counts as weights.
    """
    device = device or default_device()
    dtype = compute_dtype(loop, device)
    n_params, longest = config.n_params(), prompt_tokens + rollouts.max_new_tokens
    alone = 1 if rollouts.share_prompt else rollouts.answers
    row_tokens = alone * prompt_tokens + rollouts.answers * rollouts.max_new_tokens
    if not rollouts.share_prompt:  # a row for each answer
        row_tokens = longest
        rows = (loop.micro_rows or loop.batch_rows) * rollouts.answers
        loop = loop.model_copy(update={"micro_rows": rows, "batch_rows": max(rows, 1)})
    learning = estimate(_wide(config, row_tokens), loop, row_tokens, lora, device=device)
    copied = lora is not None or dtype != torch.float32  # else the engine reads the policy's own
    engine = n_params * dtype.itemsize if copied else 0
    cache = cache_tokens(engine_rows(rollouts), longest) * PagedStore.bytes_per_token(config, dtype)
    held = engine + cache + (0 if lora else n_params * dtype.itemsize)
    if critic == "own":
        head = config.vocab_size * config.dim * (0 if config.tie_embeddings else 4)
        learning = replace(
            learning,
            weights=2 * learning.weights - head,
            optimizer=2 * learning.optimizer,
            gradients=2 * learning.gradients,
            activations=2 * learning.activations,
        )
    return replace(
        learning,
        weights=learning.weights + held,
        # before sampling: the engine's new weights, no activations
        block=max(learning.block, engine - learning.gradients),
    )


def _wide(config: LlamaConfig, row_tokens: int) -> LlamaConfig:
    """The shape with room for a row: answers side by side begin at the same position."""
    return config.model_copy(update={"context": max(config.context, row_tokens)})
