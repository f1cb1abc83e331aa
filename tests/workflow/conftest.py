from pathlib import Path
from typing import Any

import pytest
import yaml

LOOP = {
    "steps": 40,
    "batch_rows": 4,
    "learning_rate": 3e-3,
    "warmup_steps": 4,
    "checkpoint_every": 3,
    "log_every": 1,
}


def tiny(folder: Path) -> dict[str, Any]:
    """A whole life in seconds: every stage, hardly any steps."""
    text = folder / "text"
    text.mkdir(exist_ok=True)
    for number in range(30):
        words = " ".join(f"word{(number * k) % 17} of note {k}" for k in range(40))
        (text / f"{number}.txt").write_text(f"Chapter {number}.\n\n{words}\n")
    return {
        "name": "tiny",
        "seed": 3,
        "stages": {
            "data": {
                "corpus": {
                    "sources": {"files": {"path": str(text)}},
                    "validation_fraction": 0.1,
                },
                "generated": {"exercises": 60, "geography": 0, "stories": 40},
            },
            "tokenizer": {"vocab_size": 400, "digit_group": 1, "n_special": 16},
            "pretrain": {
                "model": {
                    "dim": 32,
                    "n_layers": 2,
                    "n_heads": 4,
                    "n_kv_heads": 2,
                    "ffn_dim": 64,
                    "context": 256,
                },
                "row_length": 128,
                "loop": LOOP,
            },
            "sft": {"generated_chats": 150, "row_length": 192, "loop": LOOP},
            "dpo": {"generated_pairs": 60, "row_length": 192, "loop": LOOP},
        },
    }


@pytest.fixture
def recipe_file(tmp_path: Path) -> Path:
    path = tmp_path / "tiny.yaml"
    path.write_text(yaml.safe_dump(tiny(tmp_path)))
    return path
