"""Decoding on a GPU as CUDA graphs: one launch for all the kernels of a pass.

A pass with a token of each row has hundreds of small kernels, and starting them one by one takes
longer than running them. A graph holds them for some number of rows and of pages a row, both
rounded up, so few graphs serve every batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from puna.inference.cache import PagedStore
from puna.inference.pages import SCRATCH
from puna.model import Llama

WARM_UPS = 3  # passes before a capture, for what libraries and compilers prepare at first use


@dataclass
class _Captured:
    graph: torch.cuda.CUDAGraph
    inputs: Tensor
    """(rows, 2 + pages): each row's token, its position and its pages."""
    hidden: Tensor
    """(rows, 1, dim), filled by a replay."""


class GraphedDecoding:
    """Final hidden states of one new token of each row, from graphs captured at first use.

    Args:
        model: whose weights, as they are in memory, the graphs read.
        store: the cache they read and write.
    """

    def __init__(self, model: Llama, store: PagedStore) -> None:
        self._model, self._store = model, store
        self._captured: dict[tuple[int, int], _Captured] = {}
        self._pool: Any = None  # of memory that all graphs share

    def __call__(
        self, tokens: Sequence[int], pages: Sequence[Sequence[int]], starts: Sequence[int]
    ) -> Tensor:
        """As `Runner.hidden` for one new token of each row; overwritten by a later call."""
        n_rows = len(tokens)
        span = _eighths(max(starts) // self._store.page_size + 1)
        entries = [
            [token, start, *row[:span], *[SCRATCH] * (span - len(row))]
            for token, start, row in zip(tokens, starts, pages, strict=True)
        ]
        key = (_power(n_rows), span)
        entries += [[0, 0, *[SCRATCH] * span]] * (
            key[0] - n_rows
        )  # rows of padding write into scratch
        if key not in self._captured:
            self._captured[key] = self._capture(*key)
        captured = self._captured[key]
        captured.inputs.copy_(torch.tensor(entries))
        captured.graph.replay()
        return captured.hidden[:n_rows]

    def _capture(self, n_rows: int, span: int) -> _Captured:
        inputs = torch.zeros(n_rows, 2 + span, dtype=torch.int64, device=self._store.device)
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(WARM_UPS):
                self._pass(inputs)
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            hidden = self._pass(inputs)
        self._pool = self._pool or graph.pool()
        return _Captured(graph, inputs, hidden)

    def _pass(self, inputs: Tensor) -> Tensor:
        ids, positions, table = inputs[:, :1], inputs[:, 1:2], inputs[:, 2:]
        cache = self._store.next_of(positions, table)
        return self._model.hidden(ids, positions_bt=positions, cache=cache)


def _power(number: int) -> int:
    """The next power of two."""
    return 1 << (number - 1).bit_length()


def _eighths(number: int) -> int:
    """Rounded up by a quarter at most: to a multiple of an eighth of the next power of two."""
    step = max(1, _power(number) // 8)
    return -(-number // step) * step
