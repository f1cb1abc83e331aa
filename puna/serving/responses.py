"""``/v1/responses``: OpenAI's newer protocol, without its memory: nothing is kept between calls."""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse, Response

from puna.inference import Sampling
from puna.serving.call import Call, call_of
from puna.serving.chat_schemas import TextFormat
from puna.serving.conversation import Toolbox, prompt_of, toolbox_of
from puna.serving.errors import ApiError
from puna.serving.hub import Served
from puna.serving.response_events import ResponseWriter
from puna.serving.response_schemas import (
    InputCall,
    InputContents,
    InputItem,
    InputMessage,
    InputResult,
    InputText,
    JsonSchemaFormat,
    NamedTool,
    ResponseObject,
    ResponseRequest,
)
from puna.serving.sampling import Structure, new_seed, requests_of
from puna.serving.schemas import STREAM
from puna.serving.sse import EventStream, begun
from puna.tokenizer import Message, ToolCall

router = APIRouter(tags=["OpenAI"])
_LOGPROBS = "message.output_text.logprobs"


@router.post(
    "/v1/responses",
    response_model=ResponseObject,
    responses=STREAM,
    operation_id="create_response",
)
async def create_response(
    body: ResponseRequest, call: Annotated[Call, Depends(call_of)]
) -> Response:
    """Go on with a conversation. Fields not listed here are ignored."""
    _refuse(body)
    served = call.hub.get(body.model)
    toolbox = _toolbox(body)
    structure = toolbox.structure(served, _structure(body))
    call.messages = turns = await call.cleaned_turns(_turns(body))
    prompt = prompt_of(served, turns, toolbox.tools)
    sampling = _sampling(body, served)
    (request,) = await requests_of(served, [prompt], sampling, structure=structure)
    writer = ResponseWriter(
        call,
        served,
        toolbox.new_answer(served),
        _settings(body),
        n_prompt=len(prompt),
        with_logprobs=sampling.logprobs is not None,
    )
    deltas = call.generate(served, [request])
    if body.stream:
        return EventStream(writer.events(await begun(deltas)))
    return JSONResponse(await writer.whole(deltas))


def _refuse(body: ResponseRequest) -> None:
    if body.previous_response_id is not None:
        raise ApiError(
            400,
            "this server keeps no responses: send the whole conversation as input",
            param="previous_response_id",
            code="previous_response_not_found",
        )
    if body.background:
        raise ApiError(400, "this server keeps no responses for later", param="background")


def _sampling(body: ResponseRequest, served: Served) -> Sampling:
    with_logprobs = _LOGPROBS in (body.include or ())
    return Sampling(
        max_new_tokens=body.max_output_tokens or served.context,
        temperature=_or(body.temperature, 1.0),
        top_p=_or(body.top_p, 1.0),
        seed=new_seed(),
        logprobs=(body.top_logprobs or 0) if with_logprobs else None,
    )


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


def _toolbox(body: ResponseRequest) -> Toolbox:
    parallel = body.parallel_tool_calls is not False
    if isinstance(body.tool_choice, NamedTool):
        return toolbox_of(body.tools or (), None, body.tool_choice.name, parallel)
    return toolbox_of(body.tools or (), body.tool_choice, None, parallel)


def _structure(body: ResponseRequest) -> Structure | None:
    format = None if body.text is None else body.text.format
    if format is None or isinstance(format, TextFormat):
        return None
    schema = format.schema_ if isinstance(format, JsonSchemaFormat) else None
    return Structure("json", schema, "text.format")


def _turns(body: ResponseRequest) -> list[Message]:
    """The conversation; calls belong to the assistant's turn before them."""
    turns = [Message("system", body.instructions)] if body.instructions else []
    if isinstance(body.input, str):
        return [*turns, Message("user", body.input)]
    made = set[str]()
    for number, item in enumerate(body.input):
        if isinstance(item, InputCall):
            made.add(item.call_id)
        elif isinstance(item, InputResult) and item.call_id not in made:
            raise ApiError(
                400,
                f"the call '{item.call_id[:80]}' is not in the conversation before it",
                param=f"input[{number}].call_id",
            )
        _add(turns, item)
    return turns


def _add(turns: list[Message], item: InputItem) -> None:
    match item:
        case InputMessage():
            role = "system" if item.role == "developer" else item.role
            turns.append(Message(role, _text_of(item.content)))
        case InputCall():
            made = ToolCall(item.name, item.arguments)
            last = turns.pop() if turns and turns[-1].role == "assistant" else None
            before = last or Message("assistant", "")
            turns.append(Message("assistant", before.content, (*before.tool_calls, made)))
        case InputResult():
            turns.append(Message("tool", _text_of(item.output)))


def _text_of(contents: InputContents) -> str:
    if isinstance(contents, str):
        return contents
    return "".join(p.text if isinstance(p, InputText) else p.refusal for p in contents)


def _settings(body: ResponseRequest) -> dict[str, Any]:
    """Fields of the response that say how it was made."""
    text: dict[str, Any] = {"format": {"type": "text"}}
    if body.text is not None and body.text.format is not None:
        text = body.text.model_dump(mode="json", by_alias=True, exclude_none=True)
    choice: Any = body.tool_choice or "auto"
    if isinstance(choice, NamedTool):
        choice = choice.model_dump()
    return {
        "model": body.model,
        "instructions": body.instructions,
        "metadata": body.metadata or {},
        "temperature": _or(body.temperature, 1.0),
        "top_p": _or(body.top_p, 1.0),
        "top_logprobs": body.top_logprobs or 0,
        "max_output_tokens": body.max_output_tokens,
        "tools": _shown_tools(body.tools or ()),
        "tool_choice": choice,
        "parallel_tool_calls": body.parallel_tool_calls is not False,
        "text": text,
        "truncation": "disabled",
        "previous_response_id": None,
        "store": False,
        "background": False,
        "user": body.user,
    }


def _shown_tools(tools: Sequence[Any]) -> list[dict[str, Any]]:
    return [tool.model_dump(mode="json") for tool in tools]
