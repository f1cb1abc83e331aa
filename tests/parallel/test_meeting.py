"""Processes that cannot work together are told so before they exchange anything."""

import socket
import time

import pytest
import torch
import torch.distributed as dist

from puna.core.errors import PunaError, UsageError
from puna.parallel import joined
from puna.parallel.processes import _agree_on_torch


def test_a_process_with_another_torch_is_named_by_the_first() -> None:
    notes = dist.HashStore()
    for n, version in ((1, torch.__version__), (2, "2.11.0"), (3, "2.11.0")):
        notes.set(f"torch/{n}", version)
        notes.set(f"torch/read/{n}", "")
    with pytest.raises(UsageError) as error:
        _agree_on_torch(notes, 0, 4)
    said = f"process 2 has torch 2.11.0, process 0 has {torch.__version__} (and 1 more): install"
    assert str(error.value).startswith(said)


def test_the_others_end_in_silence() -> None:
    notes = dist.HashStore()
    notes.set("torch", "process 1 has torch 2.11.0")
    with pytest.raises(SystemExit) as end:
        _agree_on_torch(notes, 1, 2)
    assert end.value.code == UsageError.exit_code


def test_equal_ones_go_on() -> None:
    notes = dist.HashStore()
    notes.set("torch/1", torch.__version__)
    _agree_on_torch(notes, 0, 2)
    _agree_on_torch(notes, 1, 2)


def test_a_port_in_use_is_named_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        places = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 2, "MASTER_PORT": port}
        for name, value in places.items():
            monkeypatch.setenv(name, str(value))
        monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
        began = time.monotonic()
        with (
            pytest.raises(PunaError, match=f"cannot meet the other processes at .*:{port}"),
            joined(),
        ):
            pass
        assert time.monotonic() - began < 20
