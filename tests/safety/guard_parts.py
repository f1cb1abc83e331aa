"""A guard that says what it is told to say, and a tiny chat model."""

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path

from puna.core.errors import PunaError
from puna.formats import save_model
from puna.model import Llama, LlamaConfig
from puna.safety import Subject
from puna.safety.guard import Judgement
from puna.tokenizer import Message, Tokenizer

SAFE = Judgement(False, 0.1)


class FakeClassifier:
    """Judges by a function of the last turn's text; remembers what it was asked."""

    name = "fake"

    def __init__(self, judge: Callable[[str], Judgement], seconds: float = 0.0) -> None:
        self._judge = judge
        self._seconds = seconds
        self.asked: list[list[Message]] = []

    async def judge(self, messages: Sequence[Message]) -> Judgement:
        self.asked.append(list(messages))
        await asyncio.sleep(self._seconds)
        return self._judge(messages[-1].content)

    async def close(self) -> None:
        return


class BrokenClassifier(FakeClassifier):
    """Fails."""

    def __init__(self) -> None:
        super().__init__(lambda _: SAFE)

    async def judge(self, messages: Sequence[Message]) -> Judgement:
        raise PunaError("the guard model failed")


def finds(word: str, *codes: str, score: float = 0.9) -> FakeClassifier:
    """Calls a turn with ``word`` unsafe."""
    return FakeClassifier(lambda text: Judgement(True, score, codes) if word in text else SAFE)


def said(*contents: str, system: str = "") -> Subject:
    """A conversation that a user begins."""
    roles = ("user", "assistant")
    turns = [Message(roles[n % 2], content) for n, content in enumerate(contents)]
    return Subject("", [*([Message("system", system)] if system else []), *turns], "m", None)


def tiny_model(folder: Path, context: int = 512) -> Path:
    """A chat model of random weights in ``folder``."""
    texts = ["How do I bake bread? Mix flour with water. User: safe or unsafe"] * 4
    tokenizer = Tokenizer.train(texts, 300, n_special=16)
    fields = {"dim": 32, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 48}
    shape = {"vocab_size": tokenizer.vocab_size, "context": context}
    model = Llama(LlamaConfig.parse(fields | shape, where="test"))
    model.init_weights(seed=4)
    save_model(folder, model, tokenizer)
    return folder
