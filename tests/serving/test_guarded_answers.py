"""What a safeguard did stands in the answers of every protocol."""

from collections.abc import Iterator
from typing import Any

import openai
import pytest
from protocol_api import MODEL, Api
from serving_helpers import Serve

from puna.inference import Engine, EngineConfig
from puna.safety import OutputFilter, Subject, Verdict
from puna.serving import Hub, ServeConfig, create_app

pytest_plugins = ["protocol_fixtures"]
HELLO: list[Any] = [{"role": "user", "content": "Hello!"}]


class AfterFive:
    """Blocks an answer once it has more than five characters."""

    def __init__(self) -> None:
        self.verdict = Verdict()
        self._n = 0

    def push(self, text: str) -> str:
        released = text[: 5 - self._n]
        self._n += len(text)
        if self._n > 5:
            self.verdict = Verdict("block", "too long")
        return released

    def flush(self) -> str:
        return ""


class Guard:
    """Blocks prompts with "llama"; lets five characters of an answer through."""

    def __init__(self) -> None:
        self.subjects: list[Subject] = []

    async def admit(self, subject: Subject) -> Verdict:
        self.subjects.append(subject)
        blocked = any("llama" in message.content for message in subject.messages)
        return Verdict("block", "no llamas") if blocked else Verdict()

    def output_filter(self, subject: Subject) -> OutputFilter:
        return AfterFive()


@pytest.fixture(scope="module")
def guarded(api: Api, serve: Serve) -> Iterator[openai.OpenAI]:
    config = EngineConfig.parse({"weights": "fp32", "cache_tokens": 8192}, where="test")
    hub = Hub({MODEL: Engine(api.model, api.tokenizer, config)})
    hub.start()
    app = create_app(hub, ServeConfig(log_requests=False), safeguard=Guard())
    with serve(app) as running, api.openai(base_url=f"{running.url}/v1") as client:
        yield client
    hub.close()


def test_a_blocked_chat_says_so_whole_and_streamed(guarded: openai.OpenAI) -> None:
    fields: Any = {"model": MODEL, "messages": HELLO, "max_tokens": 60, "temperature": 0}
    blocked = {"guard": {"decision": "block", "reason": "too long"}}
    choice = guarded.chat.completions.create(**fields).choices[0]
    assert choice.finish_reason == "content_filter"
    assert choice.message.content is not None
    assert len(choice.message.content) == 5
    assert choice.model_extra == {"puna": blocked}
    chunks = list(guarded.chat.completions.create(stream=True, **fields))
    text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
    assert text == choice.message.content
    assert chunks[-1].choices[0].finish_reason == "content_filter"
    assert chunks[-1].choices[0].model_extra == {"puna": blocked}


def test_a_blocked_completion_says_so_whole_and_streamed(guarded: openai.OpenAI) -> None:
    fields: Any = {"model": MODEL, "prompt": "Hello!", "max_tokens": 60, "temperature": 0}
    choice = guarded.completions.create(**fields).choices[0]
    assert (choice.finish_reason, len(choice.text)) == ("content_filter", 5)
    chunks = list(guarded.completions.create(stream=True, **fields))
    assert "".join(chunk.choices[0].text for chunk in chunks) == choice.text
    assert chunks[-1].choices[0].model_extra == choice.model_extra != {}


def test_a_blocked_response_is_incomplete_whole_and_streamed(guarded: openai.OpenAI) -> None:
    fields: Any = {"model": MODEL, "input": "Hello!", "temperature": 0}
    answer = guarded.responses.create(**fields)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "content_filter"
    events: list[Any] = list(guarded.responses.create(stream=True, **fields))
    assert events[-1].type == "response.incomplete"
    assert events[-1].response.output_text == answer.output_text


def test_the_guard_sees_the_conversation_of_chats_and_responses(guarded: openai.OpenAI) -> None:
    words: Any = [{"role": "user", "content": "A llama?"}]
    for stream in (False, True):
        with pytest.raises(openai.BadRequestError) as caught:
            guarded.chat.completions.create(model=MODEL, messages=words, stream=stream)
        assert caught.value.code == "content_blocked"
        with pytest.raises(openai.BadRequestError, match="no llamas"):
            guarded.responses.create(model=MODEL, input=words, stream=stream)
