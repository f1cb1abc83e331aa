"""Reads a request's body, at most so much and for so long, before anything parses it."""

import asyncio
import contextlib

from starlette.types import Receive, Scope

from puna.serving.errors import ApiError

_LINGER_S = 2.0


class Disconnected(Exception):
    """The client went away: nobody is left to be told anything."""


async def read_body(scope: Scope, receive: Receive, limit: int, seconds: float) -> bytes:
    """The whole body, at most ``limit`` bytes.

    Raises `ApiError` 413 for a larger one, declared or not, 408 when it takes longer than
    ``seconds``, and `Disconnected`.
    """
    if int(dict(scope["headers"]).get(b"content-length", b"0")) > limit:
        await discard_body(scope, receive)
        raise _too_large(limit)
    body, more = bytearray(), True
    try:
        async with asyncio.timeout(seconds):
            while more and len(body) <= limit:
                part, more = await _next(receive)
                body += part
    except TimeoutError:
        raise ApiError(
            408, f"the request did not arrive within {seconds:g} s", code="request_timeout"
        ) from None
    if len(body) <= limit:
        return bytes(body)
    body.clear()
    if more:
        await discard_body(scope, receive)
    raise _too_large(limit)


async def discard_body(scope: Scope, receive: Receive) -> None:
    """Take in a refused body for a while and throw it away.

    A client that is busy sending reads the answer only afterwards, and would lose it if the
    connection closed before. Raises `Disconnected`.
    """
    if dict(scope["headers"]).get(b"expect", b"").lower() == b"100-continue":
        return  # such a client sends nothing before it is asked to
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_LINGER_S):
            more = True
            while more:
                _, more = await _next(receive)


async def _next(receive: Receive) -> tuple[bytes, bool]:
    message = await receive()
    if message["type"] == "http.disconnect":
        raise Disconnected
    return message.get("body", b""), message.get("more_body", False)


def _too_large(limit: int) -> ApiError:
    return ApiError(
        413, f"the request is larger than {limit:,} bytes: send less", code="request_too_large"
    )
