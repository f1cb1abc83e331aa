"""A model's weights for attacks that need gradients: loaded once, used by one trial at a time."""

import asyncio
from collections.abc import Callable
from typing import TypeVar

import torch

from puna.core.devices import default_device
from puna.formats import load_model
from puna.model import Llama
from puna.tokenizer import Tokenizer

Result = TypeVar("Result")


class WhiteBox:
    """The weights of a model of this machine, in fp32.

    Args:
        load: gives the model and its tokenizer.
    """

    def __init__(self, load: Callable[[], tuple[Llama, Tokenizer]]) -> None:
        self._load = load
        self._loaded: tuple[Llama, Tokenizer] | None = None
        self._lock = asyncio.Lock()

    @classmethod
    def of(cls, source: str) -> "WhiteBox":
        """That of the model called ``source``; see `load_model`."""
        return cls(lambda: load_model(source, dtype=torch.float32, device=default_device()))

    async def use(self, function: Callable[[Llama, Tokenizer], Result]) -> Result:
        """The result of ``function``, computed in a thread while nobody else computes here."""

        def run() -> Result:
            if self._loaded is None:
                model, tokenizer = self._load()
                self._loaded = model.requires_grad_(False).eval(), tokenizer
            return function(*self._loaded)

        async with self._lock:
            return await asyncio.to_thread(run)
