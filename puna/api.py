"""The front door for programs: a Llama that loads, generates, chats and saves."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Self

import torch

from puna.core.errors import UsageError
from puna.formats import load_model, save_model
from puna.inference import Engine, Generation, Request, Sampling, generate
from puna.model import Llama as Network
from puna.model import LlamaConfig, llama_config
from puna.tokenizer import Message, Tokenizer

__all__ = ["Llama", "LlamaConfig", "Message", "Tokenizer", "llama_config"]


class Llama(Network):
    """A Llama with its tokenizer.

    ``model(ids)`` gives logits (batch, time, vocab_size); see `puna.model.Llama`.
    """

    _tokenizer: Tokenizer | None = None

    @classmethod
    def from_pretrained(
        cls,
        name: str | Path,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> Self:
        """The model called ``name``: a Hugging Face folder, a GGUF file, or ``smollm2``."""
        model, tokenizer = load_model(name, dtype=dtype, device=device, cls=cls)
        model._tokenizer = tokenizer
        return model

    @property
    def tokenizer(self) -> Tokenizer:
        """Its tokenizer; raises `UsageError` for a model built from a config alone."""
        if self._tokenizer is None:
            raise UsageError("this model has no tokenizer: load it with Llama.from_pretrained")
        return self._tokenizer

    def save_pretrained(self, folder: str | Path) -> None:
        """Write a Hugging Face folder, which transformers opens too."""
        save_model(Path(folder), self, self.tokenizer)

    def generate(
        self, prompts: Sequence[Sequence[int]] | torch.Tensor, **sampling: Any
    ) -> list[list[int]]:
        """New token ids for each prompt of token ids.

        Ends at the tokenizer's stop tokens, which are not part of the result. ``sampling`` are the
        fields of `puna.inference.Sampling`; the default is greedy, 256 tokens at most.
        """
        return [generation.ids for generation in self._generations(prompts, sampling)]

    def chat(self, messages: str | Sequence[Message], **sampling: Any) -> str:
        """The answer to a conversation, or to one question given as a string."""
        if isinstance(messages, str):
            messages = [Message("user", messages)]
        prompt = self.tokenizer.chat.encode(self.tokenizer, messages, add_generation_prompt=True)
        (generation,) = self._generations([prompt.ids], sampling)
        return generation.text

    def _generations(
        self, prompts: Sequence[Sequence[int]] | torch.Tensor, sampling: dict[str, Any]
    ) -> list[Generation]:
        rows = prompts.tolist() if isinstance(prompts, torch.Tensor) else prompts
        options = Sampling.parse(sampling, where="generate")
        stop_ids = self.tokenizer.stop_ids
        # A new engine each time: it shares these weights as they are now.
        engine = Engine(self, self.tokenizer)
        return generate(engine, [Request(row, options, stop_ids) for row in rows])
