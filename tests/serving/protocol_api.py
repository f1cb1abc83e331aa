"""The server that the tests of the protocol ask: where it is and what stands behind it."""

from dataclasses import dataclass
from typing import Any

import openai

from puna.inference import Engine, EngineConfig, Request, Sampling
from puna.model import Llama
from puna.tokenizer import Tokenizer

MODEL = "tiny"
CONTEXT = 4096


@dataclass(frozen=True)
class Api:
    """A server and the engine's own view of the same model."""

    url: str
    tokenizer: Tokenizer
    model: Llama

    def openai(self, **options: Any) -> openai.OpenAI:
        """OpenAI's client of it; no second try hides an error."""
        address = {"base_url": f"{self.url}/v1", "api_key": "none", "max_retries": 0}
        return openai.OpenAI(**(address | options))

    def written(self, prompt: list[int], sampling: Sampling) -> tuple[str, list[int]]:
        """What the engine alone writes: text and tokens."""
        config = EngineConfig.parse({"weights": "fp32", "cache_tokens": 8192}, where="test")
        engine = Engine(self.model, self.tokenizer, config)
        engine.submit(Request(prompt, sampling, stop_ids=self.tokenizer.stop_ids))
        text, ids = "", list[int]()
        while not engine.idle:
            for _, delta in engine.step():
                text += delta.text
                ids += delta.ids
        return text, ids
