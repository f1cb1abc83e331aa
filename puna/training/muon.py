"""Muon for matrices that are spread over processes.

Each process keeps its part of a matrix's momentum. The momentum is gathered for the step, since it
is orthogonalised as a whole; each process does that for all matrices it has a part of, and applies
its part of the result.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from puna.parallel.gradients import local, part_of, spread_like, whole


class SpreadMuon(torch.optim.Muon):
    """`torch.optim.Muon` of parameters that are DTensors; all processes step together."""

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
        own, kept, momentum = local(gradient), local(state["momentum_buffer"]), group["momentum"]
        kept.lerp_(own, 1 - momentum)
        ahead = own.lerp(kept, momentum) if group["nesterov"] else kept
        change = _change(whole(spread_like(ahead, gradient)), group)
        weight = local(parameter)
        weight.mul_(1 - group["lr"] * group["weight_decay"]).add_(part_of(change, parameter))


def _change(matrix: Tensor, group: dict[str, Any]) -> Tensor:
    """What Muon adds to a weight whose momentum is ``matrix``, in fp32: torch's own step from 0."""
    stepped = nn.Parameter(torch.zeros_like(matrix))
    stepped.grad = matrix
    names = ("lr", "ns_coefficients", "eps", "ns_steps", "adjust_lr_fn")
    settings = {name: group[name] for name in names}
    torch.optim.Muon([stepped], momentum=0, nesterov=False, weight_decay=0, **settings).step()
    return stepped.detach()
