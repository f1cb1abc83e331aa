"""The engine behind an event loop: a thread of its own runs the steps and sleeps when idle."""

import asyncio
import math
import os
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from puna.core.errors import PunaError
from puna.inference.engine import Engine
from puna.inference.request import Delta, QueueFull, Request, Stats

HAND_OVER_S = 0.01
"""Longest that a step waits for readers of the one before."""
PIECE_S = 0.004
"""Of several answers that grow, each is told of at most once in so many seconds times their number:
250 pieces a second in all, which keeps sending cheap (docs/log.md)."""
STOPPED = "the engine has stopped: start the server again"


class _Mailbox:
    """Deltas of one request on their way to its reader; those a slow reader missed are merged."""

    def __init__(self) -> None:
        self._deltas: list[Delta] = []
        self._closed = False
        self._arrived = asyncio.Event()

    def put(self, delta: Delta) -> None:
        """Add a delta; nothing follows one with ``finish``."""
        if self._deltas and self._deltas[-1].finish is not None:
            return
        self._deltas.append(delta)
        self._arrived.set()

    def close(self) -> None:
        """Let nobody wait any longer."""
        self._closed = True
        self._arrived.set()

    async def take(self) -> Delta | None:
        """All there is, or as soon as there is something; None when closed."""
        await self._arrived.wait()
        if self._closed:
            return None
        self._arrived.clear()
        deltas, self._deltas = self._deltas, []
        return merge(deltas)


def merge(deltas: Sequence[Delta]) -> Delta:
    """Consecutive deltas of one request as one."""
    if len(deltas) == 1:
        return deltas[0]
    first, last = deltas[0], deltas[-1]
    return Delta(
        ids=tuple(i for delta in deltas for i in delta.ids),
        text="".join(delta.text for delta in deltas),
        logprobs=tuple(entry for delta in deltas for entry in delta.logprobs),
        prompt_logprobs=first.prompt_logprobs,
        cached_tokens=first.cached_tokens,
        finish=last.finish,
        matched=last.matched,
        error=last.error,
    )


class Pace:
    """Holds deltas back where many answers grow, and hands them on merged.

    An answer's first text and its last go out at once. On the engine's thread.
    """

    def __init__(self) -> None:
        self._held: dict[int, list[Delta]] = {}
        self._told: dict[int, float] = {}
        """When text of the answers that grow was last handed on."""

    def due(self, deltas: Sequence[tuple[int, Delta]], now: float) -> list[tuple[int, Delta]]:
        """What is to be handed on at time ``now``, in seconds, once ``deltas`` have come."""
        for handle, delta in deltas:
            self._held.setdefault(handle, []).append(delta)
        growing = len({handle for handle, _ in deltas})
        patience = PIECE_S * growing if growing > 1 else 0
        out = []
        for handle, held in self._held.items():
            ends = held[-1].finish is not None
            if ends or now - self._told.get(handle, -math.inf) >= patience:
                out.append((handle, merge(held)))
        for handle, delta in out:
            del self._held[handle]
            if delta.text:
                self._told[handle] = now
            if delta.finish is not None:
                self.forget(handle)
        return out

    def forget(self, handle: int) -> None:
        """Nobody reads this answer any more."""
        self._held.pop(handle, None)
        self._told.pop(handle, None)


class Answer(AsyncIterator[Delta]):
    """Deltas of one request. It can be closed at any time, also by others than its reader."""

    def __init__(self, mailbox: _Mailbox, leave: Callable[[], None]) -> None:
        self._mailbox = mailbox
        self._leave = leave
        self._ended = False

    async def __anext__(self) -> Delta:
        try:
            delta = None if self._ended else await self._mailbox.take()
        except asyncio.CancelledError:
            self.close()
            raise
        if delta is None:
            raise StopAsyncIteration
        if delta.finish is not None:
            self.close()
        return delta

    def close(self) -> None:
        """Cancel the request, if it still runs; there are no further deltas."""
        if not self._ended:
            self._ended = True
            self._mailbox.close()
            self._leave()

    async def aclose(self) -> None:
        """`close`, as asynchronous generators have it."""
        self.close()

    def __del__(self) -> None:
        """Whoever drops an answer, after a ``break`` for instance, no longer wants it."""
        if not self._ended:
            self._leave()


class AsyncEngine:
    """An engine for an event loop; its methods are called from one loop only.

    Args:
        engine: nothing else may use it from now on.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._wake = threading.Condition()
        self._commands: list[_Command] = []
        self._mailboxes: dict[int, _Mailbox] = {}
        self._pace = Pace()
        self._entering = 0
        self._draining = False
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="puna-engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether it can generate."""
        return self._thread.is_alive() and not self.engine.lost

    async def submit(self, request: Request) -> Answer:
        """Let a request in; its deltas, the last with ``finish`` set.

        Closing the answer, or cancelling the task that reads it, cancels the request. Raises
        `UsageError`, `QueueFull` (also while draining) and `PunaError` when closed.
        """
        if self._draining:
            raise QueueFull(1.0)
        mailbox = _Mailbox()

        def enter() -> int:
            handle = self.engine.submit(request)
            self._mailboxes[handle] = mailbox
            return handle

        call = self._call(enter)
        self._entering += 1
        try:
            handle = await asyncio.shield(call)
        except asyncio.CancelledError:
            call.add_done_callback(self._cancel_if_entered)
            raise
        finally:
            self._entering -= 1
        return Answer(mailbox, lambda: self._leave(handle))

    async def embed(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """As `Engine.embed`, between two steps."""
        vectors: Tensor = await self._call(lambda: self.engine.embed(prompts))
        return vectors

    async def load_adapter(self, name: str, folder: Path) -> None:
        """As `Engine.load_adapter`, between two steps."""
        await self._call(lambda: self.engine.load_adapter(name, folder))

    async def unload_adapter(self, name: str) -> None:
        """As `Engine.unload_adapter`, between two steps."""
        await self._call(lambda: self.engine.unload_adapter(name))

    def stats(self) -> Stats:
        """Figures of this moment."""
        return self.engine.stats()

    async def drain(self) -> None:
        """Let nothing new in; return when everything accepted is done and read."""
        self._draining = True
        while self._mailboxes or self._entering:  # a look every 50 ms costs nothing
            await asyncio.sleep(0.05)

    def close(self) -> None:
        """Stop the thread after its current step; what still runs ends as cancelled."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()
        self.engine.close()
        for command in self._commands:
            command.refuse()
        self._deliver(self._pace.due((), math.inf), None)
        for mailbox in self._mailboxes.values():
            mailbox.put(Delta(finish="cancelled"))

    def _leave(self, handle: int) -> None:
        def leave() -> None:
            self.engine.cancel(handle)
            self._pace.forget(handle)

        self._mailboxes.pop(handle, None)
        self._post(_Command(leave))

    def _cancel_if_entered(self, call: "asyncio.Future[Any]") -> None:
        if not call.cancelled() and call.exception() is None:
            self._leave(call.result())

    def _post(self, command: "_Command") -> None:
        with self._wake:
            self._commands.append(command)
            self._wake.notify()

    def _call(self, function: Callable[[], Any]) -> "asyncio.Future[Any]":
        """Run ``function`` on the engine's thread; its result or error comes back."""
        if self._closed:
            raise PunaError(STOPPED)
        self._loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = self._loop.create_future()
        self._post(_Command(function, future))
        return future

    def _run(self) -> None:
        waits = _takes_all_cores(self.engine)
        while True:
            with self._wake:
                while not (self._commands or self._closed) and self.engine.idle:
                    self._wake.wait()
                if self._closed:
                    return
                commands, self._commands = self._commands, []
            for command in commands:
                command.run()
            if not self.engine.idle:
                deltas = self._pace.due(self._step(), time.monotonic())
                if deltas and self._loop is not None:
                    read = threading.Event() if waits else None
                    self._loop.call_soon_threadsafe(self._deliver, deltas, read)
                    if read is not None:
                        read.wait(HAND_OVER_S)

    def _step(self) -> list[tuple[int, Delta]]:
        """A turn of the engine. One that fails as a whole ends all its requests, not the thread."""
        try:
            return self.engine.step()
        except Exception as error:  # noqa: BLE001  told to every reader
            handles = list(self._mailboxes)
            for handle in handles:
                self.engine.cancel(handle)
            problem = f"{type(error).__name__}: {error}"
            return [(handle, Delta(finish="error", error=problem)) for handle in handles]

    def _deliver(self, deltas: list[tuple[int, Delta]], read: threading.Event | None) -> None:
        for handle, delta in deltas:
            mailbox = self._mailboxes.get(handle)
            if mailbox is not None:
                mailbox.put(delta)
        if read is not None:
            assert self._loop is not None, "it runs this"
            # Readers woken above run in the loop's next turn; what they write leaves at its end.
            self._loop.call_soon(self._loop.call_soon, read.set)


def _takes_all_cores(engine: Engine) -> bool:
    """Whether a step computes on every processor this process may use.

    Then whoever runs beside it holds up all its threads, which meet at barriers, and both want
    Python's lock: letting readers go first costs less (docs/log.md).
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return engine.model.device.type == "cpu" and torch.get_num_threads() >= (cores or 1)


class _Command:
    """A function for the engine's thread, and the future that wants its result."""

    def __init__(
        self, function: Callable[[], Any], future: "asyncio.Future[Any] | None" = None
    ) -> None:
        self._function = function
        self._future = future

    def run(self) -> None:
        """Call it, on the engine's thread."""
        try:
            result, error = self._function(), None
        except Exception as problem:  # noqa: BLE001  handed to the caller
            result, error = None, problem
        if self._future is not None:
            self._future.get_loop().call_soon_threadsafe(self._settle, result, error)

    def refuse(self) -> None:
        """It will never run; on the loop's thread."""
        self._settle(None, PunaError(STOPPED))

    def _settle(self, result: Any, error: Exception | None) -> None:
        if self._future is None or self._future.done():
            return
        if error is None:
            self._future.set_result(result)
        else:
            self._future.set_exception(error)
