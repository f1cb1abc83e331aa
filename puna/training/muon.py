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

# a, b, c of each step's a x + b x^3 + c x^5: of all such the nearest to 1 on what the steps before
# made of [0.003, 1] (Amsel et al. 2025, arXiv 2505.16932), with x / 1.02 for x, so that rounding
# does not leave that range. Four come as near 1 as Jordan's five of one.
_POLYNOMIALS = (
    (8.2193, -23.3375, 16.6266),
    (3.9641, -2.8377, 0.5158),
    (3.4368, -2.4752, 0.4762),
    (2.4413, -1.7285, 0.3957),
)
_SMALLEST_NORM = 1e-7
_SIZE_OF_ADAMW = 0.2
_TOGETHER = 2**22  # elements of matrices orthogonalised at once


def orthogonalised(matrices: Tensor) -> Tensor:
    """``matrices`` (count, rows, columns), their singular values moved to about 1 by Newton-Schulz.

    In bf16 where that has hardware, else in fp32. Tall ones take longer than turned.
    """
    x = matrices.to(fast_dtype(matrices.device.type))
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=_SMALLEST_NORM)
    for linear, cubic, fifth in _POLYNOMIALS:
        gram = x @ x.mT
        change = torch.baddbmm(gram, gram, gram, beta=cubic, alpha=fifth)
        x = torch.baddbmm(x, change, x, beta=linear)
    return x


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
            alike: dict[tuple[int, ...], list[tuple[Tensor, Tensor]]] = {}
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                ahead = self._ahead(parameter, group["momentum"])
                shape = tuple(sorted(ahead.shape))
                waiting = alike.setdefault(shape, [])
                waiting.append((parameter, ahead))
                if len(waiting) * ahead.numel() >= _TOGETHER:
                    _update(alike.pop(shape), group)
            for waiting in alike.values():
                _update(waiting, group)

    def _ahead(self, parameter: Tensor, momentum: float) -> Tensor:
        """The whole matrix's momentum after its gradient, one step further."""
        state, gradient = self.state[parameter], parameter.grad
        assert gradient is not None
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        own, kept = local(gradient), local(state["momentum_buffer"])
        kept.lerp_(own, 1 - momentum)
        return whole(spread_like(own.lerp(kept, momentum), gradient))


def _update(waiting: list[tuple[Tensor, Tensor]], group: dict[str, Any]) -> None:
    """Step each parameter by its matrix, orthogonalised with the others, all of one shape."""
    dtype = fast_dtype(waiting[0][1].device.type)
    turned = [ahead.shape[0] > ahead.shape[1] for _, ahead in waiting]
    made = orthogonalised(
        torch.stack(
            [
                (ahead.T if tall else ahead).to(dtype)
                for (_, ahead), tall in zip(waiting, turned, strict=True)
            ]
        )
    )
    for (parameter, _), change, tall in zip(waiting, made, turned, strict=True):
        size = group["lr"] * _SIZE_OF_ADAMW * max(parameter.shape) ** 0.5
        weight = local(parameter)
        weight.mul_(1 - group["lr"] * group["weight_decay"])
        weight.add_(part_of(change.T if tall else change, parameter), alpha=-size)
