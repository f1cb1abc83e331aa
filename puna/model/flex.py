"""Attention of packed documents on a GPU, by FlexAttention: blocks nobody attends to are skipped.

It is compiled for the mask at hand. Nothing of it is imported before the first call, since that
takes a second which a CPU never gets back.
"""

from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from torch.nn.attention.flex_attention import BlockMask


def block_mask(
    documents_bt: Tensor, prefixes_bt: Tensor | None = None, first: int = 0
) -> "BlockMask":
    """`puna.model.attention.document_mask` in blocks of 128 x 128 positions.

    Of the queries from position ``first`` on only. Each document lies in one piece, so a query
    knows the first key it sees, and nothing is read for each pair of positions.
    """
    starts_bt = first_positions(documents_bt)

    def attends(b: Tensor, _h: Tensor, query: Tensor, key: Tensor) -> Tensor:
        query = query + first
        seen = key >= starts_bt[b, query]
        if prefixes_bt is not None:
            seen = seen | (prefixes_bt[b, query] == documents_bt[b, key])
        return seen & (query >= key)

    batch, time = documents_bt.shape
    mask: BlockMask = _compiled("create_block_mask")(
        attends, batch, None, time - first, time, device=documents_bt.device
    )
    return mask


def first_positions(documents_bt: Tensor) -> Tensor:
    """Where the document of each position begins in its row: (batch, time)."""
    places_t = torch.arange(documents_bt.shape[1], device=documents_bt.device)
    begins_bt = torch.ones_like(documents_bt, dtype=torch.bool)
    begins_bt[:, 1:] = documents_bt[:, 1:] != documents_bt[:, :-1]
    return torch.where(begins_bt, places_t, 0).cummax(dim=1).values.int()


def flex_attention(
    queries_bhtd: Tensor, keys_bgtd: Tensor, values_bgtd: Tensor, mask: "BlockMask"
) -> Tensor:
    """As `puna.model.attention.grouped_attention`."""
    from torch.nn.attention.flex_attention import flex_attention as plain

    run = plain if torch.compiler.is_compiling() else _compiled("flex_attention")
    mixed: Tensor = run(
        queries_bhtd,
        keys_bgtd,
        values_bgtd,
        block_mask=mask,
        enable_gqa=queries_bhtd.shape[1] > keys_bgtd.shape[1],
    )
    return mixed


@cache
def _compiled(name: str) -> Any:
    from torch.nn.attention import flex_attention as flex

    return torch.compile(getattr(flex, name))
