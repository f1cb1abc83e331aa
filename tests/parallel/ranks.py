"""Processes of a test that meet as torchrun's do; none outlives it."""

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from puna.parallel import joined

_PATIENCE_S = 240
_SLOW = [  # to import: done once, in the server that all processes are forked from
    f"torch.distributed.{part}" for part in ("tensor.parallel", "fsdp", "pipelining", "checkpoint")
]


@contextmanager
def ranks(
    count: int, notes: Path, work: Callable[..., None], *arguments: Any
) -> Iterator[list[BaseProcess]]:
    """``count`` processes, each joined with the others and doing ``work(*arguments)``.

    One that fails leaves its error in ``notes / "ended-RANK"`` and 3 as its exit code.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["puna.training", *_SLOW])
    started: list[BaseProcess] = [
        server.Process(target=_enter, args=(rank, count, port, notes, work, arguments), daemon=True)
        for rank in range(count)
    ]
    try:
        for process in started:
            process.start()
        yield started
    finally:
        for process in started:
            process.kill()
            process.join()


def run_ranks(count: int, notes: Path, work: Callable[..., None], *arguments: Any) -> list[int]:
    """The exit codes of `ranks`, once all have ended."""
    with ranks(count, notes, work, *arguments) as started:
        for process in started:
            process.join(_PATIENCE_S)
        return [process.exitcode for process in started if process.exitcode is not None]


def _enter(
    rank: int, count: int, port: int, notes: Path, work: Callable[..., None], arguments: Any
) -> None:
    torch.set_num_threads(1)
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in places.items()}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    try:
        with joined():
            work(*arguments)
    except BaseException as error:  # noqa: BLE001  whatever it is, the test looks at it
        (notes / f"ended-{rank}").write_text(f"{type(error).__name__}: {error}")
        sys.exit(3)
