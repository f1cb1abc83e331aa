from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from puna.data import PackedRows, write_tokens
from puna.model import Llama, LlamaConfig
from puna.training import LoopConfig

VOCAB = 31


@pytest.fixture
def rows(tmp_path: Path) -> PackedRows:
    """Sixty documents of a language in which each token is the sum of the two before it."""
    rng = np.random.default_rng(0)
    documents = []
    for _ in range(60):
        ids = [int(x) for x in rng.integers(0, VOCAB, 2)]
        while len(ids) < int(rng.integers(6, 30)):
            ids.append((ids[-1] + ids[-2]) % VOCAB)
        documents.append((ids, None))
    return PackedRows(write_tokens(tmp_path / "tokens", documents, VOCAB), 32)


@pytest.fixture
def new_model() -> Callable[[], Llama]:
    def build() -> Llama:
        fields = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 48}
        config = LlamaConfig.parse(fields | {"vocab_size": VOCAB, "context": 32}, where="test")
        model = Llama(config)
        model.init_weights(seed=1)
        return model

    return build


@pytest.fixture
def loop() -> LoopConfig:
    return LoopConfig(
        steps=8,
        batch_rows=6,
        learning_rate=1e-2,
        warmup_steps=2,
        checkpoint_every=3,
        log_every=2,
        precision="fp32",
    )
