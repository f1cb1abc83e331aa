"""Completions, by OpenAI's own client."""

from typing import Any

import openai
import pytest
import torch
from protocol_api import MODEL, Api

from puna.inference import Sampling
from puna.model import Llama

pytest_plugins = ["protocol_fixtures"]
PROMPT = "The llama grazes"


def ask(ai: openai.OpenAI, **fields: Any) -> Any:
    options = {"model": MODEL, "prompt": PROMPT, "max_tokens": 8, "temperature": 0} | fields
    return ai.completions.create(**options)


def test_text_and_its_tokens_are_the_same_prompt(api: Api, ai: openai.OpenAI) -> None:
    ids = api.tokenizer.encode(PROMPT, bos=True)
    text, _ = api.written(ids, Sampling(max_new_tokens=8))
    for prompt in (PROMPT, [PROMPT], ids, [ids]):
        (choice,) = ask(ai, prompt=prompt).choices
        assert choice.text == text
        assert choice.finish_reason == "length"


def test_without_special_tokens_the_text_stands_alone(api: Api, ai: openai.OpenAI) -> None:
    ids = api.tokenizer.encode(PROMPT)
    answer = ask(ai, extra_body={"add_special_tokens": False})
    assert answer.usage.prompt_tokens == len(ids)
    assert answer.choices[0].text == api.written(ids, Sampling(max_new_tokens=8))[0]


def test_each_prompt_has_its_choices_in_order(ai: openai.OpenAI) -> None:
    prompts = [PROMPT, "Grüße", "In 2024"]
    answer = ask(ai, prompt=prompts, n=2, echo=True, seed=1, temperature=1)
    assert [choice.index for choice in answer.choices] == list(range(6))
    for at, choice in enumerate(answer.choices):
        assert choice.text.startswith(prompts[at // 2])
    assert answer.usage.completion_tokens <= 6 * 8


def test_sixteen_tokens_are_the_default(ai: openai.OpenAI) -> None:
    answer = ask(ai, max_tokens=openai.omit, extra_body={"ignore_eos": True})
    assert answer.usage.completion_tokens == 16


@pytest.mark.parametrize("fields", [{}, {"echo": True}, {"logprobs": 2, "echo": True, "n": 2}])
def test_a_stream_adds_up_to_the_whole_answer(ai: openai.OpenAI, fields: Any) -> None:
    whole = ask(ai, **fields)
    options = {"include_usage": True}
    texts = [""] * len(whole.choices)
    tokens: list[list[str]] = [[] for _ in whole.choices]
    offsets: list[list[int]] = [[] for _ in whole.choices]
    last = None
    for chunk in ask(ai, stream=True, stream_options=options, **fields):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            if choice.logprobs:
                tokens[choice.index] += choice.logprobs.tokens
                offsets[choice.index] += choice.logprobs.text_offset
        last = chunk
    assert texts == [choice.text for choice in whole.choices]
    if "logprobs" in fields:
        assert tokens == [choice.logprobs.tokens for choice in whole.choices]
        assert offsets == [choice.logprobs.text_offset for choice in whole.choices]
    assert last is not None
    assert last.usage.completion_tokens == whole.usage.completion_tokens


def test_echoed_logprobs_are_the_models(api: Api, ai: openai.OpenAI, roomy: Llama) -> None:
    ids = api.tokenizer.encode(PROMPT, bos=True)
    found = ask(ai, echo=True, logprobs=2, max_tokens=0).choices[0]
    with torch.inference_mode():
        expected = torch.log_softmax(roomy(torch.tensor([ids]))[0].float(), -1)
    assert found.text == PROMPT
    assert found.finish_reason == "length"
    assert found.logprobs.token_logprobs[0] is None
    assert found.logprobs.top_logprobs[0] is None
    for at, token in enumerate(ids[1:]):
        # both in fp32, summed in another order
        assert found.logprobs.token_logprobs[at + 1] == pytest.approx(
            float(expected[at, token]), abs=1e-4
        )
        top = found.logprobs.top_logprobs[at + 1]
        assert max(top.values()) == pytest.approx(float(expected[at].max()), abs=1e-4)
        assert len(top) in (2, 3)


def test_offsets_cut_the_text_into_its_tokens(ai: openai.OpenAI) -> None:
    logprobs = ask(ai, echo=True, logprobs=0, max_tokens=1).choices[0].logprobs
    assert logprobs.tokens[0] == "<|begin_of_text|>"
    ends = [*logprobs.text_offset[2:], None]
    pieces = [PROMPT[a:b] for a, b in zip(logprobs.text_offset[1:-1], ends[:-1], strict=True)]
    assert pieces == logprobs.tokens[1:-1]


def test_a_token_that_is_a_part_of_a_character_is_shown_by_its_bytes(ai: openai.OpenAI) -> None:
    tokens = ask(ai, prompt="🦙", echo=True, logprobs=0, max_tokens=0).choices[0].logprobs.tokens
    parts = [part for token in tokens[1:] for part in token.removeprefix("bytes:").split("\\x")]
    assert bytes.fromhex("".join(parts)).decode() == "🦙"


def test_a_stop_text_ends_the_answer(ai: openai.OpenAI) -> None:
    text = ask(ai, max_tokens=30).choices[0].text
    choice = ask(ai, max_tokens=30, stop=text[5:7]).choices[0]
    assert choice.text == text[: text.index(text[5:7])]
    assert choice.finish_reason == "stop"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [1, -2]}, "prompt[1]"),
        ({"prompt": [["x"]]}, "prompt[0][0]"),
        ({"prompt": [1_000_000]}, None),
        ({"logprobs": 21}, "logprobs"),
        ({"prompt": ["x"] * 500, "n": 16}, "prompt"),
    ],
)
def test_what_is_wrong_is_named(ai: openai.OpenAI, fields: Any, param: str | None) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        ask(ai, **fields)
    assert caught.value.param == param
