"""The way back to one client: headers every answer has, and the end of clients that do not read."""

import asyncio
import time
from email.utils import formatdate

from starlette.types import Message, Scope, Send

from puna.serving.call import Call
from puna.serving.errors import ApiError

ABORT = "puna.abort"
"""Extension of the ASGI scope: closes the connection at once, without sending what waits."""
_HEADERS = {
    b"x-content-type-options": b"nosniff",
    b"x-frame-options": b"DENY",
    b"referrer-policy": b"no-referrer",
    b"cache-control": b"no-store",
}


class Reply:
    """Sends one answer.

    Args:
        scope: of the request.
        send: of the server.
        call: whose id and limits go into the headers.
        seconds: how long the client may leave a piece unread.

    Attributes:
        status: of the answer; 0 before it starts.
        started, finished: whether its first or last piece was sent.
        gone: whether the client left, or was left.
    """

    def __init__(self, scope: Scope, send: Send, call: Call, seconds: float) -> None:
        self._scope = scope
        self._send = send
        self._call = call
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._task = asyncio.current_task()
        self._sending_since: float | None = None
        self._watch = self._loop.call_later(seconds, self._look)
        self.status = 0
        self.finished = False
        self.gone = False

    @property
    def started(self) -> bool:
        """Whether a status was sent."""
        return self.status > 0

    async def send(self, message: Message) -> None:
        """Send a piece; a client that leaves it unread for too long is left."""
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message["headers"] = self._headers(list(message.get("headers", ())))
        else:
            self.finished = not message.get("more_body", False)
        self._sending_since = self._loop.time()
        try:
            await self._send(message)
        finally:
            self._sending_since = None

    async def error(self, error: ApiError, *, close: bool = False) -> None:
        """Send an error as the whole answer, or break off one that has begun.

        ``close`` ends the connection: there may be more of the request on it.
        """
        if self.started:
            self._abort()
            return
        response = error.response()
        if close:
            response.headers["connection"] = "close"
        await self.send(
            {"type": "http.response.start", "status": error.status, "headers": response.raw_headers}
        )
        await self.send({"type": "http.response.body", "body": response.body})

    def leave(self) -> None:
        """The client is gone: cancel the work, unless it is done."""
        if not self.finished:
            self.gone = True
            assert self._task is not None, "a reply belongs to a task"
            self._task.cancel()

    def close(self) -> None:
        """Nothing is sent any more."""
        self._watch.cancel()

    def _look(self) -> None:
        """Leave a client that leaves a piece unread; one timer serves all pieces."""
        waited = 0.0
        if self._sending_since is not None:
            waited = self._loop.time() - self._sending_since
        if waited < self._seconds:
            self._watch = self._loop.call_later(self._seconds - waited, self._look)
            return
        self._abort()
        self.gone = True
        assert self._task is not None, "a reply belongs to a task"
        self._task.cancel()

    def _abort(self) -> None:
        abort = self._scope.get("extensions", {}).get(ABORT)
        if abort is not None:
            abort()

    def _headers(self, headers: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        present = {name.lower() for name, _ in headers}
        headers += [pair for pair in _HEADERS.items() if pair[0] not in present]
        headers.append((b"date", formatdate(time.time(), usegmt=True).encode()))
        headers.append((b"x-request-id", self._call.request_id.encode()))
        if self._call.holder is not None:
            headers += self._call.holder.requests.headers("requests")
            headers += self._call.holder.tokens.headers("tokens")
        return headers
