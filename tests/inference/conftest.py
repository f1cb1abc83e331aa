"""A tiny model with its tokenizer, and the plain way to generate that every engine is held to."""

from collections.abc import Sequence

import pytest
import torch
from tiny_engine import Build, Reference, tiny_llama

from puna.inference import Engine, EngineConfig
from puna.model import Llama
from puna.tokenizer import Tokenizer

TEXTS = [
    "The llama grazes on the high grassland, 4,000 metres above the sea.",
    "Ein Lama frisst Gras. Une lama mange de l'herbe. 👍 日本語",
]


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS * 4, vocab_size=320, n_special=16)


@pytest.fixture(scope="session")
def model(tokenizer: Tokenizer) -> Llama:
    return tiny_llama(tokenizer.vocab_size)


@pytest.fixture(scope="session")
def build(model: Llama, tokenizer: Tokenizer) -> Build:
    """An engine over the tiny model in fp32; arguments are settings."""

    def new(draft: Llama | None = None, **settings: object) -> Engine:
        # texts here are short
        fields = {"weights": "fp32", "cache_tokens": 4096, "page_size": 8, **settings}
        return Engine(model, tokenizer, EngineConfig.parse(fields, where="test"), draft=draft)

    return new


@pytest.fixture(scope="session")
def reference(model: Llama) -> Reference:
    """Greedy tokens by whole forward passes of the training model: no cache, no batch."""
    known: dict[tuple[int, ...], int] = {}

    @torch.inference_mode()
    def without_cache(prompt: Sequence[int], n: int) -> list[int]:
        ids = list(prompt)
        for _ in range(n):
            key = tuple(ids)
            if key not in known:
                known[key] = int(model(torch.tensor([ids]))[0, -1].argmax())
            ids.append(known[key])
        return ids[len(prompt) :]

    return without_cache
