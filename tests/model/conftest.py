from collections.abc import Callable

import pytest
import torch

from puna.model import Llama, LlamaConfig


@pytest.fixture
def tiny() -> Callable[[], Llama]:
    """Builds the same small model each time, its weights large enough that all parts matter."""

    def build() -> Llama:
        shape = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 128}
        model = Llama(LlamaConfig.parse(shape | {"vocab_size": 97, "context": 64}, where="test"))
        model.init_weights(seed=5)
        generator = torch.Generator().manual_seed(6)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        return model

    return build


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 97, (2, 24), generator=torch.Generator().manual_seed(3))
