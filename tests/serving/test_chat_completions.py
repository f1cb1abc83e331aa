"""Chat completions, by OpenAI's own client."""

import json
from typing import Any, Literal

import httpx
import openai
import pytest
from protocol_api import CONTEXT, MODEL, Api
from pydantic import BaseModel, Field

from puna.inference import Sampling
from puna.tokenizer import Message

pytest_plugins = ["protocol_fixtures"]
HELLO: list[Any] = [{"role": "user", "content": "Hello!"}]


def ask(ai: openai.OpenAI, **fields: Any) -> Any:
    options = {"model": MODEL, "messages": HELLO, "max_tokens": 12, "temperature": 0} | fields
    return ai.chat.completions.create(**options)


def hello(api: Api) -> list[int]:
    chat = api.tokenizer.chat
    return chat.encode(api.tokenizer, [Message("user", "Hello!")], add_generation_prompt=True).ids


def test_greedy_text_is_the_engines_own(api: Api, ai: openai.OpenAI) -> None:
    text, ids = api.written(hello(api), Sampling(max_new_tokens=12))
    answer = ask(ai)
    assert answer.choices[0].message.content == text
    assert answer.choices[0].message.role == "assistant"
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.prompt_tokens == len(hello(api))
    assert answer.usage.completion_tokens == len(ids) == 12
    assert answer.usage.total_tokens == len(hello(api)) + 12
    assert answer.model == MODEL
    assert answer.object == "chat.completion"


def test_a_stream_adds_up_to_the_whole_answer(ai: openai.OpenAI) -> None:
    whole = ask(ai)
    chunks = list(ask(ai, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
    assert text == whole.choices[0].message.content
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    assert {c.id for c in chunks} == {chunks[0].id}
    assert all(c.usage is None for c in chunks[:-1])


def test_usage_is_streamed_only_when_asked(ai: openai.OpenAI) -> None:
    assert all(chunk.usage is None for chunk in ask(ai, stream=True))


def test_the_second_time_the_prompt_comes_from_the_cache(ai: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "A llama grazes on the high grassland. " * 4}]
    ask(ai, messages=messages)
    usage = ask(ai, messages=messages).usage
    assert 0 < usage.prompt_tokens_details.cached_tokens < usage.prompt_tokens


def test_several_choices_have_seeds_of_their_own_and_the_first_is_that_of_one(
    ai: openai.OpenAI,
) -> None:
    three = ask(ai, n=3, seed=7, temperature=1.5)
    texts = [choice.message.content for choice in three.choices]
    assert [choice.index for choice in three.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    for seed, text in enumerate(texts, start=7):
        assert ask(ai, seed=seed, temperature=1.5).choices[0].message.content == text
    streamed = ["", "", ""]
    for chunk in ask(ai, n=3, seed=7, temperature=1.5, stream=True):
        streamed[chunk.choices[0].index] += chunk.choices[0].delta.content or ""
    assert streamed == texts


def test_without_a_seed_answers_differ(ai: openai.OpenAI) -> None:
    texts = {ask(ai, temperature=2).choices[0].message.content for _ in range(4)}
    assert len(texts) > 1


def test_a_stop_text_ends_the_answer_and_is_not_part_of_it(ai: openai.OpenAI) -> None:
    text = ask(ai, max_tokens=40).choices[0].message.content
    stop = text[6:8]
    choice = ask(ai, max_tokens=40, stop=[stop, "never there"]).choices[0]
    assert choice.finish_reason == "stop"
    assert choice.message.content == text[: text.index(stop)]


def test_logprobs_belong_to_the_tokens_whole_and_streamed(ai: openai.OpenAI) -> None:
    whole = ask(ai, logprobs=True, top_logprobs=3).choices[0].logprobs.content
    assert len(whole) == 12
    for entry in whole:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob == entry.top_logprobs[0].logprob  # greedy: the best is chosen
        assert bytes(entry.bytes).decode(errors="replace") == entry.token
    streamed = [
        entry
        for chunk in ask(ai, logprobs=True, top_logprobs=3, stream=True)
        if chunk.choices and chunk.choices[0].logprobs
        for entry in chunk.choices[0].logprobs.content
    ]
    assert [e.token for e in streamed] == [e.token for e in whole]


def test_logprobs_without_top_ones_have_none(ai: openai.OpenAI) -> None:
    (entry, *_) = ask(ai, logprobs=True).choices[0].logprobs.content
    assert entry.top_logprobs == []


def test_a_banned_token_does_not_come(api: Api, ai: openai.OpenAI) -> None:
    _, ids = api.written(hello(api), Sampling(max_new_tokens=1))
    first = list(api.tokenizer.token_bytes(ids[0]))
    answer = ask(ai, logit_bias={str(ids[0]): -100}, logprobs=True)
    assert first not in [e.bytes for e in answer.choices[0].logprobs.content]


def test_developer_and_parts_are_the_same_as_system_and_text(ai: openai.OpenAI) -> None:
    plain = [{"role": "system", "content": "Be brief."}, *HELLO]
    parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]
    same = [{"role": "developer", "content": parts}, *HELLO]
    answers = [ask(ai, messages=messages) for messages in (plain, same)]
    assert answers[0].usage.prompt_tokens == answers[1].usage.prompt_tokens
    assert answers[0].choices[0].message == answers[1].choices[0].message


def test_null_and_missing_fields_are_defaults(ai: openai.OpenAI, api: Api) -> None:
    body = {"model": MODEL, "messages": HELLO, "seed": 3, "ignore_eos": True}
    nulls = dict.fromkeys(("response_format", "max_tokens", "tools", "stop", "n", "logprobs"))
    answer = httpx.post(f"{api.url}/v1/chat/completions", json=body | nulls, timeout=60).json()
    assert answer["choices"][0]["finish_reason"] == "length"
    assert answer["usage"]["total_tokens"] == CONTEXT


def test_the_last_message_can_be_continued(ai: openai.OpenAI) -> None:
    text = ask(ai).choices[0].message.content
    begun = [*HELLO, {"role": "assistant", "content": text[:0] + "The llama"}]
    extra = {"continue_final_message": True, "add_generation_prompt": False}
    more = ask(ai, messages=begun, extra_body=extra)
    assert more.usage.prompt_tokens == ask(ai).usage.prompt_tokens + 2  # "The", " llama"
    with pytest.raises(openai.BadRequestError, match="can be continued"):
        ask(ai, extra_body=extra)


class Llama(BaseModel):
    name: Literal["Tika", "Pampa"]  # a random model would write a free text without end
    age: int = Field(ge=0, le=30)
    woolly: bool


def test_structured_output_parses_into_the_clients_model(ai: openai.OpenAI) -> None:
    for seed in range(3):
        answer = ai.chat.completions.parse(
            model=MODEL, messages=HELLO, response_format=Llama, seed=seed, max_tokens=100
        )
        assert answer.choices[0].finish_reason == "stop"
        assert isinstance(answer.choices[0].message.parsed, Llama)


def test_structured_output_streams_into_the_clients_model(ai: openai.OpenAI) -> None:
    with ai.chat.completions.stream(
        model=MODEL, messages=HELLO, response_format=Llama, seed=1, max_tokens=100
    ) as stream:
        answer = stream.get_final_completion()
    assert isinstance(answer.choices[0].message.parsed, Llama)


@pytest.mark.parametrize(
    ("structure", "fits"),
    [
        ({"choice": ["alpaca", "guanaco"]}, lambda text: text in ("alpaca", "guanaco")),
        ({"regex": "[0-9]{3}-[ab]"}, lambda text: len(text) == 5 and text[3] == "-"),
        ({"grammar": 'start: "x"{2,4} "!"'}, lambda text: text.strip("x") == "!"),
        ({"json": {"type": "boolean"}}, lambda text: isinstance(json.loads(text), bool)),
    ],
)
def test_other_structures_hold_too(ai: openai.OpenAI, structure: Any, fits: Any) -> None:
    answer = ask(ai, temperature=1, n=3, extra_body={"structured_outputs": structure})
    assert all(fits(choice.message.content) for choice in answer.choices)


def test_json_object_is_an_object(ai: openai.OpenAI) -> None:
    short = {"type": "json_object"}
    answers = ask(ai, temperature=1, n=4, seed=2, max_tokens=600, response_format=short)
    ended = [c.message.content for c in answers.choices if c.finish_reason == "stop"]
    assert ended
    assert all(isinstance(json.loads(text), dict) for text in ended)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"temperature": "1"}, "temperature"),
        ({"n": 17}, "n"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"stop": [""]}, "stop[0]"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages[0]"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages[0].content[0]",
        ),
        (
            {"messages": [*HELLO, {"role": "tool", "content": "x", "tool_call_id": "c"}]},
            "messages[1].tool_call_id",
        ),
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": {"type": "nothing"}},
                }
            },
            "response_format",
        ),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x"),
    ],
)
def test_what_is_wrong_is_named(ai: openai.OpenAI, fields: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(ai, **fields)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


def test_an_unknown_model_is_not_found(ai: openai.OpenAI) -> None:
    for stream in (False, True):
        with pytest.raises(openai.NotFoundError, match="tiny") as caught:
            ask(ai, model="tiney", stream=stream)
        assert caught.value.code == "model_not_found"


def test_a_prompt_that_is_too_long_is_refused_before_the_stream(ai: openai.OpenAI) -> None:
    long = [{"role": "user", "content": "xyz " * CONTEXT}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            ask(ai, messages=long, stream=stream)
        assert caught.value.code == "context_length_exceeded"
