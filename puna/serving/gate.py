"""The gate: every request passes here first and leaves here last.

Pure ASGI, around the whole application. It asks for the key, takes in the body within its limits,
lets nothing new in while the server drains, cancels the work when the client leaves or does not
read, answers what nobody expected with a plain 500, and writes the log line.
"""

import asyncio
import secrets
import time
import traceback
from collections.abc import Callable

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from puna.safety import Safeguard
from puna.serving.auth import KeyRing
from puna.serving.body import Disconnected, discard_body, read_body
from puna.serving.call import Call
from puna.serving.config import ServeConfig, is_loopback
from puna.serving.errors import ApiError, server_error
from puna.serving.hub import Hub
from puna.serving.logs import log
from puna.serving.reply import Reply
from puna.serving.sse import SEND
from puna.serving.stats import Figures
from puna.serving.traffic import Traffic

CLIENT_LEFT = 499
"""Status in logs and figures of a request whose client left before an answer, as nginx has it."""
_BODILESS = frozenset({"GET", "HEAD", "OPTIONS"})


class Gate:
    """See the module.

    Args:
        app: what stands behind.
        public: whether a method and a path need no key.
        keys: None lets everyone in who reaches a loopback address by its name.
    """

    def __init__(
        self,
        app: ASGIApp,
        *,
        hub: Hub,
        config: ServeConfig,
        figures: Figures,
        traffic: Traffic,
        keys: KeyRing | None,
        safeguard: Safeguard | None,
        public: Callable[[str, str], bool],
    ) -> None:
        self._app = app
        self._hub = hub
        self._config = config
        self._figures = figures
        self._traffic = traffic
        self._keys = keys
        self._safeguard = safeguard
        self._public = public

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.perf_counter()
        call = Call(
            secrets.token_hex(12),
            self._hub,
            self._figures,
            deadline=asyncio.get_running_loop().time() + self._config.request_seconds,
            safeguard=self._safeguard,
            keep_text=self._config.log_text,
        )
        scope.setdefault("state", {})["call"] = call
        public = self._public(scope["method"], scope["path"])
        reply = Reply(scope, send, call, self._config.send_seconds)
        scope["state"][SEND] = reply.send
        try:
            await self._answer(scope, receive, reply, call, public)
        except Disconnected:
            reply.gone = True
        except asyncio.CancelledError:
            if not reply.gone:
                raise
        finally:
            reply.close()
            self._count(scope, call, reply, time.perf_counter() - started, quiet=public)

    async def _answer(
        self, scope: Scope, receive: Receive, reply: Reply, call: Call, public: bool
    ) -> None:
        unread = scope["method"] not in _BODILESS
        try:
            self._admit(Headers(scope=scope), call, public)
            if not unread:
                await self._app(scope, receive, reply.send)
                return
            self._admit_work()
            config = self._config
            with self._traffic.active(call):
                unread = False
                body = await read_body(scope, receive, config.max_body_bytes, config.body_seconds)
                await self._work(scope, receive, reply, call, body)
        except ApiError as error:
            scope["state"]["error"] = error
            if unread:
                await discard_body(scope, receive)
            await reply.error(error, close=unread or error.status in (408, 413))
        except Disconnected:
            raise
        except Exception as error:  # noqa: BLE001  the client gets a plain 500, the log the cause
            at = traceback.extract_tb(error.__traceback__)[-1]
            cause = f"{type(error).__name__}: {error} ({at.filename}:{at.lineno})"
            log(level="error", id=call.request_id, error=cause)
            await reply.error(server_error())

    async def _work(
        self, scope: Scope, receive: Receive, reply: Reply, call: Call, body: bytes
    ) -> None:
        """Run the application for as long as the client stays and time lasts."""
        messages = [{"type": "http.request", "body": body, "more_body": False}]

        async def body_once() -> Message:
            if not messages:
                await asyncio.Future()  # the watcher below sees the client leave
            return messages.pop()

        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass
            reply.leave()

        loop = asyncio.get_running_loop()
        watcher = loop.create_task(watch())
        timer = loop.call_at(call.deadline, call.interrupt, _late(self._config.request_seconds))
        # From 2.4 on Starlette leaves it to the server to notice that a client is gone.
        scope["asgi"] = {**scope.get("asgi", {}), "spec_version": "2.4"}
        try:
            await self._app(scope, body_once, reply.send)
        finally:
            timer.cancel()
            watcher.cancel()

    def _admit(self, headers: Headers, call: Call, public: bool) -> None:
        """Find out who asks; raises `ApiError`."""
        if self._keys is None:
            if not is_loopback(_host(headers)):  # a web page whose name was rebound to us
                raise ApiError(
                    403,
                    "without API keys this server answers only to localhost",
                    type="permission_error",
                    code="host_not_allowed",
                )
            return
        if public:
            return
        scheme, _, key = headers.get("authorization", "").partition(" ")
        call.holder = self._keys.find(key.strip()) if scheme.lower() == "bearer" else None
        if call.holder is None:
            raise ApiError(
                401,
                "a valid API key is needed: send 'Authorization: Bearer KEY'",
                type="authentication_error",
                code="invalid_api_key",
            )

    def _admit_work(self) -> None:
        """Whether the server lets anything new in; raises `ApiError`."""
        if self._traffic.draining:
            raise ApiError(
                503,
                "the server is stopping: ask again later",
                type="server_error",
                code="draining",
                retry_after_s=self._config.drain_seconds,
            )

    def _count(
        self, scope: Scope, call: Call, reply: Reply, seconds: float, *, quiet: bool
    ) -> None:
        """Count the answer, and log it."""
        endpoint = getattr(scope.get("route"), "path", "unknown")
        status = reply.status or CLIENT_LEFT
        self._figures.answers[scope["method"], endpoint, status] += 1
        error = scope["state"].get("error")
        if error is not None:
            self._figures.rejected[error.code or error.type] += 1
        if self._config.log_requests and not quiet:
            log(
                id=call.request_id,
                key=call.key,
                endpoint=f"{scope['method']} {endpoint}",
                status=status,
                **call.record.facts(),
                duration_ms=round(1000 * seconds, 1),
                client="left" if reply.gone else "stayed",
            )


def _late(seconds: float) -> ApiError:
    return ApiError(
        504, f"the answer took longer than {seconds:g} s", type="server_error", code="timeout"
    )


def _host(headers: Headers) -> str:
    """The name a client called us by, without the port."""
    name = headers.get("host", "")
    return name if name.endswith("]") else name.rpartition(":")[0] or name
