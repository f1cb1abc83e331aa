"""The paged key/value cache: storage for all sequences, and one call's view of it."""

import math
import mmap
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from puna.inference.attention import attend_many, attend_one
from puna.inference.pages import SCRATCH
from puna.model import LlamaConfig, additive

INT8_STEPS = 127
AttendOne = Callable[..., Tensor]


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
    view: "PagedView"

    def attend(self, queries_bhtd: Tensor, keys_bgtd: Tensor, values_bgtd: Tensor) -> Tensor:
        """As `puna.model.LayerCache.attend`."""
        view = self.view
        self._write(self.keys, self.key_scale, keys_bgtd)
        self._write(self.values, self.value_scale, values_bgtd)
        if view.attend_one is not None and view.seen is not None:
            inside = torch.compiler.is_compiling()  # already: no compiled function within another
            one = attend_one if inside else view.attend_one
            return one(
                queries_bhtd,
                self.keys,
                self.values,
                self.key_scale,
                self.value_scale,
                view.seen,
                view.lengths,
            )
        if view.table is not None:
            keys_bgtd = self._read(self.keys, self.key_scale, keys_bgtd.dtype)
            values_bgtd = self._read(self.values, self.value_scale, values_bgtd.dtype)
        return attend_many(queries_bhtd, keys_bgtd, values_bgtd, view.mask, view.before)

    def _write(self, store: Tensor, scales: Tensor | None, new_bgtd: Tensor) -> None:
        new = new_bgtd.transpose(1, 2).flatten(0, 1)
        if scales is not None:
            scale = new.abs().amax(-1).float().clamp(min=1e-8) / INT8_STEPS
            scales[self.view.slots] = scale
            new = (new / scale[..., None]).round()
        store[self.view.slots] = new.to(store.dtype)

    def _read(self, store: Tensor, scales: Tensor | None, dtype: torch.dtype) -> Tensor:
        entries = self._gather(store).to(dtype)
        if scales is not None:
            entries = entries * self._gather(scales)[..., None].to(dtype)
        return entries.transpose(1, 2)

    def _gather(self, slots: Tensor) -> Tensor:
        """(slots, ...) -> (batch, span, ...), page by page."""
        table = self.view.table
        assert table is not None
        pages = slots.view(-1, self.view.page_size, *slots.shape[1:])
        chosen = pages.index_select(0, table.flatten())
        return chosen.view(table.shape[0], -1, *slots.shape[1:])


@dataclass
class PagedView:
    """Where the rows of one call read and write, the same in every layer."""

    slots: Tensor
    """(batch * time,): where the new entries go."""
    table: Tensor | None
    """(batch, pages): pages of each row; None when the call itself holds all there is to see."""
    seen: Tensor | None
    """(batch, span): the slots of each row's positions, where `attend_one` is used."""
    lengths: Tensor
    """(batch,): positions each row sees with its first new token."""
    mask: Tensor | None
    """(batch or 1, 1, time, span), True or 0 = may attend; None is causal over the call."""
    before: int
    """Positions before the first new token of any row, at most."""
    page_size: int
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
        heads = (n_pages * page_size, config.n_kv_heads)

        def entries() -> Tensor:
            store = _zeros((*heads, config.head_dim), dtype, device)
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
        one = self._attend_one if width == 1 else None
        seen = None
        if one:
            slots_seen = (table[:, :, None] * size + torch.arange(size)).flatten(1)
            # Not contiguous: else the compiler puts positions, not the head's numbers, in vectors.
            # 7, since it takes a stride equal to another size for that size.
            seen = slots_seen[..., None].repeat(1, 1, 7)[..., 0]
        mask = None if one else self._mask(steps[None] if fresh else positions, fresh, span, dtype)
        view = PagedView(
            slots=slots.to(self.device),
            table=None if fresh else table.to(self.device),
            seen=seen,
            lengths=positions[:, 0].to(self.device) + 1,
            mask=mask,
            before=max(starts),
            page_size=size,
            attend_one=one,
        )
        layers = [
            PagedLayer(keys, values, *scales, view)
            for (keys, values), scales in zip(self._layers, self._scales, strict=True)
        ]
        return positions.to(self.device), PagedBatch(layers)

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


def _zeros(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Zeros; on CPU memory that is never used is never touched.

    Not left uninitialised: an unseen position has weight 0, and 0 times NaN is NaN.
    """
    if device.type != "cpu":
        return torch.zeros(*shape, dtype=dtype, device=device)
    memory = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)  # the system gives zeros on demand
    return torch.frombuffer(memory, dtype=dtype).view(*shape)
