"""Server-sent events: answers that stream.

A piece costs little: what stays the same in every one is written once, as a `Frame`.
"""

import json
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from puna.inference import Delta
from puna.serving.errors import ApiError

SEND = "send"
"""In the state of an ASGI scope: how the gate sends."""
DONE = b"data: [DONE]\n\n"


def event(data: Mapping[str, Any], name: str | None = None) -> bytes:
    """One event; OpenAI names those of responses and no others."""
    head = f"event: {name}\ndata: " if name else "data: "
    return (head + json.dumps(data, separators=(",", ":")) + "\n\n").encode()


class Frame:
    """An event in which some values are filled in anew each time.

    Args:
        data: the event; `Frame.HOLE` stands wherever a value goes.
        name: of the event.
    """

    HOLE = "\ufffdhole\ufffd"

    def __init__(self, data: Mapping[str, Any], name: str | None = None) -> None:
        self._pieces = event(data, name).split(json.dumps(self.HOLE).encode())

    def fill(self, *values: Any) -> bytes:
        """The event with ``values`` in its holes, in their order."""
        parts = [self._pieces[0]]
        for value, piece in zip(values, self._pieces[1:], strict=True):
            parts += (json.dumps(value, separators=(",", ":")).encode(), piece)
        return b"".join(parts)


Deltas = AsyncGenerator[tuple[int, Delta], None]


async def begun(deltas: Deltas) -> Deltas:
    """The same deltas, the first of which is here: what fails before it raises `ApiError` now."""
    first = await anext(deltas)

    async def all_of_them() -> Deltas:
        async with aclosing(deltas):
            yield first
            async for pair in deltas:
                yield pair

    return all_of_them()


class EventStream(StreamingResponse):
    """An answer made of events; its source is closed as soon as the client is gone."""

    media_type = "text/event-stream"

    def __init__(self, events: AsyncGenerator[bytes, None]) -> None:
        self._events = events
        self._send_piece: Send | None = None
        super().__init__(events, headers={"cache-control": "no-store"})

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer; what the gate left in ``scope`` is the short way for pieces."""
        self._send_piece = scope.get("state", {}).get(SEND)
        await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        """Send everything; a failure in the middle becomes the last event, as clients expect it.

        Middleware sees the answer's start and end. Pieces pass it by: half a dozen calls each.
        """
        start = {"status": self.status_code, "headers": self.raw_headers}
        await send({"type": "http.response.start", **start})
        piece = self._send_piece or send
        async with aclosing(self._events):
            try:
                async for item in self._events:
                    await piece({"type": "http.response.body", "body": item, "more_body": True})
            except ApiError as error:
                last = event(error.body())
                await piece({"type": "http.response.body", "body": last, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})
