"""A model to talk to: the same answers here and behind an address, and what can go wrong there."""

import asyncio
import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest
from serving_helpers import Running

from puna.core.errors import PunaError, UsageError
from puna.inference import AsyncEngine, Engine, Sampling
from puna.safety import models
from puna.safety.models import DoesNotFit, LocalModel, RemoteModel, Reply, digest_of, open_model
from puna.tokenizer import Message, ToolCall

HELLO = [Message("user", "Hello!")]
SHORT = Sampling(max_new_tokens=6, seed=3)
ANSWER = {"choices": [{"message": {"content": "Hi."}, "finish_reason": "stop"}]}


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Waits between tries, which take no time here."""
    waited: list[float] = []
    wait, here = asyncio.sleep, threading.get_ident()

    async def sleep(seconds: float) -> None:
        if threading.get_ident() != here:  # a server that another test keeps
            await wait(seconds)
            return
        waited.append(seconds)

    monkeypatch.setattr(models.asyncio, "sleep", sleep)
    return waited


def asked(
    answer: Callable[[httpx.Request], httpx.Response],
    messages: list[Message] = HELLO,
    sampling: Sampling = SHORT,
) -> Reply:
    """The reply where ``answer`` plays the server."""

    async def ask() -> Reply:
        client = httpx.AsyncClient(transport=httpx.MockTransport(answer))
        model = RemoteModel("http://there/v1", "them", client)
        try:
            return await model.reply(messages, sampling)
        finally:
            await model.close()

    return asyncio.run(ask())


def error(status: int, **fields: str) -> httpx.Response:
    return httpx.Response(status, json={"error": {"message": "because", **fields}})


def test_an_answer_is_the_same_here_and_behind_an_address(
    server: Running, new_engine: Callable[..., Engine]
) -> None:
    async def both() -> tuple[Reply, Reply]:
        here = LocalModel("tiny", AsyncEngine(new_engine()), "0")
        here.engine.start()
        there = await open_model(f"{server.url}/v1")
        try:
            return await here.reply(HELLO, SHORT), await there.reply(HELLO, SHORT)
        finally:
            await here.close()
            await there.close()

    here, there = asyncio.run(both())
    assert here == there
    assert here.finish == "length"


def test_a_conversation_that_does_not_fit_is_told_apart(
    server: Running, new_engine: Callable[..., Engine]
) -> None:
    long = [Message("user", "llama " * 400)]

    async def both() -> None:
        here = LocalModel("tiny", AsyncEngine(new_engine()), "0")
        here.engine.start()
        there = await open_model(f"{server.url}/v1#tiny")
        try:
            for model in (here, there):
                with pytest.raises(DoesNotFit):
                    await model.reply(long, SHORT)
        finally:
            await here.close()
            await there.close()

    asyncio.run(both())


def test_a_tools_output_reaches_a_server_with_the_call_it_answers(server: Running) -> None:
    call = ToolCall("get_weather", '{"city": "La Paz"}')
    turns = [*HELLO, Message("assistant", "", (call,)), Message("tool", "sunny")]

    async def ask() -> Reply:
        there = await open_model(f"{server.url}/v1")
        try:
            return await there.reply(turns, SHORT)
        finally:
            await there.close()

    assert asyncio.run(ask()).text
    seen: list[Any] = []

    def answer(request: httpx.Request) -> httpx.Response:
        seen.append(json.loads(request.content)["messages"])
        return httpx.Response(200, json=ANSWER)

    asked(answer, turns)
    assert seen[0][1]["tool_calls"][0]["function"]["name"] == "get_weather"
    assert seen[0][2]["tool_call_id"] == seen[0][1]["tool_calls"][0]["id"]


def test_a_busy_or_unreachable_server_is_asked_again(waits: list[float]) -> None:
    answers = [
        httpx.Response(429, headers={"retry-after": "7"}),
        httpx.Response(503),
        httpx.ConnectError("refused"),
        httpx.Response(200, json=ANSWER),
    ]

    def answer(_: httpx.Request) -> httpx.Response:
        given = answers.pop(0)
        if isinstance(given, Exception):
            raise given
        return given

    assert asked(answer) == Reply("Hi.")
    assert waits == [7, 0.5, 1]


def test_one_that_stays_busy_is_an_error_in_the_end(waits: list[float]) -> None:
    with pytest.raises(PunaError, match="status 503"):
        asked(lambda _: httpx.Response(503))
    assert len(waits) == models.TRIES - 1


@pytest.mark.parametrize(
    ("response", "message"),
    [
        (error(401), "status 401: because"),
        (error(404, code="model_not_found"), "status 404: because"),
        (httpx.Response(200, text="<html>"), "not JSON"),
        (httpx.Response(200, json=[1]), "no JSON object"),
        (httpx.Response(200, json={"choices": []}), "without a choice"),
        (httpx.Response(200, content=b" " * (models.MAX_ANSWER_BYTES + 1)), "larger than"),
    ],
)
def test_what_is_no_answer_is_an_error_at_once(
    response: httpx.Response, message: str, waits: list[float]
) -> None:
    with pytest.raises(PunaError, match=message):
        asked(lambda _: response)
    assert waits == []


@pytest.mark.parametrize(
    "response",
    [
        error(400, type="safety_error", code="content_blocked"),
        error(400, code="content_filter"),
        httpx.Response(
            200, json={"choices": [{"message": {"content": ""}, "finish_reason": "content_filter"}]}
        ),
    ],
)
def test_what_a_safeguard_stopped_is_a_blocked_reply(response: httpx.Response) -> None:
    assert asked(lambda _: response).blocked


def test_settings_are_sent_and_a_seed_fits_the_protocol() -> None:
    bodies = []

    def answer(request: httpx.Request) -> httpx.Response:
        bodies.append(json.loads(request.content))
        return httpx.Response(200, json=ANSWER)

    asked(answer, sampling=Sampling(seed=2**40 + 5, stop=("x",), temperature=0.5))
    assert bodies[0]["seed"] == 5
    assert (bodies[0]["stop"], bodies[0]["temperature"]) == (["x"], 0.5)


def test_an_address_without_a_server_or_models_is_said(waits: list[float]) -> None:
    with pytest.raises(UsageError, match="is no address"):
        asyncio.run(open_model("http://"))
    with pytest.raises(PunaError, match="does the server run"):
        asyncio.run(open_model("http://127.0.0.1:9/v1"))


def test_a_digest_tells_files_and_folders_apart(tmp_path: Path) -> None:
    one, other = tmp_path / "one", tmp_path / "other.gguf"
    one.mkdir()
    (one / "a").write_text("1")
    other.write_text("2")
    before = {digest_of(str(one)), digest_of(str(other)), digest_of("smollm2")}
    assert len(before) == 3
    (one / "a").write_text("3")
    assert digest_of(str(one)) not in before
