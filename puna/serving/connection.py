"""uvicorn's HTTP connection with the limits it lacks: headers' time and size, and how many."""

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol

from puna.serving.errors import ApiError
from puna.serving.reply import ABORT

MAX_HEADER_BYTES = 65_536


class Connection(HttpToolsProtocol):
    """One client's connection.

    Args:
        max_connections: how many may be open; further ones are answered with 503.
        header_seconds: time for the headers of a request to arrive.
        arguments: uvicorn's.
    """

    def __init__(self, *, max_connections: int, header_seconds: float, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._max_connections = max_connections
        self._header_seconds = header_seconds
        self._header_timer: asyncio.TimerHandle | None = None
        self._header_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take in a new connection, if there is room."""
        super().connection_made(transport)
        if len(self.connections) > self._max_connections:
            self._refuse(
                ApiError(
                    503,
                    "the server has as many connections as it takes: try again",
                    type="server_error",
                    code="too_many_connections",
                    retry_after_s=1,
                )
            )
        else:
            self._await_headers()

    def connection_lost(self, exc: Exception | None) -> None:
        """Forget the connection."""
        self._headers_are_here()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Parse what came; a client that never ends its headers is refused."""
        if self.transport.is_closing():
            return
        if self._header_timer is None and (self.cycle is None or self.cycle.response_complete):
            self._await_headers()
        super().data_received(data)
        if self._header_timer is not None:
            self._header_bytes += len(data)
            if self._header_bytes > MAX_HEADER_BYTES:
                self._refuse(
                    ApiError(
                        431,
                        f"the headers are larger than {MAX_HEADER_BYTES:,} bytes",
                        code="headers_too_large",
                    )
                )

    def on_message_begin(self) -> None:
        """A request begins."""
        super().on_message_begin()
        extensions: Any = {ABORT: self.transport.abort}  # ASGI lets servers add their own
        self.scope["extensions"] = extensions
        if self._header_timer is None:
            self._await_headers()

    def on_headers_complete(self) -> None:
        """The request can be answered."""
        self._headers_are_here()
        super().on_headers_complete()

    def _await_headers(self) -> None:
        self._header_bytes = 0
        self._header_timer = self.loop.call_later(self._header_seconds, self._too_slow)

    def _headers_are_here(self) -> None:
        if self._header_timer is not None:
            self._header_timer.cancel()
            self._header_timer = None

    def _too_slow(self) -> None:
        self._refuse(
            ApiError(
                408,
                f"the headers did not arrive within {self._header_seconds:g} s",
                code="request_timeout",
            )
        )

    def _refuse(self, error: ApiError) -> None:
        """Answer before there is a request, and close; an answer in hand is broken off."""
        self._headers_are_here()
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()
            return
        body = json.dumps(error.body()).encode()
        headers = error.headers() | {
            "content-type": "application/json",
            "content-length": str(len(body)),
            "connection": "close",
        }
        lines = [f"{name}: {value}\r\n".encode() for name, value in headers.items()]
        self.transport.write(b"".join([STATUS_LINE[error.status], *lines, b"\r\n", body]))
        self.transport.close()
