"""Responses, by OpenAI's own client."""

import json
from typing import Any, Literal

import openai
import pytest
from protocol_api import MODEL, Api
from pydantic import BaseModel, Field

from puna.inference import Sampling
from puna.tokenizer import Message

pytest_plugins = ["protocol_fixtures"]
TOOL: Any = {
    "type": "function",
    "name": "weather",
    "parameters": {
        "type": "object",
        "properties": {"sky": {"enum": ["clear", "grey"]}},
        "required": ["sky"],
        "additionalProperties": False,
    },
    "strict": True,
}


class Llama(BaseModel):
    name: Literal["Tika", "Pampa"]
    age: int = Field(ge=0, le=30)


def ask(ai: openai.OpenAI, **fields: Any) -> Any:
    options = {"model": MODEL, "input": "Hello!", "max_output_tokens": 12, "temperature": 0}
    return ai.responses.create(**(options | fields))


def test_greedy_text_is_the_engines_own(api: Api, ai: openai.OpenAI) -> None:
    tokenizer = api.tokenizer
    turns = [Message("system", "Be brief."), Message("user", "Hello!")]
    prompt = tokenizer.chat.encode(tokenizer, turns, add_generation_prompt=True).ids
    text, ids = api.written(prompt, Sampling(max_new_tokens=12))
    answer = ask(ai, instructions="Be brief.", metadata={"a": "b"})
    assert answer.output_text == text
    assert answer.usage.input_tokens == len(prompt)
    assert answer.usage.output_tokens == len(ids)
    assert answer.metadata == {"a": "b"}
    assert answer.instructions == "Be brief."
    assert (answer.status, answer.incomplete_details.reason) == ("incomplete", "max_output_tokens")


def test_an_answer_that_ends_is_completed(ai: openai.OpenAI) -> None:
    answer = ask(ai, text={"format": {"type": "json_schema", "name": "x", "schema": {"const": 1}}})
    assert answer.status == "completed"
    assert answer.output_text.strip() == "1"
    assert answer.incomplete_details is None


def test_a_stream_has_every_event_in_order(ai: openai.OpenAI) -> None:
    events = list(ask(ai, stream=True))
    kinds = [event.type.removeprefix("response.") for event in events]
    deltas = kinds.count("output_text.delta")
    assert kinds == [
        "created",
        "in_progress",
        "output_item.added",
        "content_part.added",
        *["output_text.delta"] * deltas,
        "output_text.done",
        "content_part.done",
        "output_item.done",
        "incomplete",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    text = "".join(e.delta for e in events if e.type == "response.output_text.delta")
    assert text == ask(ai).output_text == events[-1].response.output_text


def test_the_clients_own_accumulation_of_a_stream_works(ai: openai.OpenAI) -> None:
    with ai.responses.stream(
        model=MODEL, input="Hello!", text_format=Llama, max_output_tokens=100
    ) as stream:
        answer = stream.get_final_response()
    assert isinstance(answer.output_parsed, Llama)


def test_structured_output_parses_into_the_clients_model(ai: openai.OpenAI) -> None:
    answer = ai.responses.parse(
        model=MODEL, input="Hello!", text_format=Llama, max_output_tokens=100
    )
    assert isinstance(answer.output_parsed, Llama)


@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "weather"}])
def test_calls_come_whole_and_streamed(ai: openai.OpenAI, choice: Any) -> None:
    fields = {"tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False}
    whole = ask(ai, max_output_tokens=200, **fields)
    (call,) = whole.output
    assert call.type == "function_call"
    assert json.loads(call.arguments)["sky"] in ("clear", "grey")
    assert whole.status == "completed"
    events = list(ask(ai, max_output_tokens=200, stream=True, **fields))
    pieces = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
    (done,) = [e for e in events if e.type == "response.function_call_arguments.done"]
    assert "".join(pieces) == done.arguments == call.arguments
    assert len(pieces) > 1
    assert events[-1].response.output[0].call_id.startswith("call_")


def test_several_calls_are_several_items(ai: openai.OpenAI) -> None:
    with ai.responses.stream(
        model=MODEL, input="Hi", tools=[TOOL], tool_choice="required", max_output_tokens=1500
    ) as stream:
        for event in stream:
            last = event
    assert last.type in ("response.completed", "response.incomplete")
    items = last.response.output
    assert all(item.type == "function_call" for item in items)
    assert len({item.call_id for item in items}) == len(items)


def test_a_conversation_with_calls_goes_on(ai: openai.OpenAI) -> None:
    forced = {"tools": [TOOL], "tool_choice": "required", "parallel_tool_calls": False}
    first = ask(ai, max_output_tokens=200, **forced)
    (call,) = first.output
    result = {"type": "function_call_output", "call_id": call.call_id, "output": "21"}
    turns = [{"role": "user", "content": "Hello!"}, *first.output, result]
    second = ask(ai, input=turns, tools=[TOOL])
    assert second.usage.input_tokens > first.usage.input_tokens + 10
    with pytest.raises(openai.BadRequestError, match="not in the conversation"):
        ask(ai, input=[turns[0], result])


def test_logprobs_come_where_they_are_included(ai: openai.OpenAI) -> None:
    include = ["message.output_text.logprobs"]
    answer = ask(ai, include=include, top_logprobs=2)
    entries = answer.output[0].content[0].logprobs
    assert len(entries) == answer.usage.output_tokens
    assert all(len(entry.top_logprobs) == 2 for entry in entries)
    events = ask(ai, include=include, top_logprobs=2, stream=True)
    streamed = [e for x in events if x.type == "response.output_text.delta" for e in x.logprobs]
    assert [e.token for e in streamed] == [e.token for e in entries]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image"}]}]},
            "input[0].content[0]",
        ),
        ({"input": [{"type": "computer_call"}]}, "input[0]"),
        ({"input": []}, "input"),
        ({"tools": [{"type": "web_search"}]}, "tools[0]"),
        ({"max_output_tokens": 0}, "max_output_tokens"),
    ],
)
def test_what_cannot_be_done_is_named(ai: openai.OpenAI, fields: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(ai, **fields)
    assert caught.value.param == param
