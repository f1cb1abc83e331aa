"""Embeddings, by OpenAI's own client."""

import base64
import struct
from typing import Any

import httpx
import openai
import pytest
import torch
from protocol_api import MODEL, Api

from puna.model import Llama

pytest_plugins = ["protocol_fixtures"]
TEXTS = ["The llama grazes", "Grüße"]


def expected(api: Api, model: Llama, text: str) -> torch.Tensor:
    ids = api.tokenizer.encode(text, bos=True)
    with torch.inference_mode():
        hidden = model.hidden(torch.tensor([ids]))[0].float().mean(0)
    return hidden / hidden.norm()


def test_vectors_are_the_mean_hidden_states(api: Api, ai: openai.OpenAI, roomy: Llama) -> None:
    answer = ai.embeddings.create(model=MODEL, input=TEXTS)  # asks for base64
    assert [entry.index for entry in answer.data] == [0, 1]
    for text, entry in zip(TEXTS, answer.data, strict=True):
        # fp32 on both sides
        torch.testing.assert_close(
            torch.tensor(entry.embedding), expected(api, roomy, text), atol=1e-5, rtol=1e-5
        )
    assert answer.usage.prompt_tokens == sum(
        len(api.tokenizer.encode(text, bos=True)) for text in TEXTS
    )


def test_numbers_and_bytes_tokens_and_texts_are_the_same(api: Api, ai: openai.OpenAI) -> None:
    ids = [api.tokenizer.encode(text, bos=True) for text in TEXTS]
    forms: list[Any] = [TEXTS[0], [TEXTS[0]], ids[0], [ids[0]]]
    first = ai.embeddings.create(model=MODEL, input=forms[0], encoding_format="float").data[0]
    for form in forms:
        numbers = ai.embeddings.create(model=MODEL, input=form, encoding_format="float").data[0]
        raw: Any = ai.embeddings.create(model=MODEL, input=form, encoding_format="base64").data[0]
        # decimal digits of fp32 are exact to about 1e-7
        assert numbers.embedding == pytest.approx(first.embedding, abs=1e-6)
        unpacked = struct.unpack(f"<{len(first.embedding)}f", base64.b64decode(raw.embedding))
        assert unpacked == pytest.approx(first.embedding, abs=1e-6)


def test_only_the_models_own_dimensions_are_given(api: Api, ai: openai.OpenAI) -> None:
    own = ai.embeddings.create(model=MODEL, input="x", dimensions=api.model.config.dim)
    assert len(own.data[0].embedding) == api.model.config.dim
    with pytest.raises(openai.BadRequestError, match="32 dimensions"):
        ai.embeddings.create(model=MODEL, input="x", dimensions=16)


def test_a_token_outside_the_vocabulary_is_refused(api: Api) -> None:
    body = {"model": MODEL, "input": [100_000]}
    answer = httpx.post(f"{api.url}/v1/embeddings", json=body)
    assert answer.status_code == 400
    assert "outside this vocabulary" in answer.json()["error"]["message"]
