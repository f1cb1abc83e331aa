"""Dense weights a second time, in the layout of the kernel that multiplies them fastest on a CPU.

Where bf16 has no hardware that is FBGEMM's, of weights in fp16 with rows in fp32: it reads half of
what fp32 weights hold, and is twice as fast for a few rows (docs/log.md).
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import compress

import torch
from torch import Tensor

from puna.inference.fbgemm import fbgemm_packs, has_fbgemm

_LARGEST_HALF = torch.finfo(torch.float16).max
_BLOCK = 512  # FBGEMM fills up the inputs to a multiple
Product = Callable[[Tensor], Tensor]
"""Rows (n, ..., i) -> (n, ..., o)."""


class _OneDnn:
    """oneDNN's, in the data type of the rows."""

    def __init__(self, weight_oi: Tensor) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight_oi)

    def __call__(self, x: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, None, "none", [], "")
        return product


class _Halves:
    """FBGEMM's, of fp16 weights with fp32 rows and sums.

    Of bf16 weights only those below 2**-17 are rounded, to multiples of 2**-24.
    """

    _OUTPUTS = 8192  # with more at once many rows are slower (docs/log.md)

    def __init__(self, weight_oi: Tensor) -> None:
        self._parts = [
            torch.ops.quantized.linear_prepack_fp16(part.float().contiguous(), None)
            for part in weight_oi.split(self._OUTPUTS)
        ]
        self._multiply = torch.ops.quantized.linear_dynamic_fp16.default

    def __call__(self, x: Tensor) -> Tensor:
        products = [self._multiply(x, part) for part in self._parts]
        return products[0] if len(products) == 1 else torch.cat(products, -1)


def fast_halves() -> bool:
    """Whether FBGEMM multiplies fp16 weights here."""
    return has_fbgemm("linear_prepack_fp16", "linear_dynamic_fp16")


def packed_itemsize(stored: torch.dtype, rows: torch.dtype, inputs: int) -> float:
    """Bytes that `pack` keeps for each weight of data type ``stored``, where a row has ``inputs``.

    Args:
        rows: data type of the rows.
    """
    if stored == torch.bfloat16 and rows == torch.float32 and fast_halves():
        return min(2 * -(-inputs // _BLOCK) * _BLOCK / inputs, rows.itemsize)
    return rows.itemsize


def _fits_halves(weight_oi: Tensor, rows: torch.dtype) -> bool:
    if packed_itemsize(weight_oi.dtype, rows, weight_oi.shape[1]) == rows.itemsize:
        return False
    low, high = torch.aminmax(weight_oi)  # NaN where there is one
    return low.item() >= -_LARGEST_HALF and high.item() <= _LARGEST_HALF


def _halves(weights_oi: Sequence[Tensor]) -> list[Product]:
    if not weights_oi:
        return []
    with fbgemm_packs(), ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(_Halves, weights_oi))  # each takes one thread, oneDNN's take all


def pack(weights_oi: Sequence[Tensor], rows: torch.dtype) -> list[Product]:
    """The products of weights with rows of this data type, by the fastest kernels here."""
    halved = [_fits_halves(weight, rows) for weight in weights_oi]
    halves = iter(_halves(list(compress(weights_oi, halved))))
    return [
        next(halves) if half else _OneDnn(weight.to(rows))
        for weight, half in zip(weights_oi, halved, strict=True)
    ]
