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
    seen_bs: Tensor,
    lengths_b: Tensor,
) -> Tensor:
    """Attention of one new token of each row, read straight from the pages: (b, h, 1, d).

    To be compiled: each sum then becomes a loop over the cache, and nothing is gathered.

    Args:
        keys, values: (slots, g, d), any data type.
        key_scale, value_scale: (slots, g), what the integers of an int8 cache are multiplied with.
        seen_bs: the slots of each row's positions.
        lengths_b: how many of these the row may see.
    """
    batch, heads, _, dim = queries_bh1d.shape
    groups = keys.shape[1]
    wide = (batch, groups, heads // groups)

    def positions(store: Tensor) -> Tensor:  # (slots, g, ...) -> (b, g, 1, s, ...)
        rows = store.index_select(0, seen_bs.flatten()).view(*seen_bs.shape, *store.shape[1:])
        return rows.transpose(1, 2)[:, :, None].float()

    queries = fusion_barrier(queries_bh1d).view(*wide, 1, dim).float()
    scores = (queries * positions(keys)).sum(-1) * dim**-0.5
    if key_scale is not None:
        scores = scores * positions(key_scale)
    unseen = torch.arange(seen_bs.shape[1]) >= lengths_b[:, None]
    weights = scores.masked_fill(unseen[:, None, None], -torch.inf).softmax(-1)
    if value_scale is not None:
        weights = weights * positions(value_scale)
    mixed = (fusion_barrier(weights)[..., None] * positions(values)).sum(-2)
    return mixed.to(queries_bh1d.dtype).view(batch, heads, 1, dim)
