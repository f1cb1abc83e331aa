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


def whole(tensor: Tensor) -> Tensor:
    """All of ``tensor``; all processes that hold a part of it call this."""
    spread: Any = tensor
    gathered: Tensor = spread.full_tensor() if is_spread(tensor) else tensor
    return gathered


def spread_like(part: Tensor, other: Tensor) -> Tensor:
    """A tensor of which this process has ``part``, spread as ``other`` is."""
    if not is_spread(other):
        return part
    from torch.distributed.tensor import DTensor

    like: Any = other
    made: Tensor = DTensor.from_local(
        part, like.device_mesh, like.placements, run_check=False, shape=like.shape,
        stride=like.stride(),
    )  # fmt: skip
    return made


def part_of(tensor: Tensor, other: Tensor) -> Tensor:
    """The part of ``tensor``, whole here, that this process holds of ``other`` of its shape."""
    if not is_spread(other):
        return tensor
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    like: Any = other
    sizes, starts = compute_local_shape_and_global_offset(
        like.shape, like.device_mesh, like.placements
    )
    parts = zip(starts, sizes, strict=True)
    return tensor[tuple(slice(start, start + size) for start, size in parts)]


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
