"""The plainest endpoint over a call: what every protocol does, without a protocol."""

import json
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel

from puna.inference import Delta, Request, Sampling
from puna.serving.call import Call, call_of
from puna.serving.errors import ApiError

router = APIRouter()


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
