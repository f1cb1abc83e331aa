"""A tokenizer and tiny models that evaluation is tried on."""

import pytest

from puna.model import Llama, LlamaConfig
from puna.tokenizer import Tokenizer

TEXTS = ["The capital of France is Paris.", "17 + 25 = 42.", "Grüße aus Köln: 3 € für 2."] * 20


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 300, digit_group=1, n_special=16)


def _model(tokenizer: Tokenizer) -> Llama:
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        dim=16,
        n_layers=2,
        n_heads=2,
        n_kv_heads=1,
        ffn_dim=32,
        context=48,
        tie_embeddings=True,
    )
    model = Llama(config)
    model.init_weights(0)
    return model


@pytest.fixture
def uniform(tokenizer: Tokenizer) -> Llama:
    """Its embedding is zero, so all logits are: every token is as likely."""
    model = _model(tokenizer)
    model.model.embed_tokens.weight.data.zero_()
    return model


@pytest.fixture
def model(tokenizer: Tokenizer) -> Llama:
    """Random weights, large enough that probabilities differ."""
    model = _model(tokenizer)
    for parameter in model.parameters():
        if parameter.ndim == 2:
            parameter.data.mul_(20)
    return model
