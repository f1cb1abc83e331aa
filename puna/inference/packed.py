"""Dense weights a second time, in the layout of the kernel that multiplies them fastest on a CPU.

Where bf16 has no hardware, FBGEMM's products of fp16 weights with fp32 rows read half of what fp32
weights hold, and are twice as fast for the few rows of a decoding step (docs/log.md).
"""

from collections.abc import Callable

import torch
from torch import Tensor

_LARGEST_HALF = torch.finfo(torch.float16).max
_HALF_OPS = ("linear_prepack_fp16", "linear_dynamic_fp16")
Product = Callable[[Tensor], Tensor]
"""Rows (..., i) -> (..., o)."""


class _OneDnn:
    """oneDNN's, in the data type of the rows."""

    def __init__(self, weight_oi: Tensor) -> None:
        self._weight = torch.ops.mkldnn._reorder_linear_weight(weight_oi)

    def __call__(self, x: Tensor) -> Tensor:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._weight, None, "none", [], "")
        return product


class _Halves:
    """FBGEMM's fp16 weights with fp32 rows and sums.

    What bf16 weights lose is what lies below 6e-5, where fp16 has steps of 6e-8.
    """

    # more outputs at once no longer fit the processor's caches
    _OUTPUTS = 8192

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
    """Whether FBGEMM's kernels run here, and this torch still has the ways to them."""
    return "fbgemm" in torch.backends.quantized.supported_engines and all(
        hasattr(torch.ops.quantized, name) for name in _HALF_OPS
    )


def packed_itemsize(stored: torch.dtype, rows: torch.dtype) -> int:
    """Bytes of a weight in what `pack` makes of weights ``stored`` so."""
    return 2 if _halved(stored, rows) else rows.itemsize


def _halved(stored: torch.dtype, rows: torch.dtype) -> bool:
    return stored == torch.bfloat16 and rows == torch.float32 and fast_halves()


def pack(weight_oi: Tensor, rows: torch.dtype) -> Product:
    """The product of ``weight_oi`` with rows of this data type, by the fastest kernel here."""
    if _halved(weight_oi.dtype, rows) and weight_oi.abs().amax().item() <= _LARGEST_HALF:
        return _Halves(weight_oi)
    return _OneDnn(weight_oi.to(rows))
