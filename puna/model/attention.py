"""Grouped-query attention: each key/value head serves several query heads."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Union

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from puna.model.cache import LayerCache
from puna.model.config import LlamaConfig
from puna.model.flex import block_mask, flex_attention
from puna.model.linear import Linear
from puna.model.rope import apply_rope

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask

PLAIN_POSITIONS = 512
Mask = Union[Tensor, "BlockMask"]
"""(batch, 1, time, span), True = may attend, or what is added to the scores; or FlexAttention's."""


def document_mask(documents_bt: Tensor, prefixes_bt: Tensor | None = None) -> Tensor:
    """Causal mask that also stops at document borders: (batch, 1, time, time), True = may attend.

    Padding (document -1) attends within itself, so no row of the mask is empty. ``prefixes_bt``
    names one document more that each token reads, an earlier one that its own goes on from.
    """
    length = documents_bt.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool, device=documents_bt.device).tril()
    seen = documents_bt[:, :, None] == documents_bt[:, None, :]
    if prefixes_bt is not None:
        seen |= prefixes_bt[:, :, None] == documents_bt[:, None, :]
    return (seen & causal)[:, None]


def packed_mask(documents_bt: Tensor, prefixes_bt: Tensor | None = None, first: int = 0) -> Mask:
    """`document_mask` as attention is fast with it here, of the queries from ``first`` on."""
    if documents_bt.is_cuda:
        return block_mask(documents_bt, prefixes_bt, first)
    return document_mask(documents_bt, prefixes_bt)[:, :, first:]


def plain_is_faster(x_btd: Tensor) -> bool:
    """Whether training here beats SDPA with two products and a softmax.

    Measured on CPU in bf16, forward and backward: 5 times as fast at 128 positions, 1.7 times at
    512, slower from 1,024 (docs/log.md). SDPA's backward does not use the bf16 hardware there.
    """
    short = x_btd.shape[1] <= PLAIN_POSITIONS
    bf16_on_cpu = x_btd.dtype == torch.bfloat16 and x_btd.device.type == "cpu"
    return short and bf16_on_cpu and torch.is_grad_enabled()


def additive(mask_btt: Tensor, dtype: torch.dtype) -> Tensor:
    """The mask as what is added to the scores: 0 where a position may attend, else -inf."""
    bias = torch.zeros(mask_btt.shape, dtype=dtype, device=mask_btt.device)
    return bias.masked_fill_(~mask_btt, float("-inf"))


def _plain_attention(
    queries_bhtd: Tensor, keys_bgsd: Tensor, values_bgsd: Tensor, bias_b1ts: Tensor
) -> Tensor:
    batch, heads, time, dim = queries_bhtd.shape
    groups, span = keys_bgsd.shape[1:3]
    rows = heads // groups * time  # the query heads of a group share its keys: one product
    scaled = (queries_bhtd * dim**-0.5).reshape(batch, groups, rows, dim)
    scores = (scaled @ keys_bgsd.transpose(-1, -2)).view(batch, heads, time, span) + bias_b1ts
    weights = torch.softmax(scores, dim=-1).view(batch, groups, rows, span)
    return (weights @ values_bgsd).view(batch, heads, time, dim)


def _folded_attention(
    queries_bhtd: Tensor, keys_bgsd: Tensor, values_bgsd: Tensor, mask_b1ts: Tensor
) -> Tensor:
    """The heads of a group as so many more positions, for kernels that do not group.

    To repeat keys and values instead costs more than all else when one token is decoded.
    """
    batch, heads, time, dim = queries_bhtd.shape
    groups, span = keys_bgsd.shape[1:3]
    folded = queries_bhtd.reshape(batch, groups, -1, dim)
    mask = mask_b1ts[:, :, None].expand(-1, 1, heads // groups, time, span).flatten(2, 3)
    mixed = F.scaled_dot_product_attention(folded, keys_bgsd, values_bgsd, attn_mask=mask)
    return mixed.view(batch, heads, time, dim)


def grouped_attention(
    queries_bhtd: Tensor, keys_bgtd: Tensor, values_bgtd: Tensor, mask: Mask | None
) -> Tensor:
    """Attention of h query heads over g key/value heads: (batch, h, time, head_dim).

    ``mask`` None means causal; one that is additive takes the plain way. SDPA groups the heads
    itself where that is faster; CUDA's kernels that take a matrix as mask do not.
    """
    if mask is not None and not isinstance(mask, Tensor):
        return flex_attention(queries_bhtd, keys_bgtd, values_bgtd, mask)
    if mask is not None and mask.is_floating_point():
        return _plain_attention(queries_bhtd, keys_bgtd, values_bgtd, mask)
    group = queries_bhtd.shape[1] // keys_bgtd.shape[1]
    if group > 1 and mask is not None and queries_bhtd.is_cuda:
        return _folded_attention(queries_bhtd, keys_bgtd, values_bgtd, mask)
    return F.scaled_dot_product_attention(
        queries_bhtd,
        keys_bgtd,
        values_bgtd,
        attn_mask=mask,
        is_causal=mask is None,
        enable_gqa=group > 1,
    )


class Attention(nn.Module):
    """Self-attention of one block, without biases.

    Attributes:
        attend: attention of queries over keys and values under a mask, as `grouped_attention`;
            replaced where other processes hold some of the positions.
    """

    def __init__(self, config: LlamaConfig) -> None:
        super().__init__()
        self.head_dim = config.head_dim
        queries, keys = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.q_proj = Linear(config.dim, queries)
        self.k_proj = Linear(config.dim, keys)
        self.v_proj = Linear(config.dim, keys)
        self.o_proj = Linear(queries, config.dim)
        self.attend: Callable[[Tensor, Tensor, Tensor, Any], Tensor] = grouped_attention

    def project(self, x_btd: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values: three of (batch, time, heads * head_dim)."""
        return self.q_proj(x_btd), self.k_proj(x_btd), self.v_proj(x_btd)

    def _heads(self, x_btd: Tensor) -> Tensor:
        batch, time, _ = x_btd.shape
        return x_btd.view(batch, time, -1, self.head_dim).transpose(1, 2)

    def forward(
        self,
        x_btd: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Mask | None,
        cache: LayerCache | None,
    ) -> Tensor:
        mixed = self.mix(*self.project(x_btd), cos, sin, mask, cache)
        return self.o_proj(mixed)

    def mix(
        self,
        queries_btd: Tensor,
        keys_btd: Tensor,
        values_btd: Tensor,
        cos: Tensor,
        sin: Tensor,
        mask: Mask | None,
        cache: LayerCache | None,
    ) -> Tensor:
        """What the heads read, side by side: (batch, time, n_heads * head_dim)."""
        queries, keys, values = map(self._heads, (queries_btd, keys_btd, values_btd))
        queries, keys = apply_rope(queries, cos, sin), apply_rope(keys, cos, sin)
        if cache is None:
            mixed = self.attend(queries, keys, values, mask)
        else:
            mixed = cache.attend(queries, keys, values)
        return mixed.transpose(1, 2).flatten(2)
