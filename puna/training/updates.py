"""When weights are updated: after the backward pass, or within it as each gradient is complete."""

import math
from functools import partial
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from puna.core.errors import UsageError
from puna.parallel.parallelize import Parallel
from puna.training.config import LoopConfig
from puna.training.optimizer import build_optimizers, scale_and_clip, states, update


class Updates:
    """All weights at once, after the gradients of all micro-batches, clipped by their common norm.

    Args:
        trained: holds the parameters.
        config: says how they are optimised.
        parallel: how the model is laid out over processes.
    """

    def __init__(self, trained: nn.Module, config: LoopConfig, parallel: Parallel) -> None:
        self.optimizers = build_optimizers(trained, config)
        self._trained, self._clip_norm, self._parallel = trained, config.clip_norm, parallel

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *failure: Any) -> None:
        pass

    def expect(self, count: int, rate: float) -> None:
        """A backward pass follows, of a sum over ``count`` items, at this learning rate."""

    def norm(self, count: int) -> float:
        """Norm of the step's mean gradient over all processes' ``count`` items, before clipping."""
        self._parallel.complete_gradients(list(self._trained.parameters()))
        return scale_and_clip(self._trained, count, self._clip_norm, self._parallel)

    def apply(self, rate: float) -> None:
        """Update what is not updated yet and clear the gradients."""
        update(self.optimizers, rate)


class InBackward(Updates):
    """Each weight as soon as its gradient is complete, which is then freed (Lv et al. 2023, LOMO).

    So the gradients of two blocks need not exist at once. The norm of all of them is known too late
    to clip by: each parameter's gradient is clipped by its own. One that is not finite is not
    applied, and the loop stops.
    """

    def __init__(self, trained: nn.Module, config: LoopConfig, parallel: Parallel) -> None:
        if parallel.mesh.n_processes > 1:
            raise UsageError(
                "optimizer_in_backward knows the gradients of one process only, this run has "
                f"{parallel.mesh.n_processes}: set it to false, or start one"
            )
        super().__init__(trained, config, parallel)
        self._count, self._rate, self._squares = 0, 0.0, 0.0
        self._hooks: list[torch.utils.hooks.RemovableHandle] = []

    def __enter__(self) -> Self:
        for _, parameter, optimizer in states(self._trained, self.optimizers):
            step = partial(self._update, optimizer)
            self._hooks.append(parameter.register_post_accumulate_grad_hook(step))
        return self

    def __exit__(self, *failure: Any) -> None:
        for hook in self._hooks:
            hook.remove()

    def expect(self, count: int, rate: float) -> None:
        """See `Updates`."""
        self._count, self._rate, self._squares = count, rate, 0.0

    def norm(self, count: int) -> float:  # noqa: ARG002  it was needed earlier
        """See `Updates`."""
        return math.sqrt(self._squares)

    def apply(self, rate: float) -> None:
        """Nothing is left to do."""

    @torch.no_grad()
    def _update(self, optimizer: Optimizer, parameter: Tensor) -> None:
        gradient = parameter.grad
        assert gradient is not None
        norm = float(torch.linalg.vector_norm(gradient)) / self._count if self._count else math.nan
        self._squares += norm**2
        if math.isfinite(norm):
            gradient.mul_(min(1.0, self._clip_norm / (norm + 1e-6)) / self._count)
            update([optimizer], self._rate)
        parameter.grad = None


def updates_of(trained: nn.Module, config: LoopConfig, parallel: Parallel) -> Updates:
    """The way that ``config`` asks for."""
    return (InBackward if config.optimizer_in_backward else Updates)(trained, config, parallel)
