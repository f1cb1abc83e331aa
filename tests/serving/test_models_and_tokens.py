"""Models and tokens: what clients ask before they send work."""

import httpx
import openai
import pytest
from protocol_api import CONTEXT, MODEL, Api

from puna.tokenizer import Message

pytest_plugins = ["protocol_fixtures"]


def test_models_are_listed_and_found_by_name(ai: openai.OpenAI) -> None:
    (model,) = ai.models.list().data
    assert model.id == MODEL
    assert ai.models.retrieve(MODEL) == model
    with pytest.raises(openai.NotFoundError):
        ai.models.retrieve("other/model")


@pytest.mark.parametrize("prefix", ["", "/v1"])
def test_text_goes_to_tokens_and_back(api: Api, prefix: str) -> None:
    text = "Grüße, 你好 🦙"
    body = {"prompt": text, "return_token_strs": True}
    cut = httpx.post(f"{api.url}{prefix}/tokenize", json=body).json()
    ids = api.tokenizer.encode(text, bos=True)
    assert cut["tokens"] == ids
    assert cut["count"] == len(ids) == len(cut["token_strs"])
    assert cut["max_model_len"] == CONTEXT
    bare = httpx.post(
        f"{api.url}{prefix}/tokenize", json={"prompt": text, "add_special_tokens": False}
    ).json()
    assert bare["tokens"] == ids[1:]
    back = httpx.post(f"{api.url}{prefix}/detokenize", json={"tokens": bare["tokens"]}).json()
    assert back == {"prompt": text}


def test_a_conversation_is_cut_as_chat_completions_cut_it(api: Api, ai: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "Hello!"}]
    tools = [{"type": "function", "function": {"name": "now"}}]
    body = {"model": MODEL, "messages": messages}
    plain = httpx.post(f"{api.url}/v1/tokenize", json=body).json()
    chat = api.tokenizer.chat.encode(
        api.tokenizer, [Message("user", "Hello!")], add_generation_prompt=True
    )
    assert plain["tokens"] == chat.ids
    with_tools = httpx.post(f"{api.url}/v1/tokenize", json=body | {"tools": tools}).json()
    answer = ai.chat.completions.create(
        model=MODEL,
        messages=messages,
        tools=tools,
        max_tokens=1,  # type: ignore[arg-type]
    )
    assert with_tools["count"] == answer.usage.prompt_tokens


def test_special_tokens_are_found_by_their_bare_names_only(api: Api) -> None:
    info = httpx.get(f"{api.url}/tokenizer_info").json()
    assert info["chat_template"] == api.tokenizer.chat.jinja()

    def cut(text: str) -> list[int]:
        body = {"prompt": text, "add_special_tokens": False}
        return httpx.post(f"{api.url}/tokenize", json=body).json()["tokens"]

    assert cut(info["eos_token"]) == [api.tokenizer.eos_id]
    assert cut(info["bos_token"]) == [api.tokenizer.bos_id]
    assert api.tokenizer.special_ids.isdisjoint(cut("x" + info["eos_token"]))


def test_a_text_or_a_conversation_is_needed(api: Api) -> None:
    answer = httpx.post(f"{api.url}/v1/tokenize", json={"model": MODEL})
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] in ("prompt", "messages")
