"""The paged key/value cache: storage for all sequences, and one call's view of it."""

import math
import mmap
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from puna.inference.pages import SCRATCH
from puna.model import LlamaConfig

INT8_STEPS = 127


@dataclass
class PagedLayer:
    """One layer's storage as the rows of one call see it."""

    keys: Tensor
    """(slots, kv_heads, head_dim), as all four a tensor of its own: compiled code writes into
    whole tensors in place, but copies one it knows only as part of another."""
    values: Tensor
    key_scale: Tensor | None
    """(slots, kv_heads) with an int8 store: what its integers are multiplied with."""
    value_scale: Tensor | None
    slots: Tensor
    """(batch * time,): where the new entries go."""
    table: Tensor | None
    """(batch, pages): pages of each row; None when the call itself holds all there is to see."""
    page_size: int

    def update(self, keys_bgtd: Tensor, values_bgtd: Tensor) -> tuple[Tensor, Tensor]:
        """Store the new entries; return all that the rows may attend to: (b, g, span, d)."""
        self._write(self.keys, self.key_scale, keys_bgtd)
        self._write(self.values, self.value_scale, values_bgtd)
        if self.table is None:
            return keys_bgtd, values_bgtd
        dtype = keys_bgtd.dtype
        keys = self._read(self.keys, self.key_scale, dtype)
        return keys, self._read(self.values, self.value_scale, dtype)

    def _write(self, store: Tensor, scales: Tensor | None, new_bgtd: Tensor) -> None:
        new = new_bgtd.transpose(1, 2).flatten(0, 1)
        if scales is not None:
            scale = new.abs().amax(-1).float().clamp(min=1e-8) / INT8_STEPS
            scales[self.slots] = scale
            new = (new / scale[..., None]).round()
        store[self.slots] = new.to(store.dtype)

    def _read(self, store: Tensor, scales: Tensor | None, dtype: torch.dtype) -> Tensor:
        entries = self._gather(store).to(dtype)
        if scales is not None:
            entries = entries * self._gather(scales)[..., None].to(dtype)
        return entries.transpose(1, 2)

    def _gather(self, slots: Tensor) -> Tensor:
        """(slots, ...) -> (batch, span, ...), page by page."""
        assert self.table is not None
        pages = slots.view(-1, self.page_size, *slots.shape[1:])
        chosen = pages.index_select(0, self.table.flatten())
        return chosen.view(self.table.shape[0], -1, *slots.shape[1:])


@dataclass
class PagedBatch:
    """The cache as the rows of one call see it; what `puna.model.Cache` asks for."""

    layers: Sequence[PagedLayer]
    mask: Tensor | None
    """(batch, 1, time, span), True = may attend; None means causal over the call's own tokens."""


class PagedStore:
    """Keys and values of all pages.

    Args:
        config: the model's shape.
        n_pages, page_size: how much to hold; see `PagePool`.
        dtype, device: of the stored tensors; int8 keeps a scale per entry and head.
    """

    def __init__(
        self,
        config: LlamaConfig,
        n_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device | str,
    ) -> None:
        self.page_size = page_size
        self.device = device
        heads = (n_pages * page_size, config.n_kv_heads)

        def entries() -> Tensor:
            store = _zeros((*heads, config.head_dim), dtype, torch.device(device))
            torch._dynamo.mark_static(store)  # else compiled code takes its sizes for variable
            return store

        self._layers = [(entries(), entries()) for _ in range(config.n_layers)]
        scaled = dtype == torch.int8
        self._scales: list[tuple[Tensor | None, Tensor | None]] = [
            (torch.ones(heads, device=device), torch.ones(heads, device=device))
            if scaled
            else (None, None)
            for _ in range(config.n_layers)
        ]

    @staticmethod
    def bytes_per_token(config: LlamaConfig, dtype: torch.dtype) -> int:
        """Memory that one position of one sequence takes."""
        entry = config.head_dim * dtype.itemsize + (4 if dtype == torch.int8 else 0)
        return 2 * config.n_layers * config.n_kv_heads * entry

    def batch(
        self, pages: Sequence[Sequence[int]], starts: Sequence[int], counts: Sequence[int]
    ) -> tuple[Tensor, PagedBatch]:
        """Positions (batch, time) and the view for rows that go on.

        Args:
            pages: each row's pages, room for its new tokens included.
            starts: position of each row's first new token.
            counts: new tokens of each row; shorter rows are padded at their end.
        """
        width, size = max(counts), self.page_size
        steps = torch.arange(width)
        positions = torch.tensor(starts)[:, None] + steps
        fresh = width > 1 and not any(starts)
        longest = max(start + n for start, n in zip(starts, counts, strict=True))
        span = max(2, -(-longest // size))  # compiled code treats a size of 1 as another shape
        padded = [[*row[:span], *[SCRATCH] * (span - len(row))] for row in pages]
        table = torch.tensor(padded)
        real = steps < torch.tensor(counts)[:, None]
        owner = table.gather(1, (positions // size).clamp(max=span - 1))
        slots = torch.where(real, owner * size + positions % size, SCRATCH).flatten()
        mask = None
        if not fresh:
            mask = (torch.arange(span * size) <= positions[:, :, None])[:, None].to(self.device)
        slots, table = slots.to(self.device), table.to(self.device)
        seen = None if fresh else table
        layers = [
            PagedLayer(keys, values, key_scale, value_scale, slots, seen, size)
            for (keys, values), (key_scale, value_scale) in zip(
                self._layers, self._scales, strict=True
            )
        ]
        return positions.to(self.device), PagedBatch(layers, mask)


def _zeros(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on CPU from the system, which gives memory only to pages that are written.

    Not `torch.empty`: what lies behind the mask is multiplied by 0, and 0 times garbage can be NaN.
    """
    if device.type != "cpu":
        return torch.zeros(shape, dtype=dtype, device=device)
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize, flags=flags)
    return torch.frombuffer(memory, dtype=dtype).view(shape)
