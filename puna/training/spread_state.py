"""The state of a run, weights and optimizer, by names that are the same under every layout."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from puna.core.errors import PunaError
from puna.parallel import Mesh
from puna.parallel.files import Shapes, read_tensors
from puna.parallel.gradients import local, spread_like
from puna.training.optimizer import states

Naming = Callable[[str], str]
"""From the name of a parameter here to that in a checkpoint, where a copy has its original's."""


def state_of(trained: nn.Module, optimizers: Sequence[Optimizer], name_of: Naming) -> Any:
    """Trained weights and optimizer state of this process, by their names in a checkpoint."""
    tensors = {}
    for name, parameter, optimizer in states(trained, optimizers):
        tensors[f"model.{name_of(name)}"] = parameter.detach()
        for key, value in optimizer.state.get(parameter, {}).items():
            tensors[f"optimizer.{name_of(name)}.{key}"] = value
    return tensors


def on_cpu(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Copies in the host's memory, spread as the originals are."""

    def copied(tensor: Tensor) -> Tensor:
        return spread_like(local(tensor.detach()).to("cpu", copy=True), tensor)

    return {name: copied(tensor) for name, tensor in tensors.items()}


def read(
    folder: Path, shapes: Shapes, trained: nn.Module, optimizers: Sequence[Optimizer],
    name_of: Naming, mesh: Mesh,
) -> None:  # fmt: skip
    """Load weights and optimizer state, each process its part.

    Raises `PunaError` naming the tensor when the files are those of another model.
    """
    wanted: list[tuple[str, Tensor]] = []
    for name, parameter, optimizer in states(trained, optimizers):
        stored = name_of(name)
        found = shapes.get(f"model.{stored}")
        check(folder, stored, parameter, None if found is None else found[0])
        wanted.append((f"model.{stored}", parameter.detach()))
        prefix = f"optimizer.{stored}."
        for full, (shape, dtype) in shapes.items():
            if full.startswith(prefix):
                value = _room(parameter.detach(), shape, dtype)
                optimizer.state[parameter][full.removeprefix(prefix)] = value
                wanted.append((full, value))
    read_tensors(folder, wanted, mesh)


def check(folder: Path, name: str, parameter: Tensor, found: Sequence[int] | None) -> None:
    """Raise `PunaError` unless a tensor of the shape ``found`` is that of ``parameter``."""
    shape = tuple(parameter.shape)
    if found is None or tuple(found) != shape:
        has = "has no such tensor" if found is None else f"has {tuple(found)}"
        raise PunaError(
            f"{folder} is of another model: {name} is {shape} here and the checkpoint {has}: give "
            "the run another name, or the model's settings of before"
        )


def _room(parameter: Any, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """Where a part of the optimizer's state is read to: spread as the weight is, if of its size."""
    if tuple(parameter.shape) == shape:
        return torch.zeros_like(parameter, dtype=dtype)
    return torch.zeros(shape, dtype=dtype, device=local(parameter).device)
