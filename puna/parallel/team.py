"""Processes that this one starts beside itself on one machine, to run one model together.

The first, the leader, says what is to be done; the members do it with it. They talk over gloo,
tensors on GPUs over NCCL, on loopback only. A process is in one team at most.
"""

import atexit
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor

from puna.core.errors import PunaError, UsageError

_HOST = "127.0.0.1"
_FOREVER = timedelta(days=3650)  # members wait for the next order, however long that takes
# The leader waits for nobody so long that lives: gloo does not always tell it that one has ended.
_ANSWER = timedelta(minutes=1)
_MEETING = timedelta(minutes=5)
_LOOK_S = 0.2
_END_S = 10.0
_LOOPBACK = dict.fromkeys(
    ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"), "lo0" if sys.platform == "darwin" else "lo"
)
Order = list[object]


class Team:
    """What a leader and its members share: orders, sums, and knowing who is gone.

    Args:
        place: number of this process; 0 is the leader.
        size: how many they are.
        store: where they meet.
    """

    def __init__(self, place: int, size: int, store: dist.TCPStore) -> None:
        self.place, self.size = place, size
        self._store = store
        self._members: list[subprocess.Popen[bytes]] = []
        self._over = threading.Event()
        self._lost = ""
        self._listens = False
        self._group: dist.ProcessGroup | None = None
        self._threads = torch.get_num_threads()

    @property
    def lost(self) -> str:
        """Why the team can do nothing any more; empty while it can."""
        return self._lost

    @classmethod
    def start(cls, size: int, module: str, arguments: Sequence[str]) -> "Team":
        """Start ``size - 1`` members, ``python -m module PLACE SIZE PORT *arguments`` each.

        Each has to call `join`. Raises `UsageError` for more than there are GPUs, and where this
        process is in a team already; `PunaError` when a member ends instead of coming.
        """
        if dist.is_initialized():
            raise UsageError(
                "this process shares a model with others already: serve a second one by itself"
            )
        if torch.cuda.is_available() and torch.cuda.device_count() < size:
            raise UsageError(
                f"{size} processes need {size} GPUs, there are {torch.cuda.device_count()}: ask "
                "for fewer"
            )
        team = cls(0, size, _store(size))
        try:
            team._start_members(module, arguments)
            team.until_all("here")
            team._meet()
        except BaseException:
            team.close()
            raise
        atexit.register(team.close)
        threading.Thread(target=team._watch, name="puna-team", daemon=True).start()
        return team

    def _start_members(self, module: str, arguments: Sequence[str]) -> None:
        share = max(1, self._threads // self.size)
        if not torch.cuda.is_available():
            torch.set_num_threads(share)
        environment = {**_LOOPBACK, **os.environ, "OMP_NUM_THREADS": str(share)}
        # -P: a folder that happens to be the current one is no place to import from
        program = [sys.executable, "-P", "-m", module]
        for place in range(1, self.size):
            member = subprocess.Popen(
                [*program, str(place), str(self.size), str(self._store.port), *arguments],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C is for the leader, who ends them
            )
            self._members.append(member)

    @classmethod
    def join(cls, place: int, size: int, port: int) -> "Team":
        """Come to the leader that started this process."""
        end_with(os.getppid())
        team = cls(place, size, dist.TCPStore(_HOST, port, size, is_master=False))
        if torch.cuda.is_available():
            torch.cuda.set_device(place)
        team.report("here")
        team._meet()
        return team

    def _meet(self) -> None:
        backend = "gloo"
        if torch.cuda.is_available():
            backend = "cpu:gloo,cuda:nccl"
            torch.cuda.set_device(self.place)
        lead_by_gloo = self.place == 0 and backend == "gloo"  # `_lose` ends what waits over NCCL
        with _loopback():
            dist.init_process_group(
                backend, store=dist.PrefixStore("team", self._store), rank=self.place,
                world_size=self.size, timeout=_MEETING,
            )  # fmt: skip
            self._group = dist.new_group(timeout=_ANSWER if lead_by_gloo else _FOREVER)

    def listens(self) -> None:
        """All members wait for orders from here on."""
        self._listens = True

    def report(self, step: str) -> None:
        """A member has come as far as this step."""
        self._store.set(f"{step}/{self.place}", "")

    def until_all(self, step: str) -> None:
        """Wait until every member reports this step; raises `PunaError` when one has ended."""
        wanted = [f"{step}/{place}" for place in range(1, self.size)]
        while not self._store.check(wanted):
            self._check_members()
            self._over.wait(_LOOK_S)

    def _check_members(self) -> None:
        for place, member in enumerate(self._members, start=1):
            if member.poll() is not None:
                raise PunaError(
                    f"process {place} of the model has ended (exit code {member.returncode}): "
                    "start again"
                )

    def _watch(self) -> None:
        while not self._over.wait(_LOOK_S):
            try:
                self._check_members()
            except PunaError as error:
                if not self._over.is_set():
                    self._lose(str(error))
                return

    def _lose(self, why: str) -> None:
        self._lost = self._lost or why
        if torch.cuda.is_available() and dist.is_initialized():  # NCCL would wait for ever
            dist.distributed_c10d._get_default_group().abort()
            if self._group is not None:
                self._group.abort()

    @contextmanager
    def order(self, *order: object) -> Iterator[None]:
        """Tell all members to do this, and do it with them inside.

        Raises `PunaError` where the team is lost. Whatever fails inside loses it: nobody knows how
        far the others have come.
        """
        if self._lost:
            raise PunaError(self._lost)
        try:
            self._tell(json.dumps(order).encode())
            yield
        except BaseException as error:
            self._lose(f"the processes of the model have lost each other ({error}): start again")
            if not isinstance(error, Exception):  # Ctrl-C in the midst of it
                raise
            raise PunaError(self._lost) from error

    def _tell(self, message: bytes) -> None:
        dist.broadcast(torch.tensor([len(message)]), 0, group=self._group)
        dist.broadcast(
            torch.frombuffer(bytearray(message), dtype=torch.uint8), 0, group=self._group
        )

    def hear(self) -> Order | None:
        """A member's next order; None when there is none any more."""
        try:
            length = torch.zeros(1, dtype=torch.int64)
            dist.broadcast(length, 0, group=self._group)
            message = torch.zeros(int(length), dtype=torch.uint8)
            dist.broadcast(message, 0, group=self._group)
        except RuntimeError:  # the leader has ended
            return None
        order: Order | None = json.loads(bytes(message.tolist()))
        return order

    def sum(self, part: Tensor) -> Tensor:
        """The sum of all processes' tensors, in place."""
        dist.all_reduce(part, group=self._group)
        return part

    def share(self, tensor: Tensor) -> Tensor:
        """The leader's tensor, in place."""
        dist.broadcast(tensor, 0, group=self._group)
        return tensor

    def joined(self, part_nv: Tensor) -> Tensor:
        """Each process's columns side by side, in the order of their places."""
        parts = [torch.empty_like(part_nv) for _ in range(self.size)]
        dist.all_gather(parts, part_nv.contiguous(), group=self._group)
        return torch.cat(parts, 1)

    def close(self) -> None:
        """End the members."""
        if self._over.is_set():
            return
        self._over.set()
        atexit.unregister(self.close)
        told = self._listens and not self._lost and self._tell_the_end()
        for member in self._members:
            if not told:
                member.terminate()
            try:
                member.wait(_END_S)
            except subprocess.TimeoutExpired:
                member.kill()
                member.wait()
        if dist.is_initialized():
            dist.destroy_process_group()
        self._group = None
        torch.set_num_threads(self._threads)

    def _tell_the_end(self) -> bool:
        try:
            self._tell(b"null")
        except RuntimeError:  # a member has ended
            return False
        return True


def _store(size: int) -> dist.TCPStore:
    """Where the processes meet; by itself torch's store listens on every interface."""
    listening = socket.create_server((_HOST, 0))
    port = listening.getsockname()[1]
    return dist.TCPStore(
        _HOST, port, size, is_master=True, wait_for_workers=False,
        master_listen_fd=listening.detach(),
    )  # fmt: skip


def end_with(leader: int) -> None:
    """From here on, this process ends when its parent ``leader`` has ended, however that ended.

    A GPU may wait for what never comes, and a process that trains would go on for nobody.
    """

    def watch() -> None:
        while os.getppid() == leader:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, name="puna-end-with", daemon=True).start()


@contextmanager
def _loopback() -> Iterator[None]:
    """Within, connections are made on this machine alone, unless the environment says otherwise."""
    added = {key: value for key, value in _LOOPBACK.items() if key not in os.environ}
    os.environ.update(added)
    try:
        yield
    finally:
        for key in added:
            del os.environ[key]
