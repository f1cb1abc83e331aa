"""Gradients and weights of which each process holds a part: their norm, their local tensors."""

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from puna.parallel.mesh import Mesh


def is_spread(tensor: Tensor) -> bool:
    """Whether ``tensor`` is a DTensor."""
    return hasattr(tensor, "device_mesh")


def local(tensor: Tensor) -> Tensor:
    """What this process holds of ``tensor``, in the same memory."""
    whole: Any = tensor
    held: Tensor = whole.to_local() if is_spread(tensor) else tensor
    return held


@torch.no_grad()
def settle(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """This process's part of each gradient, spread as its parameter is.

    A weight that all have, and that saw other positions in each, has as gradient the sum.
    """
    found = []
    for parameter in parameters:
        weight: Any = parameter
        if weight.grad is None:
            continue
        if is_spread(weight) and weight.grad.placements != weight.placements:
            weight.grad = weight.grad.redistribute(placements=weight.placements)
        found.append(local(weight.grad))
    return found


@torch.no_grad()
def total_norm(parameters: Iterable[nn.Parameter], mesh: Mesh) -> float:
    """Norm of the whole gradient, from the parts of all processes. All must call it.

    Squares are added in fp64; what several processes hold is counted once.
    """
    gradients = [local(p.grad) for p in parameters if p.grad is not None and _is_counted(p)]
    norms = torch._foreach_norm(gradients) if gradients else []
    squares = float(torch.stack(list(norms)).double().square().sum()) if norms else 0.0
    return math.sqrt(mesh.sum([squares])[0])


def _is_counted(parameter: Any) -> bool:
    """Whether this process is the first of those that hold the same part."""
    if not is_spread(parameter):
        return True
    place = parameter.device_mesh.get_coordinate()
    holders = zip(place, parameter.placements, strict=True)
    return all(at == 0 for at, how in holders if how.is_replicate())
