"""A model of a few thousand weights, chats to tune it on, and a training that is cut off."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from puna.data.generators import generate_chats
from puna.model import Llama, LlamaConfig
from puna.tokenizer import Tokenizer
from puna.training import loop as training_loop


def small_model(seed: int, *, text: str = "", **changes: Any) -> tuple[Llama, Tokenizer]:
    """Fresh weights drawn from ``seed``; the tokenizer is learned from ``text`` or from chats."""
    texts = [m.content for chat in generate_chats(0, 50, ()) for m in chat.messages]
    tokenizer = Tokenizer.train([text] * 50 if text else texts, 300, n_special=16)
    fields = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 64}
    fields |= {"vocab_size": tokenizer.vocab_size, "context": 256}
    model = Llama(LlamaConfig.parse(fields | changes, where="test"))
    model.init_weights(seed=seed)
    return model, tokenizer


def chats_file(folder: Path) -> Path:
    """Sixty short chats of one pattern."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Is {n} big?"},
                {"role": "assistant", "content": f"No: {n} is small."},
            ]
        }
        for n in range(60)
    ]
    path = folder / "my.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@contextmanager
def killed_in_step(number: int) -> Iterator[None]:
    """Training within ends in this step, counted from 0, as by a kill; else the test fails."""

    class Killed(Exception):
        pass

    step = training_loop._step

    def dies(*arguments: Any) -> Any:
        if arguments[5] == number:
            raise Killed
        return step(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training_loop, "_step", dies)
        with pytest.raises(Killed):
            yield
