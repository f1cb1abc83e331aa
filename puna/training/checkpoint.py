"""Checkpoints, whole or absent: what is trained, optimizer, random state, position, checksummed.

Frozen weights are not in them: they are those the run starts from.
"""

import json
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from puna.core.errors import PunaError
from puna.core.files import new_folder, sha256_file, write_json
from puna.parallel import Mesh
from puna.training.optimizer import states

KEPT = 2  # the newest, and one before it should the newest be damaged
_TENSORS, _STATE = "state.safetensors", "checkpoint.json"


@dataclass(frozen=True)
class Progress:
    """Where a training run stands."""

    step: int
    """Optimizer steps done."""
    tokens: int
    """Tokens seen."""
    seconds: float
    """Time spent in steps, over all processes that worked on this run."""


class Kept(Protocol):
    """What a method remembers from step to step besides weights, such as the answers in hand."""

    def state_dict(self) -> dict[str, Tensor]:
        """All of it, in all processes; what the first one gives is written."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state_dict` gave; the tensors are on the CPU."""
        ...


def _optimizer_tensors(model: nn.Module, optimizers: Sequence[Optimizer]) -> dict[str, Tensor]:
    return {
        f"optimizer.{name}.{key}": value
        for name, parameter, optimizer in states(model, optimizers)
        for key, value in optimizer.state.get(parameter, {}).items()
    }


def _folders(root: Path) -> Iterator[Path]:
    """Complete checkpoint folders below ``root``, newest first."""
    yield from sorted(root.glob("step-*"), reverse=True)


def save(
    root: Path,
    model: nn.Module,
    optimizers: Sequence[Optimizer],
    at: Progress,
    kept: Kept | None,
    mesh: Mesh,
) -> None:
    """Write a checkpoint of this moment below ``root``, then remove all but the newest two.

    All processes call it; the first one writes.
    """
    remembered = {} if kept is None else kept.state_dict()
    if not mesh.is_first:
        return
    named = model.named_parameters()
    tensors = {f"model.{name}": value.detach() for name, value in named if value.requires_grad}
    tensors |= _optimizer_tensors(model, optimizers)
    tensors |= {f"kept.{name}": value for name, value in remembered.items()}
    tensors["rng.cpu"] = torch.get_rng_state()
    if torch.cuda.is_available():
        tensors["rng.cuda"] = torch.cuda.get_rng_state()
    target = root / f"step-{at.step:08d}"
    with new_folder(target) as folder:
        try:
            save_file({k: v.contiguous() for k, v in tensors.items()}, folder / _TENSORS)
        except SafetensorError as error:  # the library wraps the system's error in text
            if "No space left" in str(error):
                raise PunaError(
                    f"the disk is full while writing {target}: free some space and run again, "
                    "the last checkpoint is intact"
                ) from error
            raise
        state = {"sha256": sha256_file(folder / _TENSORS), **at.__dict__}
        write_json(folder / _STATE, state)
    for old in list(_folders(root))[KEPT:]:
        shutil.rmtree(old)


def restore(
    root: Path, model: nn.Module, optimizers: Sequence[Optimizer], kept: Kept | None = None
) -> Progress | None:
    """Load the newest checkpoint that is whole; None when there is none.

    A damaged one (its checksum differs) is passed over for the one before it.
    """
    for folder in _folders(root):
        try:
            state = json.loads((folder / _STATE).read_text())
            if sha256_file(folder / _TENSORS) != state.pop("sha256"):
                continue
        except (OSError, ValueError, KeyError):
            continue
        tensors = load_file(folder / _TENSORS)
        _load(tensors, model, optimizers)
        if kept is not None:
            kept.load_state_dict(_below("kept.", tensors))
        return Progress(**state)
    return None


def _load(tensors: dict[str, Tensor], model: nn.Module, optimizers: Sequence[Optimizer]) -> None:
    with torch.no_grad():
        for name, parameter, optimizer in states(model, optimizers):
            parameter.copy_(tensors[f"model.{name}"])
            for key, value in _below(f"optimizer.{name}.", tensors).items():
                optimizer.state[parameter][key] = value.to(parameter.device)
    torch.set_rng_state(tensors["rng.cpu"])
    if "rng.cuda" in tensors and torch.cuda.is_available():
        torch.cuda.set_rng_state(tensors["rng.cuda"])


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin with ``prefix``, under the rest of the name."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
