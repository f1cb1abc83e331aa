"""Accelerators as data: rows of ``hardware.yaml``, of a user's file, and this machine, measured."""

import difflib
from pathlib import Path
from typing import Any

import psutil
import torch
from pydantic import Field

from puna.core.config import Config, load_yaml
from puna.core.devices import cpu_name, default_device, fast_dtype, memory_bandwidth, peak_flops
from puna.core.errors import UsageError

TABLE = Path(__file__).with_name("hardware.yaml")
CPU = "cpu"


class Hardware(Config):
    """One accelerator and what joins it to others; units are in the names, G is 10^9."""

    about: str
    """What it is, for people."""
    source: str
    """Where the figures are from."""
    bf16_tflops: float = Field(gt=0)
    """Dense peak of bf16 products, 10^12 FLOP/s."""
    fp8_tflops: float = Field(default=0, ge=0)
    """Dense peak of fp8 products; 0 where there are none."""
    memory_gb: float = Field(gt=0)
    """Memory of one, 10^9 bytes."""
    memory_gbps: float = Field(gt=0)
    """Reading or writing that memory, 10^9 bytes/s."""
    node_gpus: int = Field(default=8, ge=1)
    """How many one switch joins."""
    node_gbps: float = Field(gt=0)
    """What each sends over that switch, one direction, 10^9 bytes/s."""
    network_gbps: float = Field(gt=0)
    """What each sends to other nodes, one direction, 10^9 bytes/s."""
    gemm_fraction: float = Field(gt=0, le=1)
    """Share of the bf16 peak that large products reach while training."""
    usd_per_hour: float = Field(default=0, ge=0)
    """Price of one for an hour; 0 where nobody said."""


def hardware(name: str, table: Path | None = None) -> Hardware:
    """The accelerator called ``name``; ``cpu`` is this machine, measured now (two seconds).

    Args:
        table: a file like ``hardware.yaml`` whose rows are added or replace those of the same name.

    Raises `UsageError` for an unknown name and for a row that is wrong.
    """
    rows = load_yaml(TABLE) | (load_yaml(table) if table else {})
    if name in rows:
        where = f"{table or TABLE.name}: {name}"
        if not isinstance(rows[name], dict):
            raise UsageError(f"{where}: expected the keys of a row, as in {TABLE.name}")
        return Hardware.parse(rows[name], where=where)
    if name == CPU:
        return this_machine()
    known = [*rows, CPU]
    near = difflib.get_close_matches(name, known, n=1)
    mend = f"did you mean {near[0]}?" if near else f"known: {', '.join(known)}"
    raise UsageError(f"no GPU called '{name}': {mend}; add a row of your own with --hardware FILE")


def this_machine() -> Hardware:
    """What this process would train on, by measurement: products, memory, nothing beside it.

    The product that was measured is what large products reach, so the fraction of it is 1. Other
    processes would meet through memory, so the links are as fast as that.
    """
    device = default_device().type
    dtype = fast_dtype(device)
    memory: float = psutil.virtual_memory().total
    if device == "cuda":
        memory = torch.cuda.get_device_properties(0).total_memory
    bandwidth = memory_bandwidth(device) / 1e9
    name = torch.cuda.get_device_name() if device == "cuda" else cpu_name()
    row: dict[str, Any] = {
        "about": f"{name}, products in {str(dtype).removeprefix('torch.')}",
        "source": "measured here",
        "bf16_tflops": peak_flops(device, dtype) / 1e12,
        "memory_gb": memory / 1e9,
        "memory_gbps": bandwidth,
        "node_gpus": 1,
        "node_gbps": bandwidth,
        "network_gbps": bandwidth,
        "gemm_fraction": 1.0,
    }
    return Hardware.parse(row, where="this machine")
