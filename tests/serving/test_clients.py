"""Clients of others: langchain, lm-eval's requests, and OpenAI's classes of errors."""

import time
from collections.abc import Callable
from typing import Any, Literal

import httpx
import openai
import pytest
import torch
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAIEmbeddings
from protocol_api import MODEL, Api
from pydantic import BaseModel, ConfigDict, Field

from puna.inference import Engine
from puna.model import Llama

pytest_plugins = ["protocol_fixtures"]


@tool
def weather(sky: Literal["clear", "grey"]) -> str:
    """Say what the sky is like."""
    return f"{sky}, 21 degrees"


class Animal(BaseModel):
    """An animal."""

    model_config = ConfigDict(extra="forbid")  # a random model would invent keys without end

    kind: Literal["llama", "alpaca"]
    legs: int = Field(ge=0, le=8)


@pytest.fixture
def chat(api: Api) -> ChatOpenAI:
    return langchain(api)


def langchain(api: Api, **options: Any) -> ChatOpenAI:
    address = {"base_url": f"{api.url}/v1", "api_key": "none", "max_retries": 0}
    sampling = {"model": MODEL, "temperature": 0, "max_tokens": 100, "seed": 1}
    return ChatOpenAI(**(address | sampling | options))


def test_langchain_streams_what_it_is_answered_whole(chat: ChatOpenAI) -> None:
    answer = chat.invoke("Hello!")
    chunks = list(chat.stream("Hello!"))
    assert "".join(str(chunk.content) for chunk in chunks) == answer.content != ""
    assert answer.usage_metadata is not None
    assert answer.usage_metadata["output_tokens"] > 0


def test_langchain_calls_a_tool_and_goes_on_with_its_result(chat: ChatOpenAI) -> None:
    bound = chat.bind_tools([weather], tool_choice="any", parallel_tool_calls=False)
    question = HumanMessage("Weather?")
    answer = bound.invoke([question])
    assert isinstance(answer, AIMessage)
    (call,) = answer.tool_calls
    assert call["name"] == "weather"
    result = weather.invoke(call)
    assert isinstance(result, ToolMessage)
    assert result.content.endswith("21 degrees")
    after = chat.bind_tools([weather]).invoke([question, answer, result])
    assert after.usage_metadata["input_tokens"] > answer.usage_metadata["input_tokens"]


@pytest.mark.parametrize("method", ["function_calling", "json_schema"])
def test_langchain_gets_structured_output(chat: ChatOpenAI, method: Any) -> None:
    found = chat.with_structured_output(Animal, method=method).invoke("An animal, please.")
    assert isinstance(found, Animal)


def test_langchain_over_responses_streams_and_calls(api: Api) -> None:
    chat = langchain(api, use_responses_api=True, seed=None)
    whole = chat.invoke("Hello!").text
    assert "".join(chunk.text for chunk in chat.stream("Hello!")) == whole != ""
    (call,) = (
        chat.bind_tools([weather], tool_choice="any", parallel_tool_calls=False)
        .invoke("Weather?")
        .tool_calls
    )
    assert call["name"] == "weather"


def test_langchain_embeds(api: Api) -> None:
    embeddings = OpenAIEmbeddings(
        model=MODEL,
        base_url=f"{api.url}/v1",
        api_key="none",  # type: ignore[arg-type]
        check_embedding_ctx_length=False,  # else it cuts tokens with a tokenizer it downloads
    )
    vectors = embeddings.embed_documents(["The llama grazes", "Grüße"])
    assert vectors[0] == pytest.approx(embeddings.embed_query("The llama grazes"), abs=1e-6)
    assert vectors[0] != pytest.approx(vectors[1], abs=1e-2)


def test_lm_eval_gets_the_likelihood_of_a_continuation(api: Api, roomy: Llama) -> None:
    """The requests of lm-eval 0.4.13's local-completions for a batch of two, and its reading."""
    context, continuations = "In 2024 there were", [" about 3", " llamas!"]
    bodies = [api.tokenizer.encode(context + text) for text in continuations]
    n_context = len(api.tokenizer.encode(context))
    request = {
        "model": MODEL,
        "prompt": bodies,
        "temperature": 0,
        "max_tokens": 1,
        "logprobs": 1,
        "seed": 1234,
        "echo": True,
    }
    answer = httpx.post(f"{api.url}/v1/completions", json=request, timeout=60).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    for ids, choice in zip(bodies, answer["choices"], strict=True):
        logprobs = choice["logprobs"]
        own = logprobs["token_logprobs"][n_context:-1]
        tops = logprobs["top_logprobs"][n_context:-1]
        with torch.inference_mode():
            expected = torch.log_softmax(roomy(torch.tensor([ids]))[0].float(), -1)
        places = range(n_context - 1, len(ids) - 1)
        # both in fp32, summed in another order
        likelihood = sum(float(expected[at, ids[at + 1]]) for at in places)
        assert sum(own) == pytest.approx(likelihood, abs=1e-4)
        greedy = [value == max(top.values()) for value, top in zip(own, tops, strict=True)]
        assert greedy == [int(expected[at].argmax()) == ids[at + 1] for at in places]


def test_lm_eval_generates_until_a_text(api: Api) -> None:
    request = {
        "prompt": [api.tokenizer.encode("In 2024"), api.tokenizer.encode("The llama")],
        "model": MODEL,
        "max_tokens": 20,
        "temperature": 0,
        "stop": ["e", "<|end_of_text|>"],
        "seed": 1234,
    }
    answer = httpx.post(f"{api.url}/v1/completions", json=request, timeout=60).json()
    assert [choice["index"] for choice in answer["choices"]] == [0, 1]
    assert not any("e" in choice["text"] for choice in answer["choices"])


def test_cyberseceval_sends_null_formats_and_no_length(ai: openai.OpenAI) -> None:
    answer = ai.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Hi"}],
        response_format=None,  # type: ignore[arg-type]
        temperature=0.6,
        top_p=0.9,
        stop=["e"],
    )
    assert answer.choices[0].finish_reason == "stop"


def test_a_failing_model_is_an_error_of_the_server_and_the_next_request_works(
    api: Api, ai: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask(stream: bool) -> Any:
        return ai.chat.completions.create(
            model=MODEL, messages=[{"role": "user", "content": "Hi"}], max_tokens=4, stream=stream
        )

    def broken(*_: Any) -> Any:
        raise RuntimeError("the model broke")

    for stream in (False, True):
        with monkeypatch.context() as patched:
            patched.setattr(Engine, "_choose", broken)
            with pytest.raises(openai.InternalServerError):
                ask(stream)
        assert ask(False).choices


def test_a_model_that_fails_in_the_middle_ends_the_stream_with_an_error(
    ai: openai.OpenAI, monkeypatch: pytest.MonkeyPatch
) -> None:
    choose: Callable[..., Any] = Engine._choose
    calls = []

    def breaking(*given: Any) -> Any:
        calls.append(given)
        time.sleep(0.1)  # so that what was written is on its way
        if len(calls) == 4:
            raise RuntimeError("the model broke")
        return choose(*given)

    monkeypatch.setattr(Engine, "_choose", breaking)
    stream = ai.chat.completions.create(
        model=MODEL,
        messages=[{"role": "user", "content": "Hi"}],
        max_tokens=50,
        stream=True,
        extra_body={"ignore_eos": True},
    )
    with pytest.raises(openai.APIError, match="failed"):
        list(stream)
    events = list(ai.responses.create(model=MODEL, input="Hi", max_output_tokens=4, stream=True))
    assert events[-1].type in ("response.completed", "response.incomplete")


def test_an_address_without_an_endpoint_is_not_found(api: Api) -> None:
    with api.openai(base_url=f"{api.url}/v2") as lost, pytest.raises(openai.NotFoundError):
        lost.models.list()
