"""The embedded real model against transformers, and its quantised weights against themselves."""

import math
import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from tiny_engine import run
from transformers import AutoModelForCausalLM

from puna.data.sources import read_source
from puna.formats import load_model
from puna.formats.resolve import smollm2_folder
from puna.inference import Engine, EngineConfig, Request, Sampling, generate
from puna.model import Llama
from puna.tokenizer import Message, Tokenizer

NEW_TOKENS = 64
SUBJECTS = [
    *("gravity", "the sea", "photosynthesis", "Peru", "bread", "a llama", "rain", "the moon"),
    *("Python", "music", "chess", "democracy", "volcanoes", "tea", "glass", "bees", "snow"),
]
QUESTIONS = [
    form.format(subject)
    for subject in SUBJECTS
    for form in ("What is {}?", "Write a short poem about {}.", "List three facts on {}, please.")
][:50]


@pytest.fixture(scope="module")
def smollm2() -> tuple[Llama, Tokenizer]:
    return load_model("smollm2")


@pytest.fixture(scope="module")
def prompts(smollm2: tuple[Llama, Tokenizer]) -> list[list[int]]:
    _, tokenizer = smollm2
    chat = tokenizer.chat
    return [
        chat.encode(tokenizer, [Message("user", q)], add_generation_prompt=True).ids
        for q in QUESTIONS
    ]


def peers_texts(prompts: Sequence[list[int]], tokenizer: Tokenizer) -> list[list[int]]:
    """What transformers writes, in one batch padded on the left."""
    peer = AutoModelForCausalLM.from_pretrained(smollm2_folder(), dtype=torch.float32)
    width = max(map(len, prompts))
    ids = torch.tensor([[tokenizer.pad_id] * (width - len(p)) + p for p in prompts])
    real = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])
    written = peer.generate(
        ids,
        attention_mask=real,
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        eos_token_id=sorted(tokenizer.stop_ids),
        pad_token_id=tokenizer.pad_id,
    )[:, width:].tolist()
    return [_until_stop(row, tokenizer) for row in written]


def _until_stop(ids: list[int], tokenizer: Tokenizer) -> list[int]:
    ends = [n for n, token in enumerate(ids) if token in tokenizer.stop_ids]
    return ids[: ends[0]] if ends else ids


def test_greedy_text_equals_the_peers_for_64_tokens_on_50_prompts(
    smollm2: tuple[Llama, Tokenizer], prompts: list[list[int]]
) -> None:
    """In one shuffled batch with everything on that might change it, and alone."""
    model, tokenizer = smollm2
    expected = peers_texts(prompts, tokenizer)
    options = Sampling(max_new_tokens=NEW_TOKENS)
    requests = [Request(p, options, frozenset(tokenizer.stop_ids)) for p in prompts]

    alone = Engine(model, tokenizer, EngineConfig(weights="fp32", cache_tokens=512, max_rows=1))
    some = range(0, 50, 17)
    assert run(alone, [requests[n] for n in some]) == [expected[n] for n in some]

    config = EngineConfig(
        weights="fp32", cache_tokens=3000, page_size=8, chunk_tokens=128, speculation=2
    )
    engine = Engine(model, tokenizer, config)
    order = random.Random(5).sample(range(50), 50)
    handles = {engine.submit(requests[n]): n for n in order}
    unwanted = [engine.submit(replace(requests[n], prompt=prompts[n][:-3])) for n in order[:10]]
    found: dict[int, list[int]] = {n: [] for n in order}
    while not engine.idle:
        for handle, delta in engine.step():
            if handle in handles:
                found[handles[handle]].extend(delta.ids)
        if unwanted:
            engine.cancel(unwanted.pop())
    assert [found[n] for n in range(50)] == expected
    assert engine.stats().accepted_tokens > 0
    assert engine.stats().cached_tokens > 0


def pieces(tokenizer: Tokenizer, n: int) -> list[list[int]]:
    """Topics of the Python language reference: ``n`` pieces of 512 tokens."""
    topics = read_source("python-reference")[:40]
    ids = [i for topic in topics for i in tokenizer.encode(topic.text)]
    return [ids[at : at + 512] for at in range(0, n * 512, 512)]


def perplexity(
    smollm2: tuple[Llama, Tokenizer], weights: str, texts: list[list[int]], **fields: object
) -> float:
    model, tokenizer = smollm2
    settings = {"weights": weights, "cache_tokens": 4096, **fields}
    config = EngineConfig.parse(settings, where="test")
    options = Sampling(max_new_tokens=0, prompt_logprobs=True)
    found = generate(Engine(model, tokenizer, config), [Request(text, options) for text in texts])
    scored = [e.logprob for f in found for e in f.prompt_logprobs or () if e is not None]
    assert len(scored) == sum(len(text) - 1 for text in texts)
    return math.exp(-sum(scored) / len(scored))


def test_integer_weights_stay_close_to_bf16_on_real_text(
    smollm2: tuple[Llama, Tokenizer],
) -> None:
    texts = pieces(smollm2[1], 6)
    bf16 = perplexity(smollm2, "bf16", texts)
    assert perplexity(smollm2, "int8", texts) < 1.01 * bf16
    assert perplexity(smollm2, "w8a8", texts) < 1.01 * bf16
    assert perplexity(smollm2, "int4", texts) < 1.06 * bf16


def test_a_cache_in_8_bits_stays_close_to_bf16_on_real_text(
    smollm2: tuple[Llama, Tokenizer],
) -> None:
    """Read 16 tokens at a time, so that most keys and values come from the cache."""
    texts = [text[:256] for text in pieces(smollm2[1], 2)]
    settings = {"chunk_tokens": 16, "prefix_cache": False}
    rounded = perplexity(smollm2, "bf16", texts, cache_weights="int8", **settings)
    whole = perplexity(smollm2, "bf16", texts, **settings)
    assert rounded != whole
    assert rounded < 1.01 * whole
