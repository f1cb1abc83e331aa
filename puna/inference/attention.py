"""Attention over a paged cache, by the way that is fast for the shape at hand (docs/log.md)."""

import torch
from torch import Tensor
from torch._inductor import inductor_prims

from puna.model import grouped_attention

QUERY_BLOCK = 128  # queries scored at a time on CPU: later keys are left out, buffers stay in cache


def fusion_barrier(x: Tensor) -> Tensor:
    """``x`` itself; a compiler keeps it in memory instead of recomputing it in every use."""
    return inductor_prims.force_stride_order(x, x.stride()) if torch.compiler.is_compiling() else x


def attend_many(
    queries_bhtd: Tensor, keys_bgsd: Tensor, values_bgsd: Tensor, mask: Tensor | None, before: int
) -> Tensor:
    """Attention of several new tokens of each row: (b, h, t, d).

    Args:
        mask: (b or 1, 1, t, s), True or 0 = may attend; None is causal.
        before: positions that precede the first new token of any row at most.
    """
    if mask is None or not mask.is_floating_point():
        return grouped_attention(queries_bhtd, keys_bgsd, values_bgsd, mask)
    parts = []
    for start in range(0, queries_bhtd.shape[2], QUERY_BLOCK):
        block, seen = slice(start, start + QUERY_BLOCK), slice(before + start + QUERY_BLOCK)
        parts.append(
            grouped_attention(
                queries_bhtd[:, :, block],
                keys_bgsd[:, :, seen],
                values_bgsd[:, :, seen],
                mask[:, :, block, seen],
            )
        )
    return torch.cat(parts, 2) if len(parts) > 1 else parts[0]


def attend_one(
    queries_bh1d: Tensor,
    keys: Tensor,
    values: Tensor,
    key_scale: Tensor | None,
    value_scale: Tensor | None,
    table_bp: Tensor,
    lengths_b: Tensor,
    page_size: int,
) -> Tensor:
    """Attention of one new token of each row, read straight from the pages: (b, h, 1, d).

    To be compiled: each sum then becomes a loop over the cache, and nothing is gathered.

    Args:
        keys, values: (slots, g, d), any data type.
        key_scale, value_scale: (slots, g), what the integers of an int8 cache are multiplied with.
        table_bp: each row's pages.
        lengths_b: positions each row may see.
    """
    batch, heads, _, dim = queries_bh1d.shape
    groups = keys.shape[1]
    slots = (table_bp[:, :, None] * page_size + torch.arange(page_size)).flatten(1)
    scaled = queries_bh1d.float() * dim**-0.5
    queries = fusion_barrier(scaled).view(batch, groups, heads // groups, 1, dim)
    scores = (queries * keys[slots].transpose(1, 2)[:, :, None].float()).sum(-1)
    if key_scale is not None:
        scores = scores * key_scale[slots].transpose(1, 2)[:, :, None]
    unseen = torch.arange(slots.shape[1]) >= lengths_b[:, None]
    weights = scores.masked_fill(unseen[:, None, None], -torch.inf).softmax(-1)
    if value_scale is not None:
        weights = weights * value_scale[slots].transpose(1, 2)[:, :, None]
    weights = fusion_barrier(weights)[..., None]
    mixed = (weights * values[slots].transpose(1, 2)[:, :, None].float()).sum(-2)
    return mixed.to(queries_bh1d.dtype).view(batch, heads, 1, dim)
