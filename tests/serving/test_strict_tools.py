"""Strict tools where the model is free to call them, by OpenAI's own client.

The model is a script: it wants to write one text, whatever it is asked.
"""

import json
from collections.abc import Callable, Iterator
from typing import Any

import openai
import pytest
import torch
from protocol_api import CONTEXT, MODEL
from serving_helpers import Serve, noisy_llama

from puna.formats import load_tokenizer
from puna.inference import Engine, EngineConfig
from puna.inference.constraint import Grammars
from puna.serving import Hub, ServeConfig, create_app
from puna.tokenizer import Tokenizer

WEATHER = {
    "type": "object",
    "properties": {"sky": {"enum": ["clear", "grey"]}, "warm": {"type": "boolean"}},
    "required": ["sky", "warm"],
    "additionalProperties": False,
}


def tools(*, strict: bool) -> list[Any]:
    weather = {"name": "weather", "parameters": WEATHER, "strict": strict}
    return [{"type": "function", "function": each} for each in (weather, {"name": "now"})]


class Scripted:
    """Takes the place of a model's logits: the script's next token is by far the likeliest."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []

    def say(self, text: str) -> None:
        self._ids = self._tokenizer.encode(text)

    def __call__(self, hidden_nd: torch.Tensor) -> torch.Tensor:
        logits = torch.arange(self._tokenizer.vocab_size).float().neg() / 1e6
        logits[sorted(self._tokenizer.stop_ids)] += 1
        if self._ids:
            logits[self._ids.pop(0)] += 10
        return logits.expand(len(hidden_nd), -1)


@pytest.fixture(scope="module", params=["llama3", "chatml"])
def spoken(request: pytest.FixtureRequest, tokenizer: Tokenizer) -> Tokenizer:
    """A tokenizer of each way to write calls."""
    return tokenizer if request.param == "llama3" else load_tokenizer("smollm2")


@pytest.fixture(scope="module")
def ask(spoken: Tokenizer, serve: Serve) -> Iterator[Callable[..., Any]]:
    """Asks a model that wants to write a text; the rest is as in OpenAI's client."""
    script = Scripted(spoken)
    config = EngineConfig.parse({"weights": "fp32", "cache_tokens": 8192}, where="test")
    engine = Engine(noisy_llama(spoken.vocab_size, CONTEXT, seed=6), spoken, config)
    engine._runner.logits = script  # type: ignore[method-assign]
    hub = Hub({MODEL: engine})
    hub.start()
    with serve(create_app(hub, ServeConfig(log_requests=False))) as running:
        address = f"{running.url}/v1"
        with openai.OpenAI(base_url=address, api_key="none", max_retries=0) as client:

            def send(text: str, *, responses: bool = False, **fields: Any) -> Any:
                script.say(text)
                if responses:
                    return client.responses.create(model=MODEL, input="Weather?", **fields)
                options = {"temperature": 0, "max_tokens": 200} | fields
                user: Any = {"role": "user", "content": "Weather?"}
                return client.chat.completions.create(model=MODEL, messages=[user], **options)

            yield send
    hub.close()


def call(spoken: Tokenizer, arguments: str, name: str = "weather") -> str:
    form = spoken.chat.tools
    return form.before(name) + arguments + form.after


WRONG = '{"sky": "purple", "warm": "very"}'


def assert_fits(arguments: str) -> None:
    value = json.loads(arguments)
    assert set(value) == {"sky", "warm"}
    assert value["sky"] in ("clear", "grey")
    assert isinstance(value["warm"], bool)


def test_a_call_that_the_model_begins_follows_the_schema(
    ask: Callable[..., Any], spoken: Tokenizer
) -> None:
    text = call(spoken, WRONG)
    (loose,) = ask(text, tools=tools(strict=False)).choices
    assert loose.message.tool_calls[0].function.arguments == WRONG
    (held,) = ask(text, tools=tools(strict=True)).choices
    assert held.finish_reason == "tool_calls"
    (made,) = held.message.tool_calls
    assert made.function.name == "weather"
    assert_fits(made.function.arguments)


def test_a_streamed_call_and_one_of_responses_follow_it_too(
    ask: Callable[..., Any], spoken: Tokenizer
) -> None:
    arguments = ""
    for chunk in ask(call(spoken, WRONG), tools=tools(strict=True), stream=True):
        for made in chunk.choices[0].delta.tool_calls or ():
            arguments += made.function.arguments or ""
    assert_fits(arguments)
    flat = [{"type": "function"} | each["function"] for each in tools(strict=True)]
    answer = ask(call(spoken, WRONG), responses=True, tools=flat, temperature=0)
    assert [item.type for item in answer.output] == ["function_call"]
    assert_fits(answer.output[0].arguments)


@pytest.mark.parametrize("text", ["It is grey.", '{"sky": "grey"} <tool', "é\n\n{}"])
def test_text_passes_as_it_is(ask: Callable[..., Any], text: str) -> None:
    (choice,) = ask(text, tools=tools(strict=True)).choices
    assert (choice.message.content, choice.finish_reason) == (text, "stop")


def test_right_calls_and_those_of_other_tools_pass_as_they_are(
    ask: Callable[..., Any], spoken: Tokenizer
) -> None:
    right = '{"sky": "grey", "warm": false}'
    made = [call(spoken, right), call(spoken, '{"x": [1, "a"]}', "now")]
    (choice,) = ask(spoken.chat.tools.separator.join(made), tools=tools(strict=True)).choices
    found = [(each.function.name, each.function.arguments) for each in choice.message.tool_calls]
    assert found == [("weather", right), ("now", '{"x": [1, "a"]}')]


@pytest.fixture(scope="module")
def grammars(spoken: Tokenizer) -> Grammars:
    return Grammars(spoken)


def possible(grammars: Grammars, spoken: Tokenizer, text: str, *, parallel: bool = True) -> bool:
    """Whether the grammar lets the model write ``text`` and end there."""
    form = spoken.chat.tools
    grammar = form.free_grammar(tools(strict=True), {"weather"}, parallel=parallel)
    matcher = grammars.lark(grammar)
    for token in spoken.encode(text):
        if not matcher.mask()[token]:
            return False
        matcher.accept(token)
    return bool(matcher.mask()[spoken.eos_id])


def test_what_would_be_read_as_a_call_must_be_one(grammars: Grammars, spoken: Tokenizer) -> None:
    form = spoken.chat.tools
    key, opening, after = form.arguments_key, form.opening, form.after
    right = '{"sky": "grey", "warm": false}'
    spellings = [
        f'{opening}{{"name":"weather","{key}":{right}{after}',
        f'{opening}{{"type": "function", "name": "weather", "parameters": {right}{after}',
        f'{opening}{{\n  "name": "now",\n  "arguments": {{}}{after}',
    ]
    for text in spellings:
        assert possible(grammars, spoken, text), text
    others = [
        f'{opening}{{"name": "moon", "{key}": {{}}{after}',
        f'{opening}{{"{key}": {WRONG}, "name": "weather"{after}',
        f'{opening}{{"function": {{"name": "weather", "{key}": {WRONG}}}{after}',
        f'{opening} {{ "name": "weather"{after}',
    ]
    for text in others:
        assert not possible(grammars, spoken, text), text


def test_one_call_is_all_where_calls_are_not_parallel(
    grammars: Grammars, spoken: Tokenizer
) -> None:
    one = call(spoken, "{}", "now")
    assert possible(grammars, spoken, one, parallel=False)
    two = one + spoken.chat.tools.separator + one
    assert possible(grammars, spoken, two)
    assert not possible(grammars, spoken, two, parallel=False)
