"""Helpers of these tests; above all the plainest endpoint over a call: no protocol at all."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
import torch
from fastapi import APIRouter, Depends, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from puna.inference import Delta, Engine, Request, Sampling
from puna.model import Llama, LlamaConfig
from puna.serving.call import Call, call_of
from puna.serving.errors import ApiError
from puna.serving.lifecycle import Server

router = APIRouter()


def noisy_llama(vocab_size: int, context: int, seed: int) -> Llama:
    """A tiny model whose text is noise, not one token again and again."""
    config = LlamaConfig(
        vocab_size=vocab_size,
        dim=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        ffn_dim=48,
        context=context,
    )
    model = Llama(config)
    model.init_weights(seed)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


class Ask(BaseModel):
    model: str = "tiny"
    prompt: list[int]
    n: int = 1
    max_tokens: int = 8
    stream: bool = False
    ignore_stop: bool = True


@router.post("/test/generate", response_model=None)
async def generate(ask: Ask, call: Annotated[Call, Depends(call_of)]) -> Response | dict[str, Any]:
    served = call.hub.get(ask.model)
    sampling = Sampling(max_new_tokens=ask.max_tokens, ignore_stop_tokens=ask.ignore_stop)
    requests = [Request(ask.prompt, sampling) for _ in range(ask.n)]
    pairs = call.generate(served, requests)
    if ask.stream:
        first = await anext(pairs)
        return StreamingResponse(lines(first, pairs), media_type="text/event-stream")
    texts, finishes, ids = [""] * ask.n, [""] * ask.n, [0] * ask.n
    async for index, delta in pairs:
        texts[index] += delta.text
        ids[index] += len(delta.ids)
        finishes[index] = delta.finish or ""
    verdicts = [call.verdict(index) for index in range(ask.n)]
    return {"texts": texts, "finishes": finishes, "ids": ids, "verdicts": verdicts}


async def lines(
    first: tuple[int, Delta], pairs: AsyncIterator[tuple[int, Delta]]
) -> AsyncIterator[bytes]:
    yield line(*first)
    try:
        async for index, delta in pairs:
            yield line(index, delta)
    except ApiError as error:
        yield json.dumps(error.body()).encode() + b"\n"


def line(index: int, delta: Delta) -> bytes:
    value = {"index": index, "text": delta.text, "ids": len(delta.ids), "finish": delta.finish}
    return json.dumps(value).encode() + b"\n"


@dataclass(frozen=True)
class Running:
    """A server that listens."""

    url: str
    port: int
    server: Server
    loop: asyncio.AbstractEventLoop

    def stop(self) -> None:
        """What SIGTERM does."""
        self.loop.call_soon_threadsafe(self.server.stop)


Serve = Callable[..., AbstractContextManager[Running]]


def slow_down(engine: Engine, seconds: float) -> None:
    """Make every step of ``engine`` take so much longer."""
    hidden = engine._runner.hidden

    def slowly(*args: Any) -> torch.Tensor:
        time.sleep(seconds)
        return hidden(*args)

    engine._runner.hidden = slowly  # type: ignore[method-assign]


def wait_until(true: Callable[[], bool], seconds: float = 10) -> None:
    """Wait for something to become true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it did not become true"
        time.sleep(0.01)


def logged(capfd: pytest.CaptureFixture[str], n_lines: int) -> str:
    """What the server logged, at least so many lines: it logs after it has answered."""
    text = ""

    def enough() -> bool:
        nonlocal text
        text += capfd.readouterr().err
        return text.count("\n") >= n_lines

    wait_until(enough)
    return text
