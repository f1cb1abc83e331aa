"""The paged key/value cache: storage for all sequences, and one call's view of it."""

import math
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from puna.core.huge_pages import LINE
from puna.inference.attention import attend_many, attend_one
from puna.inference.pages import SCRATCH
from puna.model import LlamaConfig, additive

INT8_STEPS = 127
AttendOne = Callable[..., Tensor]


@dataclass
class PagedLayer:
    """One layer's storage as the rows of one call see it."""

    keys: Tensor
    """(pages, kv_heads, head_dim, page_size): what `attend_one` reads with one load are the same
    number of several positions. As all four a tensor of its own: compiled code writes into whole
    tensors in place, but copies one it knows only as part of another."""
    values: Tensor
    """(pages, kv_heads, parts, page_size, head_dim / parts): on CPU a part is what is fetched at
    once, so that `attend_one`, which sums one part over all positions, reads on and on."""
    key_scale: Tensor | None
    """(pages, kv_heads, page_size) with an int8 store: what its integers are multiplied with."""
    value_scale: Tensor | None
    view: "PagedView"

    def attend(self, queries_bhtd: Tensor, keys_bgtd: Tensor, values_bgtd: Tensor) -> Tensor:
        """As `puna.model.LayerCache.attend`."""
        view = self.view
        keys, values = self._entries(keys_bgtd), self._entries(values_bgtd)
        if self.key_scale is not None and self.value_scale is not None:
            keys, self.key_scale[view.pages, :, view.offsets] = _in_8_bits(keys)
            values, self.value_scale[view.pages, :, view.offsets] = _in_8_bits(values)
        self.keys[view.pages, :, :, view.offsets] = keys.to(self.keys.dtype)
        parted = values.unflatten(-1, (self.values.shape[2], -1))
        self.values[view.pages, :, :, view.offsets] = parted.to(self.values.dtype)
        if view.attend_one is not None and view.table is not None:
            inside = torch.compiler.is_compiling()  # already: no compiled function within another
            one = attend_one if inside else view.attend_one
            return one(
                queries_bhtd,
                self.keys,
                self.values,
                self.key_scale,
                self.value_scale,
                view.table,
                view.lengths,
            )
        if view.table is not None:
            dtype = keys_bgtd.dtype
            keys_bgtd = self._seen_keys(dtype)
            values_bgtd = self._seen_values(dtype)
        return attend_many(queries_bhtd, keys_bgtd, values_bgtd, view.mask, view.before)

    @staticmethod
    def _entries(new_bgtd: Tensor) -> Tensor:
        """New keys or values as (batch * time, g, d)."""
        return new_bgtd.transpose(1, 2).flatten(0, 1)

    def _seen_keys(self, dtype: torch.dtype) -> Tensor:
        """Keys of each row's pages, (b, g, s, d)."""
        keys = self._pages(self.keys).to(dtype)  # (b, n, g, d, p)
        if self.key_scale is not None:
            keys = keys * self._pages(self.key_scale)[:, :, :, None].to(dtype)
        return keys.movedim(1, 3).flatten(3, 4).mT

    def _seen_values(self, dtype: torch.dtype) -> Tensor:
        """Values of each row's pages, (b, g, s, d)."""
        values = self._pages(self.values).to(dtype)  # (b, n, g, parts, p, d / parts)
        if self.value_scale is not None:
            values = values * self._pages(self.value_scale)[:, :, :, None, :, None].to(dtype)
        return values.permute(0, 2, 1, 4, 3, 5).flatten(4).flatten(2, 3)

    def _pages(self, store: Tensor) -> Tensor:
        table = self.view.table
        assert table is not None
        return store.index_select(0, table.flatten()).unflatten(0, table.shape)


@dataclass
class PagedView:
    """Where the rows of one call read and write, the same in every layer."""

    pages: Tensor
    """(batch * time,): in which page each new entry goes."""
    offsets: Tensor
    """(batch * time,): and where in it."""
    table: Tensor | None
    """(batch, pages): pages of each row; None when the call itself holds all there is to see."""
    lengths: Tensor
    """(batch,): positions each row sees with its first new token."""
    mask: Tensor | None
    """(batch or 1, 1, time, span), True or 0 = may attend; None is causal over the call."""
    before: int
    """Positions before the first new token of any row, at most."""
    attend_one: AttendOne | None
    """`attend_one`, compiled, when each row has one new token; None takes the general way."""


@dataclass
class PagedBatch:
    """The cache as the rows of one call see it; what `puna.model.Cache` asks for."""

    layers: Sequence[PagedLayer]


class PagedStore:
    """Keys and values of all pages.

    Args:
        config: the model's shape.
        n_pages, page_size: how much to hold; see `PagePool`.
        dtype, device: of the stored tensors; int8 keeps a scale per entry and head.
        attend_one: see `PagedView`.
    """

    def __init__(
        self,
        config: LlamaConfig,
        n_pages: int,
        page_size: int,
        dtype: torch.dtype,
        device: torch.device,
        attend_one: AttendOne | None = None,
    ) -> None:
        self.page_size = page_size
        self.device = device
        self._attend_one = attend_one
        pages, head = (n_pages, config.n_kv_heads), config.head_dim

        def entries(*page: int) -> Tensor:
            return _zeros((*pages, *page), dtype, device)

        def scales() -> Tensor | None:
            scaled = dtype == torch.int8
            return torch.ones(*pages, page_size, device=device) if scaled else None

        line = LINE // dtype.itemsize if device.type == "cpu" else head
        parts = head // line if head % line == 0 else 1
        self._layers = [
            (
                entries(head, page_size),
                entries(parts, page_size, head // parts),
                scales(),
                scales(),
            )
            for _ in range(config.n_layers)
        ]

    @staticmethod
    def bytes_per_token(config: LlamaConfig, dtype: torch.dtype) -> int:
        """Memory that one position of one sequence takes."""
        entry = config.head_dim * dtype.itemsize + (4 if dtype == torch.int8 else 0)
        return 2 * config.n_layers * config.n_kv_heads * entry

    def batch(
        self,
        pages: Sequence[Sequence[int]],
        starts: Sequence[int],
        counts: Sequence[int],
        dtype: torch.dtype,
    ) -> tuple[Tensor, PagedBatch]:
        """Positions (batch, time) and the view for rows that go on.

        Args:
            pages: each row's pages, room for its new tokens included.
            starts: position of each row's first new token.
            counts: new tokens of each row; shorter rows are padded at their end.
            dtype: of the activations.
        """
        width, size = max(counts), self.page_size
        if width == 1 and min(counts) == 1 and self._attend_one is not None:
            return self._next_tokens(pages, starts, self._attend_one)
        steps = torch.arange(width)
        positions = torch.tensor(starts)[:, None] + steps
        fresh = width > 1 and not any(starts)
        longest = max(start + n for start, n in zip(starts, counts, strict=True))
        span = -(-longest // size)
        table = torch.tensor(_padded(pages, span))
        real = steps < torch.tensor(counts)[:, None]
        owner = table.gather(1, (positions // size).clamp(max=span - 1))
        mask = self._mask(steps[None] if fresh else positions, fresh, span, dtype)
        view = PagedView(
            pages=torch.where(real, owner, SCRATCH).flatten().to(self.device),
            offsets=(positions % size).flatten().to(self.device),
            table=None if fresh else table.to(self.device),
            lengths=positions[:, 0].to(self.device) + 1,
            mask=mask,
            before=max(starts),
            attend_one=None,
        )
        return positions.to(self.device), self._seen(view)

    def _next_tokens(
        self, pages: Sequence[Sequence[int]], starts: Sequence[int], attend_one: AttendOne
    ) -> tuple[Tensor, PagedBatch]:
        """`batch` for one new token of each row, with few calls of torch: it is every decoding."""
        size = self.page_size
        span = max(2, max(starts) // size + 1)  # compiled code treats a size of 1 as another shape
        positions = torch.tensor(starts, device=self.device)
        view = PagedView(
            pages=torch.tensor(
                [row[start // size] for row, start in zip(pages, starts, strict=True)],
                device=self.device,
            ),
            offsets=positions % size,
            table=torch.tensor(_padded(pages, span), device=self.device),
            lengths=positions + 1,
            mask=None,
            before=max(starts),
            attend_one=attend_one,
        )
        return positions[:, None], self._seen(view)

    def next_of(self, positions_b1: Tensor, table_bn: Tensor) -> PagedBatch:
        """The view for one new token of each row, from tensors alone: nothing comes from the host.

        Args:
            positions_b1: of the new tokens.
            table_bn: the pages of each row; positions behind its new one are not read.
        """
        positions, size = positions_b1[:, 0], self.page_size
        places = torch.arange(table_bn.shape[1] * size, device=self.device)
        view = PagedView(
            pages=table_bn.gather(1, positions_b1 // size)[:, 0],
            offsets=positions % size,
            table=table_bn,
            lengths=positions + 1,
            mask=(places <= positions_b1)[:, None, None],
            before=0,
            attend_one=None,
        )
        return self._seen(view)

    def _seen(self, view: PagedView) -> PagedBatch:
        return PagedBatch([PagedLayer(*stores, view) for stores in self._layers])

    def _mask(self, positions: Tensor, fresh: bool, span: int, dtype: torch.dtype) -> Tensor | None:
        """What new tokens attend to, in the form that attention is fast with.

        On CPU SDPA is slow in bf16 and with single queries: there the mask is additive, which
        takes the plain way.
        """
        plain = self.device.type == "cpu" and (dtype == torch.bfloat16 or positions.shape[1] == 1)
        if fresh and not plain:
            return None
        keys = torch.arange(positions.shape[1] if fresh else span * self.page_size)
        mask = (keys <= positions[:, :, None])[:, None]
        return additive(mask, dtype) if plain else mask.to(self.device)


def _padded(pages: Sequence[Sequence[int]], span: int) -> list[list[int]]:
    """The first ``span`` pages of each row, filled up with `SCRATCH`."""
    return [[*row[:span], *[SCRATCH] * (span - len(row))] for row in pages]


def _in_8_bits(entries: Tensor) -> tuple[Tensor, Tensor]:
    """Entries (n, g, d) as whole numbers, and the scales (n, g) to multiply them with."""
    scale = entries.abs().amax(-1).float().clamp(min=1e-8) / INT8_STEPS
    return (entries / scale[..., None]).round(), scale


def _zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on CPU memory that is never used is never touched.

    Not left uninitialised: an unseen position has weight 0, and 0 times NaN is NaN.
    """
    if device.type != "cpu":
        return torch.zeros(*shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)  # the system gives zeros on demand
    return torch.frombuffer(memory, dtype=dtype).view(*shape)
