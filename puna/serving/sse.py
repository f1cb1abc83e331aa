"""Server-sent events: answers that stream.

A piece costs little: what stays the same in every one is written once, as a `Frame`.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import aclosing
from typing import Any

from fastapi.responses import StreamingResponse
from starlette.types import Send

from puna.inference import Delta
from puna.serving.errors import ApiError

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
        super().__init__(self._guarded(), headers={"cache-control": "no-store"})

    async def stream_response(self, send: Send) -> None:
        """Send everything."""
        async with aclosing(self._events):
            await super().stream_response(send)

    async def _guarded(self) -> AsyncIterator[bytes]:
        """The events; a failure in the middle becomes the last one, as clients expect it."""
        try:
            async for item in self._events:
                yield item
        except ApiError as error:
            yield event(error.body())
