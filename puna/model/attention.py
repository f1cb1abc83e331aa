"""Grouped-query attention: each key/value head serves several query heads."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from puna.model.cache import KVCache
from puna.model.config import LlamaConfig
from puna.model.linear import Linear
from puna.model.rope import apply_rope


def document_mask(documents_bt: Tensor) -> Tensor:
    """Causal mask that also stops at document borders: (batch, 1, time, time), True = may attend.

    Padding (document -1) attends within itself, so no row of the mask is empty.
    """
    length = documents_bt.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=documents_bt.device).tril()
    same = documents_bt[:, :, None] == documents_bt[:, None, :]
    return (same & causal)[:, None]


def cache_mask(positions_bt: Tensor, span: int) -> Tensor:
    """Mask of queries over cached positions 0..span-1: (batch, 1, time, span)."""
    cached = torch.arange(span, device=positions_bt.device)
    return (cached <= positions_bt[:, :, None])[:, None]


def grouped_attention(
    queries_bhtd: Tensor, keys_bgtd: Tensor, values_bgtd: Tensor, mask: Tensor | None
) -> Tensor:
    """Attention of h query heads over g key/value heads: (batch, h, time, head_dim).

    ``mask`` None means causal. SDPA groups the heads itself where that is faster; CUDA's kernels
    that take a mask do not group, so there the key/value heads are repeated.
    """
    group = queries_bhtd.shape[1] // keys_bgtd.shape[1]
    if group > 1 and mask is not None and queries_bhtd.is_cuda:
        keys_bgtd = keys_bgtd.repeat_interleave(group, dim=1)
        values_bgtd = values_bgtd.repeat_interleave(group, dim=1)
        group = 1
    return F.scaled_dot_product_attention(
        queries_bhtd,
        keys_bgtd,
        values_bgtd,
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=group > 1,
    )


class Attention(nn.Module):
    """Self-attention of one block, without biases."""

    def __init__(self, config: LlamaConfig, layer: int) -> None:
        super().__init__()
        self.layer = layer
        self.head_dim = config.head_dim
        queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.q_proj = Linear(config.dim, queries)
        self.k_proj = Linear(config.dim, keys)
        self.v_proj = Linear(config.dim, keys)
        self.o_proj = Linear(queries, config.dim)

    def _heads(self, x_btd: Tensor) -> Tensor:
        batch, time, _ = x_btd.shape
        return x_btd.view(batch, time, -1, self.head_dim).transpose(1, 2)

    def forward(
        self,
        x_btd: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Tensor | None,
        positions_bt: Tensor,
        cache: KVCache | None,
    ) -> Tensor:
        queries = apply_rope(self._heads(self.q_proj(x_btd)), cos, sin)
        keys = apply_rope(self._heads(self.k_proj(x_btd)), cos, sin)
        values = self._heads(self.v_proj(x_btd))
        if cache is not None:
            assert mask is not None
            span = mask.shape[-1]
            keys, values = cache.update(self.layer, keys, values, positions_bt, span)
            keys, values = keys.to(queries.dtype), values.to(queries.dtype)
        mixed = grouped_attention(queries, keys, values, mask)
        return self.o_proj(mixed.transpose(1, 2).flatten(2))
