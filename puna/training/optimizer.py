"""AdamW and the learning rate of each step."""

import math

import torch
from torch import nn

from puna.training.config import LoopConfig


def learning_rate(config: LoopConfig, step: int) -> float:
    """Rate of optimizer step ``step`` (from 0): linear warm-up, then a cosine to the final rate.

    "The Llama 3 Herd of Models", section 3.4.1.
    """
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    span = max(1, config.steps - 1 - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / span)
    low = config.final_lr_fraction
    return config.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)))


def build_optimizer(model: nn.Module, config: LoopConfig) -> torch.optim.AdamW:
    """AdamW with decay on matrices and none on norm weights; one fused kernel per step."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, betas=(config.beta1, config.beta2), fused=True
    )


@torch.no_grad()
def scale_and_clip(model: nn.Module, count: int, clip_norm: float) -> float:
    """Turn summed gradients into means over ``count`` and clip their norm; returns that norm.

    One pass over the gradients does both. The norm returned is that of the mean, before clipping.
    """
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    norm = float(torch.nn.utils.get_total_norm(gradients)) / count
    factor = min(1.0, clip_norm / (norm + 1e-6)) / count
    torch._foreach_mul_(gradients, factor)
    return norm
