"""``/v1/chat/completions``: conversations, whole or streamed."""

import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse, Response

from puna import __version__
from puna.inference import Delta, Request
from puna.serving.answers import AnswerText, chat_logprob, guard_of, usage_of
from puna.serving.call import Call, call_of
from puna.serving.chat_schemas import (
    ChatCompletion,
    ChatRequest,
    JsonSchemaFormat,
    NamedTool,
    TextFormat,
)
from puna.serving.conversation import (
    Toolbox,
    check_results_follow_calls,
    prompt_of,
    toolbox_of,
    turns_of,
)
from puna.serving.errors import ApiError
from puna.serving.hub import Served
from puna.serving.sampling import Structure, requests_of, sampling_of, structure_of
from puna.serving.schemas import STREAM
from puna.serving.sse import DONE, Deltas, EventStream, Frame, begun, event
from puna.tokenizer.tools import Arguments, CallStart, Piece, Text

router = APIRouter(tags=["OpenAI"])
FINGERPRINT = f"puna-{__version__}"


@router.post(
    "/v1/chat/completions",
    response_model=ChatCompletion,
    responses=STREAM,
    operation_id="create_chat_completion",
)
async def create_chat_completion(
    body: ChatRequest, call: Annotated[Call, Depends(call_of)]
) -> Response:
    """Go on with a conversation.

    Fields not listed here are ignored. Parts other than text, and what a model cannot do, are
    answered with status 400.
    """
    served = call.hub.get(body.model)
    chat = await _Chat.prepare(body, call, served)
    deltas = call.generate(served, chat.requests)
    if body.stream:
        return EventStream(chat.events(await begun(deltas)))
    return JSONResponse(await chat.whole(deltas))


class _Chat:
    """One request: what it asks of the engine, and how its answers are written."""

    def __init__(
        self, body: ChatRequest, call: Call, served: Served, toolbox: Toolbox, n_prompt: int
    ) -> None:
        self.requests: list[Request] = []
        self._body = body
        self._call = call
        self._served = served
        self._n_prompt = n_prompt
        self._answers = {n: toolbox.new_answer(served) for n in range(body.n or 1)}
        self._head = {
            "id": f"chatcmpl-{call.request_id}",
            "object": "chat.completion",
            "created": int(time.time()),
            "model": body.model,
            "system_fingerprint": FINGERPRINT,
        }

    @classmethod
    async def prepare(cls, body: ChatRequest, call: Call, served: Served) -> "_Chat":
        """Read the request; raises `ApiError` and `UsageError` for what cannot be done."""
        toolbox = _toolbox(body)
        structure = toolbox.structure(served, _structure(body))
        check_results_follow_calls(body.messages)
        call.messages = turns = await call.cleaned_turns(turns_of(body.messages))
        go_on = bool(body.continue_final_message)
        prompt = prompt_of(served, turns, toolbox.tools, go_on=go_on)
        limit = body.max_completion_tokens or body.max_tokens or served.context
        logprobs = (body.top_logprobs or 0) if body.logprobs else None
        sampling = sampling_of(body, max_new_tokens=limit, logprobs=logprobs)
        chat = cls(body, call, served, toolbox, len(prompt))
        chat.requests = await requests_of(
            served, [prompt], sampling, n=body.n or 1, structure=structure
        )
        return chat

    async def whole(self, deltas: Deltas) -> dict[str, Any]:
        """The answer in one piece."""
        async with aclosing(deltas):
            async for index, delta in deltas:
                self._answers[index].take(delta)
        choices = [self._choice(index, answer) for index, answer in self._answers.items()]
        return self._head | {"choices": choices, "usage": self._usage()}

    def _choice(self, index: int, answer: AnswerText) -> dict[str, Any]:
        calls = [
            {
                "id": made.id,
                "type": "function",
                "function": {"name": made.name, "arguments": made.arguments},
            }
            for made in answer.calls
        ]
        empty = calls and not answer.text.strip()
        message = {
            "role": "assistant",
            "content": None if empty else answer.text,
            "refusal": None,
        }
        choice: dict[str, Any] = {
            "index": index,
            "message": message | ({"tool_calls": calls} if calls else {}),
            "logprobs": self._logprobs(answer) if self._body.logprobs else None,
            "finish_reason": answer.finish,
        }
        return choice | self._guard(index)

    def _guard(self, index: int) -> dict[str, Any]:
        guard = guard_of(self._call.verdict(index))
        return {} if guard is None else {"puna": guard}

    def _logprobs(self, answer: AnswerText) -> dict[str, Any]:
        """Those collected, which are not sent again."""
        entries, answer.logprobs = answer.logprobs, []
        tokenizer = self._served.tokenizer
        return {"content": [chat_logprob(tokenizer, e) for e in entries], "refusal": None}

    def _usage(self) -> dict[str, Any]:
        n_new = sum(answer.n_tokens for answer in self._answers.values())
        return usage_of(self._n_prompt, self._answers[0].n_cached, n_new)

    async def events(self, deltas: Deltas) -> AsyncGenerator[bytes, None]:
        """The answer as events: a first piece with the role, then what comes, the reason last."""
        options = self._body.stream_options
        with_usage = bool(options and options.include_usage)
        head = self._head | {"object": "chat.completion.chunk"}
        head |= {"usage": None} if with_usage else {}
        texts = {n: Frame(head | _delta(n, {"content": Frame.HOLE})) for n in self._answers}
        for index in self._answers:
            yield event(head | _delta(index, {"role": "assistant", "content": "", "refusal": None}))
        async with aclosing(deltas):
            async for index, delta in deltas:
                for data in self._pieces(index, delta):
                    if isinstance(data, str):
                        yield texts[index].fill(data)
                    else:
                        yield event(head | data)
        if with_usage:
            yield event(head | {"choices": [], "usage": self._usage()})
        yield DONE

    def _pieces(self, index: int, delta: Delta) -> list[str | dict[str, Any]]:
        """What is new in an answer: plain text where that is all, else whole choices."""
        answer = self._answers[index]
        pieces: list[str | dict[str, Any]] = []
        n_calls = len(answer.calls)
        for piece in answer.take(delta):
            n_calls += isinstance(piece, CallStart)
            if isinstance(piece, Text) and not self._body.logprobs:
                pieces.append(piece.text)
            else:
                pieces.append(_delta(index, _piece(piece, answer, n_calls - 1)))
        if self._body.logprobs and answer.logprobs:
            if not pieces:
                pieces.append(_delta(index, {"content": ""}))
            first = pieces[0]
            assert isinstance(first, dict), "text with log-probabilities is a whole choice"
            first["choices"][0]["logprobs"] = self._logprobs(answer)
        if answer.finish is not None:
            last = _delta(index, {})
            last["choices"][0] |= {"finish_reason": answer.finish} | self._guard(index)
            pieces.append(last)
        return pieces


def _delta(index: int, delta: dict[str, Any]) -> dict[str, Any]:
    choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}
    return {"choices": [choice]}


def _piece(piece: Piece, answer: AnswerText, call: int) -> dict[str, Any]:
    """A piece as a chunk's delta; ``call`` is the number of the call it belongs to."""
    match piece:
        case Text():
            return {"content": piece.text}
        case CallStart():
            function = {"name": piece.name, "arguments": ""}
            made = {"index": call, "id": answer.calls[call].id, "type": "function"}
            return {"tool_calls": [made | {"function": function}]}
        case Arguments():
            return {"tool_calls": [{"index": call, "function": {"arguments": piece.text}}]}


def _toolbox(body: ChatRequest) -> Toolbox:
    functions = [tool.function for tool in body.tools or ()]
    parallel = body.parallel_tool_calls is not False
    if isinstance(body.tool_choice, NamedTool):
        return toolbox_of(functions, None, body.tool_choice.function.name, parallel)
    return toolbox_of(functions, body.tool_choice, None, parallel)


def _structure(body: ChatRequest) -> Structure | None:
    """What the answer must look like; raises `ApiError` when two fields ask for something."""
    asked = structure_of(body.structured_outputs)
    format = body.response_format
    if format is None or isinstance(format, TextFormat):
        return asked
    if asked is not None:
        raise ApiError(
            400, "give response_format or structured_outputs", param="structured_outputs"
        )
    schema = format.json_schema.schema_ if isinstance(format, JsonSchemaFormat) else None
    return Structure("json", schema, "response_format")
