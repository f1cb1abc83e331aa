"""Tensors spread over processes, as files that any layout reads: torch's DCP, in safetensors.

Each process writes what it has, as ``shard-NNNNN-...safetensors``, with the place of each piece in
its tensor; no file holds pickled objects. A process reads just the pieces that it needs, so the
whole of a model is nowhere in memory. Files of whole tensors are read the same way.
"""

import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from puna.parallel.mesh import Mesh

Shapes = dict[str, tuple[tuple[int, ...], torch.dtype]]


def write(folder: Path, tensors: dict[str, Tensor], group: dist.ProcessGroup | None) -> None:
    """Write this process's pieces into ``folder``; all processes of ``group`` call it."""
    from torch.distributed import checkpoint as dcp

    writer = dcp.HuggingFaceStorageWriter(str(folder), save_distributed=True)
    dcp.save(tensors, storage_writer=writer, process_group=group)


def shards_of(rank: int, folder: Path) -> list[Path]:
    """The files that process ``rank`` wrote."""
    return sorted(folder.glob(f"shard-{rank + 1:05}-*.safetensors"))


def shapes_in(folder: Path) -> Shapes:
    """Shape and data type of every tensor in the files of ``folder``."""
    from torch.distributed import checkpoint as dcp

    found: Any = dcp.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {name: (tuple(each.size), each.properties.dtype) for name, each in found.items()}


def read_tensors(folder: Path, wanted: Iterable[tuple[str, Tensor]], mesh: Mesh) -> None:
    """Fill each tensor from that of its name in the files of ``folder``.

    All processes call it, unless each has all of every tensor. Copies may have the same name.
    """
    from torch.distributed import checkpoint as dcp

    once: dict[str, Tensor] = {}
    copies = [(once[name], t) for name, t in wanted if once.setdefault(name, t) is not t]
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")
        reader = dcp.HuggingFaceStorageReader(str(folder))
        dcp.load(dict(once), storage_reader=reader, no_dist=mesh.layout.only_replicas)
    for original, copy in copies:
        copy.copy_(original)
