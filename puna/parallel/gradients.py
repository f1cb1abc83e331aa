"""Gradients and weights of which each process holds a part: their norm, their local tensors."""

import math
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from puna.parallel.mesh import Mesh


def is_spread(tensor: Tensor) -> bool:
    """Whether ``tensor`` is a DTensor."""
    return hasattr(tensor, "device_mesh")


def local(tensor: Tensor) -> Tensor:
    """What this process holds of ``tensor``, in the same memory."""
    held: Tensor = tensor.to_local() if is_spread(tensor) else tensor  # type: ignore[operator]
    return held


@torch.no_grad()
def settle(parameters: Iterable[nn.Parameter]) -> list[Tensor]:
    """This process's part of each gradient, spread as its parameter is.

    A weight that all have, and that saw other positions in each, has as gradient the sum.
    """
    found = []
    for parameter in parameters:
        gradient = parameter.grad
        if gradient is None:
            continue
        if is_spread(parameter) and gradient.placements != parameter.placements:  # type: ignore[attr-defined]
            gradient = gradient.redistribute(placements=parameter.placements)  # type: ignore[attr-defined]
            parameter.grad = gradient
        found.append(local(gradient))
    return found


@torch.no_grad()
def total_norm(parameters: Iterable[nn.Parameter], mesh: Mesh) -> float:
    """Norm of the whole gradient, from the parts of all processes. All must call it.

    Squares are added in fp64; what several processes hold is counted once.
    """
    gradients = [local(p.grad) for p in parameters if p.grad is not None and _is_counted(p)]
    norms = torch._foreach_norm(gradients) if gradients else []
    squares = float(torch.stack(norms).double().square().sum()) if norms else 0.0
    return math.sqrt(mesh.sum([squares])[0])


def _is_counted(parameter: Tensor) -> bool:
    """Whether this process is the first of those that hold the same part."""
    if not is_spread(parameter):
        return True
    place = parameter.device_mesh.get_coordinate()  # type: ignore[attr-defined]
    placements = parameter.placements  # type: ignore[attr-defined]
    return all(at == 0 for at, how in zip(place, placements, strict=True) if how.is_replicate())
