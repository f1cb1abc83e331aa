"""Tools in chat completions, by OpenAI's own client."""

import json
from typing import Any

import openai
import pytest
from protocol_api import MODEL

pytest_plugins = ["protocol_fixtures"]
USER: list[Any] = [{"role": "user", "content": "Weather?"}]


def tool(name: str, **properties: Any) -> Any:
    parameters = {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }
    return {"type": "function", "function": {"name": name, "parameters": parameters}}


TOOLS = [tool("weather", sky={"enum": ["clear", "grey"]}, warm={"type": "boolean"}), tool("now")]


def ask(ai: openai.OpenAI, **fields: Any) -> Any:
    options = {"model": MODEL, "messages": USER, "tools": TOOLS, "max_tokens": 300} | fields
    return ai.chat.completions.create(**options)


def assert_valid(name: str, arguments: str) -> None:
    value = json.loads(arguments)
    if name == "now":
        assert value == {}
    else:
        assert name == "weather"
        assert value["sky"] in ("clear", "grey")
        assert isinstance(value["warm"], bool)
        assert len(value) == 2


def test_a_required_call_is_one_valid_call(ai: openai.OpenAI) -> None:
    answer = ask(ai, tool_choice="required", parallel_tool_calls=False, n=4, seed=1)
    for choice in answer.choices:
        assert choice.finish_reason == "tool_calls"
        assert choice.message.content is None
        (call,) = choice.message.tool_calls
        assert call.type == "function"
        assert_valid(call.function.name, call.function.arguments)


def test_a_named_tool_is_the_one_called(ai: openai.OpenAI) -> None:
    named = {"type": "function", "function": {"name": "now"}}
    answer = ask(ai, tool_choice=named, n=4, seed=1)
    for choice in answer.choices:
        assert [call.function.name for call in choice.message.tool_calls] == ["now"]


def test_calls_may_be_parallel(ai: openai.OpenAI) -> None:
    answer = ask(ai, tool_choice="required", n=16, seed=1, max_tokens=600)
    counts = set()
    for choice in answer.choices:
        calls = choice.message.tool_calls
        counts.add(len(calls))
        assert len({call.id for call in calls}) == len(calls)
        for call in calls[:-1]:  # the length may have cut the last
            assert_valid(call.function.name, call.function.arguments)
    assert max(counts) > 1


def test_streamed_calls_add_up_to_the_whole_ones(ai: openai.OpenAI) -> None:
    fields = {"tool_choice": "required", "seed": 1, "n": 2}
    whole = ask(ai, **fields)
    made: list[list[dict[str, str]]] = [[], []]
    reasons = ["", ""]
    pieces = 0
    for chunk in ask(ai, stream=True, **fields):
        choice = chunk.choices[0]
        reasons[choice.index] = choice.finish_reason or ""
        for call in choice.delta.tool_calls or ():
            pieces += 1
            calls = made[choice.index]
            if call.index == len(calls):
                assert call.id.startswith("call_")
                assert call.type == "function"
                calls.append({"name": call.function.name, "arguments": ""})
            calls[call.index]["arguments"] += call.function.arguments
    expected = [
        [{"name": c.function.name, "arguments": c.function.arguments} for c in x.message.tool_calls]
        for x in whole.choices
    ]
    assert made == expected
    assert reasons == [choice.finish_reason for choice in whole.choices]
    assert pieces > 4  # arguments come in pieces


def test_the_clients_own_accumulation_of_a_stream_works(ai: openai.OpenAI) -> None:
    with ai.chat.completions.stream(
        model=MODEL,
        messages=USER,
        tools=TOOLS,
        tool_choice="required",
        parallel_tool_calls=False,
        seed=1,
        max_tokens=300,
    ) as stream:
        (call,) = stream.get_final_completion().choices[0].message.tool_calls or ()
    assert_valid(call.function.name, call.function.arguments)


def test_with_auto_text_passes_and_nothing_is_called(ai: openai.OpenAI) -> None:
    plain = ask(ai, temperature=0, max_tokens=12)
    streamed = ask(ai, temperature=0, max_tokens=12, stream=True)
    text = "".join(chunk.choices[0].delta.content or "" for chunk in streamed)
    assert plain.choices[0].message.tool_calls is None
    assert text == plain.choices[0].message.content != ""


def test_a_schema_or_a_call_comes_where_both_are_allowed(ai: openai.OpenAI) -> None:
    schema = {"name": "x", "schema": {"type": "boolean"}}
    either = {"type": "json_schema", "json_schema": schema}
    answer = ask(ai, response_format=either, n=16, seed=3, temperature=2)
    called = [c for c in answer.choices if c.finish_reason == "tool_calls"]
    told = [c for c in answer.choices if c.finish_reason == "stop"]
    assert called
    assert told
    assert all(c.message.content in ("true", "false") for c in told)
    assert all(c.message.content is None for c in called)


def test_none_hides_the_tools(ai: openai.OpenAI) -> None:
    none = ask(ai, tool_choice="none", temperature=0)
    without = ask(ai, tools=openai.omit, temperature=0)
    assert none.usage.prompt_tokens == without.usage.prompt_tokens
    assert none.choices[0].message.content == without.choices[0].message.content


def test_calls_and_results_stand_in_the_next_prompt(ai: openai.OpenAI) -> None:
    answer = ask(ai, tool_choice="required", parallel_tool_calls=False, seed=1)
    message = answer.choices[0].message
    result = {"role": "tool", "tool_call_id": message.tool_calls[0].id, "content": '{"c": 21}'}
    after = ask(ai, messages=[*USER, message, result], max_tokens=4)
    assert after.usage.prompt_tokens > answer.usage.prompt_tokens + 10


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"tool_choice": {"type": "function", "function": {"name": "moon"}}}, "tool_choice"),
        ({"tools": [tool("now"), tool("now")]}, "tools"),
        ({"tools": [tool("a b")]}, "tools[0].function.name"),
        (
            {
                "tools": [
                    {
                        "type": "function",
                        "function": {"name": "x", "parameters": {"type": "string"}},
                    }
                ]
            },
            "tools[0].function.parameters",
        ),
    ],
)
def test_impossible_tools_are_refused(ai: openai.OpenAI, fields: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(ai, **fields)
    assert caught.value.param == param
