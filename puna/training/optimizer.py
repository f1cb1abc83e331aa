"""The optimizers of a run, and the learning rate of each step."""

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from puna.parallel.gradients import settle, total_norm
from puna.parallel.parallelize import Parallel
from puna.training.adamw8bit import AdamW8bit
from puna.training.config import LoopConfig
from puna.training.muon import Muon


def learning_rate(config: LoopConfig, step: int) -> float:
    """Rate of optimizer step ``step`` (from 0): linear warm-up, then a cosine to the final rate.

    "The Llama 3 Herd of Models", section 3.4.1. The last ``anneal_steps`` fall linearly to 0, as in
    its section 3.4.3.
    """
    first = config.steps - config.anneal_steps
    if step > first:
        return learning_rate(config, first) * (config.steps - step) / config.anneal_steps
    if step < config.warmup_steps:
        return config.learning_rate * (step + 1) / config.warmup_steps
    span = max(1, (config.cosine_steps or config.steps) - 1 - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / span)
    low = config.final_lr_fraction
    return config.learning_rate * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)))


def build_optimizers(model: nn.Module, config: LoopConfig) -> list[Optimizer]:
    """AdamW for all that is trained, or Muon for the blocks' matrices and AdamW for the rest.

    One for each parameter where they are updated within the backward pass.

    Norm weights are not decayed. Muon (Jordan 2024) orthogonalises each matrix's momentum; its
    steps are scaled to the size of AdamW's (Liu et al. 2025, arXiv 2502.16982, section 2.2), so one
    learning rate serves both.
    """
    named = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    if config.optimizer_in_backward:
        return [optimizer for one in named for optimizer in _optimizers([one], config)]
    return _optimizers(named, config)


def _optimizers(named: list[tuple[str, nn.Parameter]], config: LoopConfig) -> list[Optimizer]:
    inner = [p for name, p in named if p.ndim == 2 and ".layers." in name]
    outer = [p for name, p in named if p.ndim == 2 and ".layers." not in name]
    norms = [p for _, p in named if p.ndim < 2]
    if config.optimizer != "muon":
        return [_adamw(inner + outer, norms, config)]
    found: list[Optimizer] = []
    if inner:
        found = [Muon(inner, lr=config.learning_rate, weight_decay=config.weight_decay)]
    return [*found, _adamw(outer, norms, config)] if outer or norms else found


def _adamw(
    matrices: list[nn.Parameter], norms: list[nn.Parameter], config: LoopConfig
) -> Optimizer:
    groups = [
        {"params": matrices, "weight_decay": config.weight_decay},
        {"params": norms, "weight_decay": 0.0},
    ]
    betas = (config.beta1, config.beta2)
    if config.optimizer == "adamw8bit":
        return AdamW8bit(groups, lr=config.learning_rate, betas=betas)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=True)


def states(
    model: nn.Module, optimizers: Sequence[Optimizer]
) -> Iterator[tuple[str, Tensor, Optimizer]]:
    """(name, parameter, the optimizer that owns it) of every trained parameter."""
    owner = {p: o for o in optimizers for group in o.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter in owner:
            yield name, parameter, owner[parameter]


@torch.no_grad()
def scale_and_clip(
    model: nn.Module, count: int, clip_norm: float, parallel: Parallel | None = None
) -> float:
    """Turn summed gradients into means over ``count`` and clip their norm; returns that norm.

    One pass over the gradients does both. The norm returned is that of the mean, before clipping.
    Where ``parallel`` spreads the model, it is that of the whole, and all processes must call it.
    """
    parameters = [p for p in model.parameters() if p.grad is not None]
    gradients = settle(parameters)
    if parallel is None or parallel.mesh.layout.only_replicas:
        norm = float(torch.nn.utils.get_total_norm(gradients)) / count
    else:
        norm = total_norm(parallel.counted(parameters), parallel.mesh) / count
    factor = min(1.0, clip_norm / (norm + 1e-6)) / count
    torch._foreach_mul_(gradients, factor)
    return norm


def update(optimizers: Sequence[Optimizer], rate: float) -> None:
    """Take one step at this learning rate and clear the gradients."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.step()
        optimizer.zero_grad()
