"""Keys and values kept between calls, so that a new token costs one position of work."""

import torch
from torch import Tensor

from puna.core.errors import UsageError
from puna.model.config import LlamaConfig


class KVCache:
    """Keys and values of every layer for a batch of sequences of unequal lengths.

    A row's entry at position p is written when a token with position p passes through the model.
    Attention looks only at positions up to its own, so what padding wrote beyond a row's end is
    never seen and is overwritten when the row grows.

    Args:
        config: the model's shape.
        batch: number of sequences.
        capacity: positions to make room for; `UsageError` beyond the model's context.
        dtype, device: of the stored tensors.
    """

    def __init__(
        self,
        config: LlamaConfig,
        batch: int,
        capacity: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if capacity > config.context:
            raise UsageError(
                f"{capacity} tokens asked of a model with a context of {config.context}: "
                "shorten the prompt or ask for fewer new tokens"
            )
        shape = (config.n_layers, 2, batch, config.n_kv_heads, capacity, config.head_dim)
        self.capacity = capacity
        self._store = torch.zeros(shape, dtype=dtype, device=device)

    def update(
        self, layer: int, keys_bhtd: Tensor, values_bhtd: Tensor, positions_bt: Tensor, span: int
    ) -> tuple[Tensor, Tensor]:
        """Write new keys and values at their positions; return those of positions 0..span-1."""
        keys, values = self._store[layer]
        index = positions_bt[:, None, :, None].expand_as(keys_bhtd)
        keys.scatter_(2, index, keys_bhtd.to(keys.dtype))
        values.scatter_(2, index, values_bhtd.to(values.dtype))
        return keys[:, :, :span], values[:, :, :span]
