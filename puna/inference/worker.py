"""The engine behind an event loop: a thread of its own runs the steps and sleeps when idle."""

import asyncio
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from typing import Any

from torch import Tensor

from puna.inference.engine import Engine
from puna.inference.request import Delta, QueueFull, Request, Stats


class _Mailbox:
    """Deltas of one request on their way to its reader; those a slow reader missed are merged."""

    def __init__(self) -> None:
        self.deltas: list[Delta] = []
        self.arrived = asyncio.Event()

    def put(self, delta: Delta) -> None:
        self.deltas.append(delta)
        self.arrived.set()

    async def take(self) -> Delta:
        await self.arrived.wait()
        self.arrived.clear()
        deltas, self.deltas = self.deltas, []
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


class Answer(AsyncIterator[Delta]):
    """Deltas of one request. It can be closed at any time, also by others than its reader."""

    def __init__(self, mailbox: _Mailbox, leave: Callable[[], None]) -> None:
        self._mailbox = mailbox
        self._leave = leave
        self._ended = False

    async def __anext__(self) -> Delta:
        if self._ended:
            raise StopAsyncIteration
        try:
            delta = await self._mailbox.take()
        except asyncio.CancelledError:
            self.close()
            raise
        if delta.finish is not None:
            self.close()
        return delta

    def close(self) -> None:
        """Cancel the request, if it still runs; there are no further deltas."""
        if not self._ended:
            self._ended = True
            self._leave()

    async def aclose(self) -> None:
        """`close`, as asynchronous generators have it."""
        self.close()


class AsyncEngine:
    """An engine for an event loop; its methods are called from one loop only.

    Args:
        engine: nothing else may use it from now on.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._wake = threading.Condition()
        self._commands: list[Callable[[], None]] = []
        self._mailboxes: dict[int, _Mailbox] = {}
        self._draining = False
        self._closed = False
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._run, name="puna-engine", daemon=True)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    @property
    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread.is_alive()

    async def submit(self, request: Request) -> Answer:
        """Let a request in; its deltas, the last with ``finish`` set.

        Closing the iterator, or cancelling the task that reads it, cancels the request. Raises
        `UsageError` and `QueueFull` (also while draining).
        """
        if self._draining:
            raise QueueFull(1.0)
        mailbox = _Mailbox()

        def enter() -> int:
            handle = self.engine.submit(request)
            self._mailboxes[handle] = mailbox
            return handle

        call = self._call(enter)
        try:
            handle = await asyncio.shield(call)
        except asyncio.CancelledError:
            call.add_done_callback(self._cancel_if_entered)
            raise
        return Answer(mailbox, lambda: self._leave(handle))

    async def embed(self, prompts: Sequence[Sequence[int]]) -> Tensor:
        """As `Engine.embed`, between two steps."""
        vectors: Tensor = await self._call(lambda: self.engine.embed(prompts))
        return vectors

    def stats(self) -> Stats:
        """Figures of this moment."""
        return self.engine.stats()

    async def drain(self) -> None:
        """Let nothing new in; return when everything accepted is done."""
        self._draining = True
        while self._mailboxes:  # while requests finish, a look every 50 ms is nothing
            await asyncio.sleep(0.05)

    def close(self) -> None:
        """Stop the thread after its current step."""
        with self._wake:
            self._closed = True
            self._wake.notify()
        if self._thread.is_alive():
            self._thread.join()

    def _leave(self, handle: int) -> None:
        self._mailboxes.pop(handle, None)
        self._post(lambda: self.engine.cancel(handle))

    def _cancel_if_entered(self, call: "asyncio.Future[Any]") -> None:
        if not call.cancelled() and call.exception() is None:
            self._leave(call.result())

    def _post(self, command: Callable[[], None]) -> None:
        with self._wake:
            self._commands.append(command)
            self._wake.notify()

    def _call(self, function: Callable[[], Any]) -> "asyncio.Future[Any]":
        """Run ``function`` on the engine's thread; its result or error comes back."""
        loop = self._loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()

        def settle(result: Any, error: BaseException | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        def command() -> None:
            try:
                result, error = function(), None
            except Exception as problem:  # noqa: BLE001  handed to the caller
                result, error = None, problem
            loop.call_soon_threadsafe(settle, result, error)

        self._post(command)
        return future

    def _run(self) -> None:
        while True:
            with self._wake:
                while not (self._commands or self._closed) and self.engine.idle:
                    self._wake.wait()
                if self._closed:
                    return
                commands, self._commands = self._commands, []
            for command in commands:
                command()
            if not self.engine.idle:
                deltas = self.engine.step()
                if deltas and self._loop is not None:
                    self._loop.call_soon_threadsafe(self._deliver, deltas)

    def _deliver(self, deltas: list[tuple[int, Delta]]) -> None:
        for handle, delta in deltas:
            mailbox = self._mailboxes.get(handle)
            if mailbox is not None:
                mailbox.put(delta)
