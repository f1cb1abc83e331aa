"""A server in front of another: what it answers passes the gate and the safeguard of this one.

``puna serve --upstream http://HOST/v1`` offers the other server's chat completions, completions and
list of models. Its key is read from an environment variable and stands in no log; the client's own
key stays here.
"""

import json
import os
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from typing import Annotated, Any
from urllib.parse import urlsplit

import httpx
from fastapi import APIRouter, Depends, Request
from fastapi.responses import JSONResponse, Response
from pydantic import Field

from puna.core.config import Config
from puna.core.errors import UsageError
from puna.safety import Subject
from puna.serving.call import Call, call_of
from puna.serving.errors import ApiError
from puna.serving.hub import Hub
from puna.serving.record import take
from puna.serving.sse import DONE, EventStream, event
from puna.serving.upstream_answers import Answers
from puna.tokenizer import Message

KEY_VARIABLE = "PUNA_UPSTREAM_KEY"
"""Environment variable with the other server's key, where nobody names another."""
_PATHS = {"chat": "/chat/completions", "text": "/completions"}
_MAX_LINE_BYTES = 1024 * 1024
# What may go back of the other server's headers: when to ask again.
_HEADERS = ("retry-after",)


class UpstreamConfig(Config):
    """The other server."""

    url: str = Field(max_length=2000)
    """``http://HOST/v1``."""
    key_variable: str = KEY_VARIABLE
    """Environment variable that holds its key; without one it is asked without a key."""
    connect_seconds: float = Field(default=10, gt=0)
    """Time to reach it."""
    read_seconds: float = Field(default=120, gt=0)
    """Longest silence in the middle of an answer."""
    max_answer_bytes: int = Field(default=32 * 1024 * 1024, ge=1024)
    """Largest answer, streamed or whole."""
    max_connections: int = Field(default=256, ge=1)
    """Most requests to it at a time."""


class NoModels(Hub):
    """The hub of a server that holds no model of its own."""

    def __init__(self) -> None:
        self._served = {}
        self._models = ()


class Upstream:
    """The other server.

    Args:
        config: where it is.
        transport: how it is reached; tests give one.

    Raises `UsageError` for an address that is none.
    """

    def __init__(
        self, config: UpstreamConfig, transport: httpx.AsyncBaseTransport | None = None
    ) -> None:
        parts = urlsplit(config.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise UsageError(f"--upstream '{config.url}': write http://HOST:PORT/v1")
        if parts.username or parts.password:
            raise UsageError(
                f"--upstream: a password in the address would stand in logs: put the key into "
                f"the environment variable {config.key_variable}"
            )
        self.config = config
        self._url = config.url.rstrip("/")
        key = os.environ.get(config.key_variable)
        self._client = httpx.AsyncClient(
            headers={"authorization": f"Bearer {key}"} if key else {},
            timeout=httpx.Timeout(config.read_seconds, connect=config.connect_seconds),
            limits=httpx.Limits(max_connections=config.max_connections),
            follow_redirects=False,
            trust_env=False,
            transport=transport,
        )

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def ask(
        self, call: Call, method: str, path: str, body: Any = None
    ) -> tuple[int, dict[str, str], Any]:
        """Status, headers to pass on, and JSON of an answer. Raises `ApiError` 502 and 504."""
        async with aclosing(self.pieces(call, method, path, body)) as pieces:
            status, headers = await anext(pieces)
            content = b"".join([piece async for piece in pieces])
        try:
            return status, headers, json.loads(content)
        except ValueError as error:
            raise _bad(f"its answer (status {status}) is not JSON") from error

    async def pieces(
        self, call: Call, method: str, path: str, body: Any = None
    ) -> AsyncGenerator[Any, None]:
        """First (status, headers to pass on), then the answer's bytes as they come.

        Raises `ApiError`: 502 when it cannot be reached or says too much, 504 when it is silent.
        """
        request = self._client.build_request(method, f"{self._url}{path}", json=body)
        try:
            response = await call.wait(self._client.send(request, stream=True))
        except httpx.HTTPError as error:
            raise _failure(error) from error
        try:
            if 300 <= response.status_code < 400:
                raise _bad("it points elsewhere: name its final address")
            yield response.status_code, _passed_on(response.headers)
            size = 0
            stream = response.aiter_bytes()
            while (piece := await call.wait(anext(stream, None))) is not None:
                size += len(piece)
                if size > self.config.max_answer_bytes:
                    raise _bad(f"its answer is larger than {self.config.max_answer_bytes:,} bytes")
                yield piece
        except httpx.HTTPError as error:
            raise _failure(error) from error
        finally:
            await response.aclose()


def upstream_router(upstream: Upstream) -> APIRouter:
    """``/v1/models``, ``/v1/chat/completions`` and ``/v1/completions`` of another server."""
    router = APIRouter(tags=["OpenAI"])

    @router.get("/v1/models")
    async def models(call: Annotated[Call, Depends(call_of)]) -> Response:
        """What the other server offers."""
        return _whole(*await upstream.ask(call, "GET", "/models"))

    @router.post("/v1/chat/completions")
    async def chat(request: Request, call: Annotated[Call, Depends(call_of)]) -> Response:
        """Go on with a conversation. Fields are passed on as they are."""
        return await _forward(upstream, call, await _body(request), "chat")

    @router.post("/v1/completions")
    async def completions(request: Request, call: Annotated[Call, Depends(call_of)]) -> Response:
        """Go on with texts. Fields are passed on as they are."""
        return await _forward(upstream, call, await _body(request), "text")

    return router


async def _forward(upstream: Upstream, call: Call, body: dict[str, Any], kind: str) -> Response:
    """Admit a prompt, ask the other server, and let its answer through the safeguard."""
    call.record.model = str(body.get("model", ""))[:200]
    if call.holder is not None:
        take(call.holder.requests, 1, "requests")
        take(call.holder.tokens, 1, "tokens")
    body, subjects = await (_chat(call, body) if kind == "chat" else _texts(call, body))
    await call.admit(subjects)
    answers = Answers(call, subjects, chat=kind == "chat", n=_n_choices(body))
    if body.get("stream"):
        pieces = upstream.pieces(call, "POST", _PATHS[kind], body)
        status, headers = await anext(pieces)
        if status < 400:
            return EventStream(_events(pieces, answers))
        async with aclosing(pieces):
            return _whole(status, headers, _object(b"".join([p async for p in pieces])))
    status, headers, answer = await upstream.ask(call, "POST", _PATHS[kind], body)
    return _whole(status, headers, await answers.whole(answer) if status < 400 else answer)


async def _events(
    pieces: AsyncGenerator[Any, None], answers: Answers
) -> AsyncGenerator[bytes, None]:
    """The other server's events as far as they may leave; its end is ours."""
    async with aclosing(pieces):
        async for data in _data(pieces):
            if data == "[DONE]":
                break
            for chunk in await answers.chunks(_object(data.encode())):
                yield event(chunk)
            if answers.done:
                break  # every answer was cut: nothing more is read
    for chunk in await answers.rest():
        yield event(chunk)
    yield DONE


async def _data(pieces: AsyncIterator[bytes]) -> AsyncIterator[str]:
    """The ``data`` of server-sent events; comments and other fields are dropped."""
    held = b""
    async for piece in pieces:
        *lines, held = (held + piece).replace(b"\r\n", b"\n").split(b"\n")
        if len(held) > _MAX_LINE_BYTES:
            raise _bad("a line of its answer is too long")
        for line in lines:
            if line.startswith(b"data:"):
                yield line[5:].strip().decode(errors="replace")
    if held.startswith(b"data:"):
        yield held[5:].strip().decode(errors="replace")


async def _body(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.body())
    except ValueError as error:
        raise ApiError(400, "the body is not valid JSON") from error
    if not isinstance(body, dict):
        raise ApiError(400, "the body must be a JSON object")
    return body


async def _chat(call: Call, body: dict[str, Any]) -> tuple[dict[str, Any], list[Subject]]:
    """A chat's body without what is kept from the model, and the conversation to admit."""
    messages = body.get("messages")
    if not isinstance(messages, list) or not all(isinstance(m, dict) for m in messages):
        raise ApiError(400, "messages must be a list of objects", param="messages")
    if not call.guarded:
        return body, []
    turns = [Message(str(m.get("role", "user")), _text_of(m, n)) for n, m in enumerate(messages)]
    call.messages = cleaned = await call.cleaned_turns(turns)
    sent = [
        message if before.content == after.content else message | {"content": after.content}
        for message, before, after in zip(messages, turns, cleaned, strict=True)
    ]
    text = "\n\n".join(turn.content for turn in cleaned)
    subject = Subject(text, cleaned, str(body.get("model", "")), call.key)
    return body | {"messages": sent}, [subject]


def _text_of(message: dict[str, Any], number: int) -> str:
    """All text of a message; what cannot be judged is refused."""
    content = message.get("content")
    texts: list[str] = []
    for part in [content] if isinstance(content, str) else content or ():
        text = part if isinstance(part, str) else _part_text(part)
        if text is None:
            raise ApiError(
                400, "this server takes text parts only", param=f"messages[{number}].content"
            )
        texts.append(text)
    return "".join(texts)


def _part_text(part: Any) -> str | None:
    if not isinstance(part, dict):
        return None
    text = part.get("text", part.get("refusal"))
    return text if isinstance(text, str) and part.get("type") in ("text", "refusal") else None


async def _texts(call: Call, body: dict[str, Any]) -> tuple[dict[str, Any], list[Subject]]:
    """A completion's body without what is kept from the model, and its prompts to admit."""
    prompt = body.get("prompt")
    if not call.guarded:
        return body, []
    given = [prompt] if isinstance(prompt, str) else prompt
    if not isinstance(given, list) or not given or not all(isinstance(p, str) for p in given):
        raise ApiError(
            400, "prompt must be a text or texts: token ids cannot be judged", param="prompt"
        )
    if body.get("suffix") or body.get("echo"):
        raise ApiError(400, "suffix and echo are not passed on", param="echo")
    cleaned = await call.cleaned(given)
    model = str(body.get("model", ""))
    subjects = [Subject(text, (), model, call.key) for text in cleaned]
    return body | {"prompt": cleaned[0] if isinstance(prompt, str) else cleaned}, subjects


def _n_choices(body: dict[str, Any]) -> int:
    n = body.get("n")
    return n if isinstance(n, int) and 0 < n <= 128 else 1


def _object(content: bytes) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise _bad("what it sends is not JSON") from error
    if not isinstance(value, dict):
        raise _bad("what it sends is no JSON object")
    return value


def _whole(status: int, headers: dict[str, str], value: Any) -> Response:
    """An answer in one piece; the other server's refusal of our key is no fault of the client."""
    if status in (401, 403):
        raise _bad("it refuses this server's key")
    return JSONResponse(value, status, headers)


def _passed_on(headers: httpx.Headers) -> dict[str, str]:
    return {name: headers[name] for name in _HEADERS if name in headers}


def _bad(what: str) -> ApiError:
    return ApiError(
        502, f"the upstream server failed: {what}", type="server_error", code="bad_upstream"
    )


def _failure(error: httpx.HTTPError) -> ApiError:
    if isinstance(error, httpx.TimeoutException):
        return ApiError(
            504, "the upstream server was silent too long", type="server_error", code="timeout"
        )
    return _bad(f"it cannot be reached ({type(error).__name__})")
