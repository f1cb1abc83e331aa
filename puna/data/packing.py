"""Packing: items of any length into rows of one length, without mixing what they mean.

Best-fit decreasing places each item in the fullest row that still has room for it, which wastes
little (Ding et al. 2024, arXiv 2404.10830: "Fewer Truncations Improve Language Modeling").
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from puna.core.errors import UsageError
from puna.data.tokens import Ints, TokenFile
from puna.model import IGNORED

PADDING = -1  # the document of positions that hold none


@dataclass(frozen=True)
class Packing:
    """Which pieces of which items make each row. Pieces are sorted by row, then by column.

    Attributes:
        row_length: tokens in a row.
        offsets: (n_rows + 1,) where each row's pieces begin.
        item: (n_pieces,) the item a piece is from.
        start: (n_pieces,) the token of the item it starts at.
        length: (n_pieces,) its tokens, at most ``row_length``.
        column: (n_pieces,) where in the row it lies.
    """

    row_length: int
    offsets: Ints
    item: Ints
    start: Ints
    length: Ints
    column: Ints

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row(self, index: int) -> list[tuple[int, int, int]]:
        """(item, start, length) of each piece of a row."""
        span = slice(self.offsets[index], self.offsets[index + 1])
        pieces = (self.item[span], self.start[span], self.length[span])
        return list(zip(*(column.tolist() for column in pieces), strict=True))

    @property
    def padding(self) -> float:
        """Share of the positions that hold no token."""
        return 1 - float(self.length.sum()) / (len(self) * self.row_length)


def pack(lengths: npt.ArrayLike, row_length: int) -> Packing:
    """Best-fit decreasing packing, in O(n log n); the same lengths always give the same rows.

    Args:
        lengths: tokens of each item; one longer than a row is cut into pieces of ``row_length``
            and a rest.
        row_length: tokens of a row.
    """
    if row_length < 1:
        raise UsageError(f"a row of {row_length} tokens holds nothing: ask for at least 1")
    item, start, length = _cut(np.asarray(lengths, dtype=np.int64), row_length)
    longest_first = np.argsort(-length, kind="stable")
    row = np.empty(len(length), dtype=np.int64)
    row[longest_first] = _best_fit(length[longest_first].tolist(), row_length)
    order = np.lexsort((np.argsort(longest_first), row))
    offsets = np.searchsorted(row[order], np.arange(row.max(initial=-1) + 2))
    packed = length[order]
    column = np.cumsum(packed) - packed
    column -= np.repeat(column[offsets[:-1]], np.diff(offsets))
    return Packing(row_length, offsets, item[order], start[order], packed, column)


def _cut(lengths: Ints, row_length: int) -> tuple[Ints, Ints, Ints]:
    """(item, start, length) of each piece."""
    pieces = -(-lengths // row_length)
    item = np.repeat(np.arange(len(lengths)), pieces)
    start = spans(np.zeros_like(pieces), pieces) * row_length
    return item, start, np.minimum(lengths[item] - start, row_length)


def _best_fit(lengths: list[int], row_length: int) -> list[int]:
    """Row of each piece, longest first.

    Bit ``r`` of ``with_room`` says that some row has exactly ``r`` tokens of room: the lowest bit
    from a piece's length upwards is its best fit.
    """
    rows_by_room: list[list[int]] = [[] for _ in range(row_length + 1)]
    with_room = n_rows = 0
    placed: list[int] = []
    for length in lengths:
        fitting = with_room >> length
        if fitting:
            room = length + (fitting & -fitting).bit_length() - 1
            row = rows_by_room[room].pop()
            if not rows_by_room[room]:
                with_room ^= 1 << room
        else:
            room, row = row_length, n_rows
            n_rows += 1
        placed.append(row)
        if room > length:
            rows_by_room[room - length].append(row)
            with_room |= 1 << (room - length)
    return placed


def spans(starts: Ints, counts: Ints) -> Ints:
    """``starts[i], starts[i] + 1, ...`` for ``counts[i]`` numbers, end to end."""
    before = np.cumsum(counts) - counts
    return np.repeat(starts - before, counts) + np.arange(counts.sum())


@dataclass(frozen=True)
class Batch:
    """Rows of tokens (int64 tensors of shape (B, T)).

    Attributes:
        ids: the tokens; 0 in padding.
        labels: the next token of the same item where it is trained on, else -100.
        documents: 0, 1, ... by piece within a row; -1 in padding. Attention stays within one.
        positions: 0, 1, ... from the start of each piece; 0 in padding.
    """

    ids: torch.Tensor
    labels: torch.Tensor
    documents: torch.Tensor
    positions: torch.Tensor

    @property
    def n_tokens(self) -> int:
        """Positions that are not padding."""
        return int((self.documents != PADDING).sum())

    def to(self, device: torch.device) -> "Batch":
        """The same rows on another device."""
        tensors = (self.ids, self.labels, self.documents, self.positions)
        return Batch(*(tensor.to(device, non_blocking=True) for tensor in tensors))

    def with_rows(self, other: "Batch") -> "Batch":
        """These rows and those of another batch below them."""
        names = ("ids", "labels", "documents", "positions")
        return Batch(*(torch.cat([getattr(self, n), getattr(other, n)]) for n in names))


class PackedRows:
    """A token file packed into rows; safe to read from several threads.

    Args:
        tokens: the items.
        row_length: tokens of a row.
        items: numbers of those to pack, any of them several times; all by default.
    """

    def __init__(self, tokens: TokenFile, row_length: int, items: Ints | None = None) -> None:
        self.tokens = tokens
        chosen = np.arange(len(tokens)) if items is None else items
        self.packing = pack(tokens.lengths[chosen], row_length)
        packing = self.packing
        self._first = tokens.offsets[chosen[packing.item]] + packing.start
        self._item_end = tokens.offsets[chosen[packing.item] + 1]

    def __len__(self) -> int:
        return len(self.packing)

    def rows(self, indices: npt.ArrayLike) -> Batch:
        """The rows of these numbers, in their order."""
        packing = self.packing
        wanted = np.asarray(indices, dtype=np.int64)
        n_pieces = packing.offsets[wanted + 1] - packing.offsets[wanted]
        pieces = spans(packing.offsets[wanted], n_pieces)
        counts = packing.length[pieces]
        corner = np.repeat(np.arange(len(wanted)) * packing.row_length, n_pieces)
        target = spans(corner + packing.column[pieces], counts)
        source = spans(self._first[pieces], counts)
        rank = spans(np.zeros_like(n_pieces), n_pieces)
        shape = (len(wanted), packing.row_length)
        return Batch(
            ids=_scatter(shape, 0, target, self.tokens.tokens[source]),
            labels=_scatter(shape, IGNORED, target, self._labels(source, pieces, counts)),
            documents=_scatter(shape, PADDING, target, np.repeat(rank, counts)),
            positions=_scatter(shape, 0, target, spans(np.zeros_like(counts), counts)),
        )

    def _labels(self, source: Ints, pieces: Ints, counts: Ints) -> Ints:
        """For each token at ``source``, the one after it in its item if that is trained on."""
        following = source + 1
        counted = following < np.repeat(self._item_end[pieces], counts)
        following = np.minimum(following, len(self.tokens.tokens) - 1)
        if self.tokens.trained is not None:
            counted &= self.tokens.trained[following]
        return np.where(counted, self.tokens.tokens[following].astype(np.int64), IGNORED)


def _scatter(
    shape: tuple[int, int], empty: int, target: Ints, values: npt.NDArray[np.integer]
) -> torch.Tensor:
    flat = np.full(shape[0] * shape[1], empty, dtype=np.int64)
    flat[target] = values
    return torch.from_numpy(flat.reshape(shape))
