"""How the processes that torchrun started meet, and how they part."""

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

from puna.core.errors import PunaError, UsageError
from puna.parallel.mesh import LOST, Mesh, here

_PATIENCE = timedelta(days=1)  # a process may wait that long while another prepares data
_FAILED = "puna/failed"
_LINGER_S = 2.0  # at most: others may hang until this process ends
_CLOSED = re.compile("Connection (closed|reset)|Broken pipe|connection was aborted", re.IGNORECASE)


@contextmanager
def joined() -> Iterator[Mesh]:
    """While inside, this process is one of those its environment speaks of, as torchrun sets it.

    They talk over gloo, tensors on GPUs over NCCL; process n of a machine takes its GPU n. Without
    that environment, or with a world of one, nothing happens.

    When one process fails the others do: the first one's error is raised, the others end without a
    word (`SystemExit`), so that one line says what went wrong.
    """
    if _number("WORLD_SIZE", 1) == 1:
        yield here()
        return
    store = _meet()
    try:
        yield here()
    except SystemExit:
        raise
    except BaseException as error:
        if not _is_first_to_fail(store):
            raise SystemExit(getattr(error, "exit_code", 1)) from error
        if isinstance(error, RuntimeError) and _CLOSED.search(str(error)):
            raise PunaError(LOST) from error
        raise
    dist.destroy_process_group()  # not after a failure: a GPU may wait for what never comes


def _meet() -> dist.Store:
    """Set up the process group; returns what the processes can write notes to."""
    local, backend = _number("LOCAL_RANK", 0), "gloo"
    if torch.cuda.is_available():
        backend = "cpu:gloo,cuda:nccl"
        found = torch.cuda.device_count()
        if local >= found:
            raise UsageError(
                f"process {local} of this machine has no GPU, there are {found}: "
                f"give torchrun --nproc-per-node {found}"
            )
        torch.cuda.set_device(local)
    where = f"{os.environ.get('MASTER_ADDR')}:{os.environ.get('MASTER_PORT')}"
    try:
        store, rank, size = next(rendezvous("env://", timeout=timedelta(minutes=5)))
        notes: dist.Store = dist.PrefixStore("puna", store)
        _agree_on_torch(notes, rank, size)
        dist.init_process_group(backend, store=notes, rank=rank, world_size=size, timeout=_PATIENCE)
    except ValueError as error:  # a variable of the environment is missing
        raise UsageError(f"{error}: start several processes by torchrun") from error
    except RuntimeError as error:
        reason = str(error).splitlines()[0]
        raise PunaError(
            f"cannot meet the other processes at {where}: {reason}: give torchrun another "
            "--master-port, or --master-addr"
        ) from error
    return notes


def _agree_on_torch(notes: dist.Store, rank: int, size: int) -> None:
    """End all processes before they exchange anything when one has another torch.

    The first one says which. Raises `UsageError` there, `SystemExit` in the others.
    """
    notes.set(f"torch/{rank}", torch.__version__)
    if rank == 0:
        found = {n: notes.get(f"torch/{n}").decode() for n in range(size)}
        others = [n for n, version in found.items() if version != found[0]]
        told = ""
        if others:
            told = (
                f"process {others[0]} has torch {found[others[0]]}, process 0 has {found[0]}"
                f"{f' (and {len(others) - 1} more)' if len(others) > 1 else ''}: install the same "
                "on every machine"
            )
        notes.set("torch", told)
    told = notes.get("torch").decode()
    if told and rank == 0:
        for n in range(1, size):  # it may hold the notes: it stays until all have read them
            notes.get(f"torch/read/{n}")
        raise UsageError(told)
    if told:
        notes.set(f"torch/read/{rank}", "")
        raise SystemExit(UsageError.exit_code)


def _is_first_to_fail(store: dist.Store) -> bool:
    try:
        is_first = store.add(_FAILED, 1) == 1
    except RuntimeError:  # the process that kept the notes is gone
        return True
    # where this process keeps them, and not torchrun's agent, the others must still be able to ask
    if _number("RANK", 0) == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        until = time.monotonic() + _LINGER_S
        while store.add(_FAILED, 0) < _number("WORLD_SIZE", 1) and time.monotonic() < until:
            time.sleep(0.02)
    return is_first


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, str(default))
    if not text.isdigit():
        raise UsageError(f"{name}={text} in the environment is not a number: unset it")
    return int(text)
