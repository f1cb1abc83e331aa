"""A model of a few thousand weights, and chats to tune it on."""

import json
from pathlib import Path
from typing import Any

from puna.data.generators import generate_chats
from puna.model import Llama, LlamaConfig
from puna.tokenizer import Tokenizer


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
