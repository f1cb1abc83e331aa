"""Attention over a paged cache, by the way that is fast for the shape at hand (docs/log.md)."""

import torch
from torch import Tensor

from puna.model import grouped_attention

QUERY_BLOCK = 128  # queries scored at a time on CPU: later keys are left out, buffers stay in cache


def fusion_barrier(x: Tensor) -> Tensor:
    """``x`` itself; a compiler keeps it in memory instead of recomputing it in every use."""
    if not torch.compiler.is_compiling():
        return x
    from torch._inductor import inductor_prims  # a second to import, for those who compile

    barred: Tensor = inductor_prims.force_stride_order(x, x.stride())
    return barred


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
    table_bn: Tensor,
    lengths_b: Tensor,
) -> Tensor:
    """Attention of one new token of each row, read straight from the pages: (b, h, 1, d).

    To be compiled: each sum then becomes a loop over pages, and nothing is gathered. The query
    heads of a group are summed apart, in one loop that reads their keys or values once.

    Args:
        keys: (pages, g, d, page_size), any data type.
        values: (pages, g, parts, page_size, d / parts).
        key_scale, value_scale: (pages, g, page_size), what the integers of an int8 cache are
            multiplied with.
        table_bn: the pages of each row.
        lengths_b: how many of their positions the row may see.
    """
    batch, heads, _, dim = queries_bh1d.shape
    groups, _, page_size = values.shape[1:4]

    def of_rows(store: Tensor) -> Tensor:  # (pages, ...) -> (b, n, ...)
        return store.index_select(0, table_bn.flatten()).unflatten(0, table_bn.shape).float()

    wide = queries_bh1d.view(batch, 1, groups, -1, dim, 1).float()
    queries = fusion_barrier(wide * dim**-0.5).unbind(3)
    pages = of_rows(keys)
    scores = torch.stack([(query * pages).sum(-2) for query in queries], 3)  # (b, n, g, h/g, p)
    if key_scale is not None:
        scores = scores * of_rows(key_scale)[:, :, :, None]
    places = torch.arange(table_bn.shape[1] * page_size, device=keys.device).view(-1, page_size)
    unseen = (places >= lengths_b[:, None, None])[:, :, None, None]
    shown = scores.masked_fill(unseen, -torch.inf).permute(0, 2, 3, 1, 4)
    weights = shown.flatten(3).softmax(-1).view(shown.shape)  # (b, g, h/g, n, p)
    if value_scale is not None:
        weights = weights * of_rows(value_scale).transpose(1, 2)[:, :, None]
    by_head = fusion_barrier(weights)[..., None, :, None].unbind(2)
    pages = of_rows(values).transpose(1, 2)  # (b, g, n, parts, p, d / parts)
    mixed = torch.stack([(weight * pages).sum((2, 4)) for weight in by_head], 2)
    return mixed.to(queries_bh1d.dtype).view(batch, heads, 1, dim)
