"""Muon (Jordan 2024), of matrices that are whole here or spread over processes.

torch has one too. It always computes in bf16, which takes a hundred times as long on processors
without bf16 products, and it knows no spread matrices. Of those each process keeps its part of the
momentum. The momentum is gathered for the step, since it is orthogonalised as a whole; each process
does that for all matrices it has a part of, and applies its part of the result.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from puna.core.devices import fast_dtype
from puna.parallel.gradients import local, part_of, spread_like, whole

_POLYNOMIAL = (3.4445, -4.775, 2.0315)  # of Jordan's: drives singular values near 1 within 5 steps
_STEPS, _SMALLEST_NORM = 5, 1e-7
_SIZE_OF_ADAMW = 0.2


def orthogonalised(matrix: Tensor) -> Tensor:
    """``matrix`` with all its singular values moved to about 1, by Newton-Schulz steps.

    In bf16 where that has hardware, else in fp32.
    """
    cubic, fifth = _POLYNOMIAL[1:]
    x = matrix.to(fast_dtype(matrix.device.type))
    tall = x.shape[0] > x.shape[1]
    if tall:
        x = x.T
    x = x / x.norm().clamp(min=_SMALLEST_NORM)
    for _ in range(_STEPS):
        gram = x @ x.T
        change = torch.addmm(gram, gram, gram, beta=cubic, alpha=fifth)
        x = torch.addmm(x, change, x, beta=_POLYNOMIAL[0])
    return x.T if tall else x


class Muon(Optimizer):
    """Momentum, orthogonalised, with steps of the size that AdamW's have.

    That size is of Liu et al. 2025, arXiv 2502.16982, section 2.2. Of spread matrices all processes
    step together.

    Args:
        matrices: two-dimensional parameters.
        lr, weight_decay: as AdamW's.
        momentum: share of the former momentum that is kept; steps look ahead by it (Nesterov).
    """

    def __init__(
        self,
        matrices: Iterable[nn.Parameter],
        *,
        lr: float,
        weight_decay: float,
        momentum: float = 0.95,
    ) -> None:
        super().__init__(matrices, {"lr": lr, "weight_decay": weight_decay, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient; ``closure`` is not supported."""
        assert closure is None
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        own, kept = local(gradient), local(state["momentum_buffer"])
        kept.lerp_(own, 1 - group["momentum"])
        ahead = own.lerp(kept, group["momentum"])
        change = orthogonalised(whole(spread_like(ahead, gradient)))
        size = group["lr"] * _SIZE_OF_ADAMW * max(parameter.shape) ** 0.5
        weight = local(parameter)
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(part_of(change, parameter), alpha=-size)
