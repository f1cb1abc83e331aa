"""Context parallelism: processes share a row's positions and gather its keys and values.

A row is cut into 2 * cp pieces, and process n has the pieces n and 2 * cp - 1 - n: one that sees
little and one that sees much, so all have equal work under a causal mask. Each attends to the keys
that its pieces may see, under the documents of the whole row ("The Llama 3 Herd of Models", section
3.3.2). With grouped queries keys and values are small beside the queries, so gathering them costs
little, and any mask works.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from puna.core.errors import UsageError
from puna.data import Batch
from puna.model import Llama, grouped_attention
from puna.model.attention import Mask, packed_mask

# torch 2.13 renames them
_ALL_GATHER = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor
_REDUCE_SCATTER = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor


def _all_gathered(part: Tensor, group: dist.ProcessGroup) -> Tensor:
    """The parts of all processes: (processes, ...)."""
    whole = part.new_empty(group.size() * part.shape[0], *part.shape[1:])
    _ALL_GATHER(whole, part.contiguous(), group=group)
    return whole.unflatten(0, (group.size(), -1))


class _Gathered(torch.autograd.Function):
    """The parts of all processes, (cp, ...); backward, each gets the sum of its part's gradient."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _all_gathered(part, group)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        part = torch.empty_like(grad[0])
        _REDUCE_SCATTER(part, grad.flatten(0, 1).contiguous(), group=ctx.group)
        return part, None


@dataclass(frozen=True)
class Pieces:
    """How rows are cut among the processes of ``group``, of which this is number ``place``."""

    group: dist.ProcessGroup
    place: int
    of: int

    def cut(self, rows_bt: Tensor) -> Tensor:
        """This process's positions of whole rows: (batch, time / cp)."""
        early, late = self.place, 2 * self.of - 1 - self.place
        pieces = rows_bt.chunk(2 * self.of, dim=1)
        return torch.cat([pieces[early], pieces[late]], dim=1)

    def joined(self, parts_pbt: Tensor) -> Tensor:
        """Whole rows, in order, from the parts of all processes: (batch, cp * time, ...)."""
        early, late = parts_pbt.chunk(2, dim=2)
        pieces = [*early.unbind(), *reversed(late.unbind())]
        return torch.cat(pieces, dim=1)

    def batch(self, batch: Any) -> Batch:
        """This process's positions of a batch of packed rows."""
        if not isinstance(batch, Batch):
            raise UsageError(
                "layout.cp shares out the positions of packed rows, and this method's batches are "
                "of another kind: set layout.cp to 1"
            )
        names = ("ids", "labels", "documents", "positions")
        return replace(batch, **{name: self.cut(getattr(batch, name)) for name in names})

    def masks(self, documents_bt: Tensor, prefixes_bt: Tensor | None) -> list[tuple[int, Mask]]:
        """For each of this process's two pieces, the keys it may see and which of them."""
        whole = self._whole(documents_bt)
        prefixes = None if prefixes_bt is None else self._whole(prefixes_bt)
        size = whole.shape[1] // (2 * self.of)
        made = []
        for number in (self.place, 2 * self.of - 1 - self.place):
            first, end = number * size, (number + 1) * size
            read = None if prefixes is None else prefixes[:, :end]
            made.append((end, packed_mask(whole[:, :end], read, first)))
        return made

    def attend(
        self, queries_bhtd: Tensor, keys_bgtd: Tensor, values_bgtd: Tensor, masks: Any
    ) -> Tensor:
        """As `grouped_attention`, over the keys and values of whole rows."""
        both = torch.stack([keys_bgtd, values_bgtd]).transpose(2, 3).flatten(0, 1)
        whole = self.joined(_Gathered.apply(both, self.group))
        keys, values = whole.unflatten(0, (2, -1)).transpose(2, 3).unbind()
        pieces = queries_bhtd.chunk(2, dim=2)
        mixed = [
            grouped_attention(piece, keys[:, :, :end], values[:, :, :end], mask)
            for piece, (end, mask) in zip(pieces, masks, strict=True)
        ]
        return torch.cat(mixed, dim=2)

    def _whole(self, part_bt: Tensor) -> Tensor:
        return self.joined(_all_gathered(part_bt, self.group))


def spread_positions(model: Llama, pieces: Pieces) -> None:
    """Let the attention of ``model`` reach the positions that other processes have, in place."""
    model.make_mask = pieces.masks
    blocks: Any = model.model.layers.children()
    for block in blocks:
        block.self_attn.attend = pieces.attend
