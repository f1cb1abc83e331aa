"""Requests in hand: how the server knows that it may stop."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from puna.serving.call import Call
from puna.serving.errors import ApiError


class Traffic:
    """Requests that were let in and are not done.

    Attributes:
        draining: whether nothing new is let in.
    """

    def __init__(self) -> None:
        self.draining = False
        self._calls: set[Call] = set()
        self._still = asyncio.Event()
        self._still.set()

    def __len__(self) -> int:
        return len(self._calls)

    @contextmanager
    def active(self, call: Call) -> Iterator[None]:
        """``call`` is in hand while inside."""
        self._calls.add(call)
        self._still.clear()
        try:
            yield
        finally:
            self._calls.remove(call)
            if not self._calls:
                self._still.set()

    async def drain(self, seconds: float) -> bool:
        """Let nothing new in and wait for what is in hand; whether it ended in time.

        What did not is interrupted with an error.
        """
        self.draining = True
        try:
            async with asyncio.timeout(seconds):
                await self._still.wait()
        except TimeoutError:
            self.interrupt()
            return False
        return True

    def interrupt(self) -> None:
        """End everything in hand with an error."""
        stopped = ApiError(
            503, "the server stopped before this was done", type="server_error", code="stopped"
        )
        for call in self._calls:
            call.interrupt(stopped)
