"""From listening to the last answer: start, signals, graceful end."""

import asyncio
import contextlib
import gc
import resource
import signal
import socket
import threading
from collections.abc import Awaitable, Callable, Iterator, Sequence
from functools import partial
from typing import Any

import uvicorn
from fastapi import FastAPI

from puna.core.errors import UsageError
from puna.serving.config import ServeConfig
from puna.serving.connection import Connection
from puna.serving.hub import Hub
from puna.serving.traffic import Traffic

_BACKLOG = 2048
_FLUSH_S = 2
"""Time for last bytes to reach slow clients once every request is done."""
_SPARE_FILES = 128
"""Open files besides connections."""


def listen(config: ServeConfig) -> socket.socket:
    """Take the address, so that one that is in use shows before a model is loaded.

    Clients that come now wait until `run`. Raises `UsageError`.
    """
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    host = config.host.strip("[]")
    try:
        return socket.create_server((host, config.port), family=family, backlog=_BACKLOG)
    except OSError as error:
        raise UsageError(
            f"cannot listen on {host} port {config.port}: {error.strerror}: "
            "choose another with --port or --host"
        ) from error


def run(
    app: FastAPI, config: ServeConfig, listener: socket.socket, started: Callable[[], None]
) -> bool:
    """Serve until SIGTERM or Ctrl-C, then close the engines; whether all that was accepted is done.

    The first signal lets nothing new in and waits for what is in hand, at most
    ``config.drain_seconds``; a second one ends at once. ``started`` is called when the server
    answers.
    """
    _allow_files(config.max_connections + _SPARE_FILES)
    server = new_server(app, config, started)
    server.run(sockets=[listener])
    return server.complete


def new_server(app: FastAPI, config: ServeConfig, started: Callable[[], None]) -> "Server":
    """A server of ``app``, made by `create_app`, that is ready to run."""
    protocol: Any = partial(
        Connection,
        max_connections=config.max_connections,
        header_seconds=config.header_seconds,
    )
    settings = uvicorn.Config(
        app,
        loop="uvloop",
        http=protocol,
        ws="none",
        lifespan="off",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        date_header=False,  # a clock that ticks in an idle server; `Reply` adds it
        proxy_headers=False,
        timeout_keep_alive=int(config.header_seconds) + 1,
        timeout_graceful_shutdown=_FLUSH_S,
    )
    state = app.state
    return Server(settings, state.hub, state.traffic, config.drain_seconds, started, state.closing)


class Server(uvicorn.Server):
    """uvicorn's server, which waits instead of looking ten times a second, and drains."""

    def __init__(
        self,
        config: uvicorn.Config,
        hub: Hub,
        traffic: Traffic,
        drain_seconds: float,
        on_start: Callable[[], None],
        closing: Sequence[Callable[[], Awaitable[None]]] = (),
    ) -> None:
        super().__init__(config)
        self.complete = True
        self._hub = hub
        self._traffic = traffic
        self._drain_seconds = drain_seconds
        self._on_start = on_start
        self._closing = closing
        self._end = asyncio.Event()
        self._draining: asyncio.Task[None] | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Listen, and say so."""
        if threading.current_thread() is threading.main_thread():
            gc.collect()
            gc.freeze()  # what is loaded stays; to go through it again holds up every answer
        await super().startup(sockets)
        self._on_start()

    async def main_loop(self) -> None:
        """Wait for the end."""
        await self._end.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Close every connection, then the engines, while there is a loop for their last words."""
        await super().shutdown(sockets)
        if threading.current_thread() is threading.main_thread():
            gc.unfreeze()
        self._hub.close()
        for close in self._closing:
            await close()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Drain on SIGTERM and Ctrl-C while inside."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self.stop)
        try:
            yield
        finally:
            for number in (signal.SIGTERM, signal.SIGINT):
                loop.remove_signal_handler(number)

    def stop(self) -> None:
        """Begin the end; when it has begun already, end at once."""
        if self._draining is None:
            self._draining = asyncio.get_running_loop().create_task(self._drain())
            return
        self.complete = self.complete and len(self._traffic) == 0
        self._traffic.interrupt()
        self.force_exit = True
        self._end.set()

    async def _drain(self) -> None:
        in_time = await self._traffic.drain(self._drain_seconds)
        self.complete = self.complete and in_time
        self._end.set()


def _allow_files(wanted: int) -> None:
    """Raise the limit of open files to ``wanted``, as far as the system lets us."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft < most:
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
