"""A model to talk to, wherever it runs: in this process, or behind an OpenAI-compatible address.

What attacks, judges and guards of this room speak to. Tests give any object with the methods of
`ChatModel`.
"""

import asyncio
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

import httpx

from puna.core.devices import in_own_thread
from puna.core.errors import PunaError, UsageError
from puna.core.files import sha256_file, sha256_folder
from puna.formats.resolve import SMOLLM2, SMOLLM2_WHEEL
from puna.inference import AsyncEngine, EngineConfig, Request, Sampling, load_engine
from puna.tokenizer import Message

MAX_ANSWER_BYTES = 8 * 1024**2  # a server's answer beyond it is an error
TRIES = 6  # of a request that a server is too busy for, or that did not reach it
_LONGEST_WAIT_S = 30.0
_BLOCKED = ("content_blocked", "content_filter", "safety_error")


@dataclass(frozen=True)
class Reply:
    """What a model said."""

    text: str
    finish: Literal["stop", "length", "blocked"] = "stop"
    """Why it ended: by itself, at a limit, or because a safeguard stopped it."""
    reason: str = ""
    """The safeguard's reason."""

    @property
    def blocked(self) -> bool:
        """Whether a safeguard refused the prompt or cut the answer."""
        return self.finish == "blocked"


class DoesNotFit(UsageError):
    """The conversation is longer than the model's context."""


class ChatModel(Protocol):
    """Whoever answers conversations."""

    name: str
    """What the user called it."""
    digest: str
    """Tells its weights from others': a SHA-256, or the address of a server."""

    async def reply(self, messages: Sequence[Message], sampling: Sampling) -> Reply:
        """The answer to a conversation. Raises `DoesNotFit`, and `PunaError` when it fails."""
        ...

    async def close(self) -> None:
        """Let go of what it holds; nothing is asked afterwards."""
        ...


def is_address(source: str) -> bool:
    """Whether ``source`` names a server and not a model of this machine."""
    return source.startswith(("http://", "https://"))


async def open_model(source: str, **engine: Any) -> ChatModel:
    """The model called ``source``: what `load_model` takes, or ``http://HOST/v1[#NAME]``.

    A server's key is read from the environment variable ``OPENAI_API_KEY``. Without ``#NAME`` the
    first model it lists is asked.

    Args:
        source: which model.
        engine: fields of `EngineConfig` for a model of this machine.

    Raises `UsageError` for a model that cannot be found, `PunaError` for a server that is silent.
    """
    if is_address(source):
        return await RemoteModel.open(source)
    config = EngineConfig.parse(engine, where="engine")
    loaded = await asyncio.to_thread(in_own_thread, lambda: load_engine(source, config))
    model = LocalModel(source, AsyncEngine(loaded), await asyncio.to_thread(digest_of, source))
    model.engine.start()
    return model


def digest_of(source: str) -> str:
    """SHA-256 of a model's files: of the folder, the GGUF file, or the wheel of ``smollm2``."""
    if source == SMOLLM2:
        return SMOLLM2_WHEEL.sha256
    path = Path(source).expanduser()
    if path.is_dir():
        return sha256_folder(path)
    return sha256_file(path) if path.is_file() else source


class LocalModel:
    """A model of this process; many conversations are answered together.

    Args:
        name: what the user called it.
        engine: started by whoever made it; `close` ends it.
        digest: SHA-256 of its files.
    """

    def __init__(self, name: str, engine: AsyncEngine, digest: str) -> None:
        self.name = name
        self.engine = engine
        self.digest = digest

    async def reply(self, messages: Sequence[Message], sampling: Sampling) -> Reply:
        """See `ChatModel.reply`."""
        tokenizer = self.engine.engine.tokenizer
        ids = tokenizer.chat.encode(tokenizer, messages, add_generation_prompt=True).ids
        if len(ids) >= self.engine.engine.context:
            raise DoesNotFit(f"{len(ids)} tokens do not fit {self.name}")
        request = Request(ids, sampling, frozenset(tokenizer.stop_ids))
        text, finish = "", "stop"
        async for delta in await self.engine.submit(request):
            text += delta.text
            if delta.error is not None:
                raise PunaError(f"{self.name}: generation failed: {delta.error}")
            finish = delta.finish or finish
        return Reply(text, "length" if finish == "length" else "stop")

    async def close(self) -> None:
        """Stop the engine's thread."""
        await asyncio.to_thread(self.engine.close)


class RemoteModel:
    """A model behind ``/v1/chat/completions`` of an OpenAI-compatible server.

    Args:
        url: ``http://HOST/v1``, without a slash at the end.
        model: its name there.
        client: used for all requests; `close` closes it.
    """

    def __init__(self, url: str, model: str, client: httpx.AsyncClient) -> None:
        self.name = self.digest = f"{url}#{model}"
        self._url = url
        self._model = model
        self._client = client

    @classmethod
    async def open(cls, source: str) -> "RemoteModel":
        """Ask the server who is there; see `open_model`."""
        address, _, model = source.partition("#")
        if urlsplit(address).hostname is None:
            raise UsageError(f"'{source}' is no address: write http://HOST:PORT/v1#NAME")
        url = address.rstrip("/")
        async with _new_client() as client:
            listed = await _asked(client, "GET", f"{url}/models", None)
        names = [entry["id"] for entry in listed.get("data", [])]
        if not names and not model:
            raise UsageError(f"{url} lists no models: name one as {url}#NAME")
        # A new one, whose connections begin on the loop that first asks: perhaps a server's.
        return cls(url, model or names[0], _new_client())

    async def reply(self, messages: Sequence[Message], sampling: Sampling) -> Reply:
        """See `ChatModel.reply`."""
        body: dict[str, Any] = {
            "model": self._model,
            "messages": _written(messages),
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": sampling.seed % 2**31,
        }
        if sampling.stop:
            body["stop"] = list(sampling.stop)
        try:
            answer = await _asked(self._client, "POST", f"{self._url}/chat/completions", body)
        except _Refused as error:
            return Reply("", "blocked", str(error))
        try:
            choice = answer["choices"][0]
            text, finish = choice["message"].get("content") or "", choice.get("finish_reason")
        except (LookupError, TypeError, AttributeError) as error:
            raise PunaError(
                f"{self.name} answered without a choice: is it a chat model?"
            ) from error
        if finish == "content_filter":
            return Reply(text, "blocked", "the answer was cut by a safeguard")
        return Reply(text, "length" if finish == "length" else "stop")

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def _written(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Messages as OpenAI's protocol has them; a tool's output answers the last call before it."""
    written: list[dict[str, Any]] = []
    for number, message in enumerate(messages):
        fields: dict[str, Any] = {"role": message.role, "content": message.content}
        if message.tool_calls:
            fields["tool_calls"] = [
                {
                    "id": f"call_{number}_{place}",
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for place, call in enumerate(message.tool_calls)
            ]
        elif message.role == "tool":
            calls = [call["id"] for entry in written for call in entry.get("tool_calls", ())]
            fields["tool_call_id"] = calls[-1] if calls else "call_0_0"
        written.append(fields)
    return written


def _new_client() -> httpx.AsyncClient:
    key = os.environ.get("OPENAI_API_KEY")
    return httpx.AsyncClient(
        headers={"Authorization": f"Bearer {key}"} if key else {},
        timeout=httpx.Timeout(600, connect=10),
        limits=httpx.Limits(max_connections=256),
    )


class _Refused(PunaError):
    """The server's safeguard does not answer this prompt."""


async def _asked(
    client: httpx.AsyncClient, method: str, url: str, body: dict[str, Any] | None
) -> dict[str, Any]:
    """The server's JSON; a busy or unreachable one is asked again, with longer and longer waits."""
    problem = ""
    for number in range(TRIES):
        wait = min(2.0**number / 4, _LONGEST_WAIT_S)
        try:
            async with client.stream(method, url, json=body) as response:
                content = await _bounded(response, url)
        except httpx.HTTPError as error:
            problem = f"{type(error).__name__}: {error}"
        else:
            if response.status_code < 300:
                return _object(content, url)
            problem = _error_of(response.status_code, content)
            if response.status_code != 429 and response.status_code < 500:
                break
            with suppress(ValueError):
                wait = min(float(response.headers.get("retry-after", wait)), _LONGEST_WAIT_S)
        if number + 1 < TRIES:
            await asyncio.sleep(wait)
    raise PunaError(f"{url}: {problem}: is the address right, and does the server run?")


async def _bounded(response: httpx.Response, url: str) -> bytes:
    content = bytearray()
    async for piece in response.aiter_bytes():
        content += piece
        if len(content) > MAX_ANSWER_BYTES:
            raise PunaError(f"{url}: the answer is larger than {MAX_ANSWER_BYTES} bytes")
    return bytes(content)


def _object(content: bytes, url: str) -> dict[str, Any]:
    try:
        value = json.loads(content)
    except ValueError as error:
        raise PunaError(f"{url}: the answer is not JSON: is this the /v1 of a server?") from error
    if not isinstance(value, dict):
        raise PunaError(f"{url}: the answer is no JSON object: is this the /v1 of a server?")
    return value


def _error_of(status: int, content: bytes) -> str:
    """The server's own words; raises for prompts that a safeguard refused or that are too long."""
    try:
        error = json.loads(content)["error"]
        code, kind, text = error.get("code"), error.get("type"), str(error.get("message", ""))
    except (ValueError, LookupError, TypeError, AttributeError):
        return f"status {status}"
    if code in _BLOCKED or kind in _BLOCKED:
        raise _Refused(text)
    if code == "context_length_exceeded":
        raise DoesNotFit(text)
    return f"status {status}: {text[:300]}"
