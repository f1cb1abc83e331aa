"""Products of 8-bit weights with rows rounded to integers, by the kernel this processor has.

VNNI sums products of bytes in 32 bits. AVX2 sums two of them in 16 bits first, which not every two
fit: there both sides are rounded so that none can be too large (docs/log.md).
"""

import warnings
from abc import ABC, abstractmethod
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from puna.core.devices import fast_int8
from puna.inference import vnni
from puna.inference.fbgemm import fbgemm_packs, has_fbgemm


class Rounding(NamedTuple):
    """How rows are rounded before a product."""

    steps: int
    """Of a row's largest magnitude: it becomes this integer."""
    zero: int
    """What stands for 0."""
    dtype: torch.dtype
    """What the integers are handed over in."""

    def apply(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Each row of ``x`` (n, i) as integers, and its scale (n, 1), fp32."""
        wide = x.float()
        scale = wide.abs().amax(-1, keepdim=True).clamp(min=1e-8) / self.steps
        return ((wide / scale).round() + self.zero).to(self.dtype), scale

    def undo(self, rows_ni: Tensor, scale_n1: Tensor) -> Tensor:
        """What the integers stand for, fp32."""
        return (rows_ni.float() - self.zero) * scale_n1


def full_scales(weight_oi: Tensor) -> Tensor:
    """Scales (o,) with which each output's largest weight becomes 127."""
    return weight_oi.float().abs().amax(1).clamp(min=1e-8) / 127


class Kernel(ABC):
    """A product with weights given before, in integers.

    Args:
        weight_oi: int8, rounded with what `scales` gave.
        scale_o: that.
        result: data type of the products.
    """

    rounding = Rounding(127, 0, torch.float32)
    """How the rows must be rounded."""
    keeps_weight = False
    """Whether the weights are in it alone: it reads its own copy whatever the rows are."""

    @abstractmethod
    def __init__(self, weight_oi: Tensor, scale_o: Tensor, result: torch.dtype) -> None: ...

    @staticmethod
    def scales(weight_oi: Tensor) -> Tensor:
        """What stands for 1 in each output's integers (o,), of weights to be rounded."""
        return full_scales(weight_oi)

    @abstractmethod
    def __call__(self, rows_ni: Tensor) -> Tensor:
        """Products (n, o) of rounded rows; their scales are still missing."""


class _Panels(Kernel):
    """That of torch's compiler, with VNNI, see `vnni`."""

    rounding = Rounding(127, 128, torch.uint8)

    def __init__(self, weight_oi: Tensor, scale_o: Tensor, result: torch.dtype) -> None:
        multiply = vnni.find(result, compiles=False)
        assert multiply is not None, "`integer_kernel` found it"
        self._multiply, self._result = multiply, result
        self._panels, self._shape = vnni.panels(weight_oi), weight_oi.shape
        self._zeros = weight_oi.sum(1, dtype=torch.int32) * self.rounding.zero
        self._scale = scale_o

    def __call__(self, rows_ni: Tensor) -> Tensor:
        n, (outputs, inputs) = len(rows_ni), self._shape
        products = torch.empty(n, outputs, dtype=self._result)
        self._multiply(
            rows_ni.contiguous(), self._panels, self._zeros, self._scale, products,
            n, outputs, inputs, torch.get_num_threads(),
        )  # fmt: skip
        return products


class _Vnni(Kernel):
    """oneDNN's, with VNNI."""

    rounding = Rounding(127, 128, torch.uint8)

    def __init__(self, weight_oi: Tensor, scale_o: Tensor, result: torch.dtype) -> None:
        self._packed = torch.ops.onednn.qlinear_prepack(weight_oi, None)
        self._scale, self._result = scale_o, result
        self._zeros = torch.zeros(len(weight_oi), dtype=torch.int64)

    def __call__(self, rows_ni: Tensor) -> Tensor:
        product: Tensor = torch.ops.onednn.qlinear_pointwise(
            rows_ni, 1.0, self.rounding.zero, self._packed, self._scale, self._zeros,
            None, 1.0, 0, self._result, "none", [], "",
        )  # fmt: skip
        return product


class _Pairs(Kernel):
    """FBGEMM's, with AVX2: exact, since no sum of two products leaves 16 bits.

    It makes bytes of the rows by itself, up to 180. Weights may have any size then where not both
    of two neighbours are large: both sides lose half a bit, and less than a side that lost one.
    """

    _STEPS = 90
    _PAIR = 2**15 // (2 * _STEPS)  # of two neighbouring weights' magnitudes, the most
    rounding = Rounding(_STEPS, 0, torch.float32)
    keeps_weight = True

    @staticmethod
    def scales(weight_oi: Tensor) -> Tensor:
        even = F.pad(weight_oi.float().abs(), (0, weight_oi.shape[1] % 2))
        pairs = even.unflatten(1, (-1, 2)).sum(-1).amax(1).clamp(min=1e-8)
        both_round_up = 1
        return torch.maximum(full_scales(weight_oi), pairs / (_Pairs._PAIR - both_round_up))

    def __init__(self, weight_oi: Tensor, scale_o: Tensor, result: torch.dtype) -> None:
        with warnings.catch_warnings(), fbgemm_packs():
            # quantised tensors are to leave torch; this kernel is found only through one
            warnings.simplefilter("ignore", UserWarning)
            zeros = torch.zeros(len(weight_oi), dtype=torch.int64)
            weight = torch._make_per_channel_quantized_tensor(weight_oi, scale_o.double(), zeros, 0)
            self._packed = torch.ops.quantized.linear_prepack(weight, None)
        self._multiply = torch.ops.quantized.linear_with_input_q_dq_qweight_dq_output_fp32.default
        self._result = result

    def __call__(self, rows_ni: Tensor) -> Tensor:
        product: Tensor = self._multiply(rows_ni, 1.0, self._STEPS, self._packed)
        return product.to(self._result)


class _Widened(Kernel):
    """The integers in fp32, wherever no kernel above runs."""

    def __init__(self, weight_oi: Tensor, scale_o: Tensor, result: torch.dtype) -> None:
        self._weight, self._scale, self._result = weight_oi, scale_o, result

    def __call__(self, rows_ni: Tensor) -> Tensor:
        product = F.linear(rows_ni, self._weight.float()) * self._scale
        return product.to(self._result)


def fast_pairs() -> bool:
    """Whether FBGEMM multiplies bytes here."""
    needed = ("linear_prepack", "linear_with_input_q_dq_qweight_dq_output_fp32")
    return has_fbgemm(*needed) and hasattr(torch, "_make_per_channel_quantized_tensor")


def fast_panels(result: torch.dtype, *, compiles: bool) -> bool:
    """Whether the kernel of torch's compiler is here, see `vnni.find`."""
    return vnni.find(result, compiles=compiles) is not None


def integer_kernel(
    shape: torch.Size, result: torch.dtype, *, compiles: bool = False
) -> type[Kernel]:
    """The fastest kernel here.

    Args:
        shape: of the weights (outputs, inputs).
        result: data type of the products.
        compiles: whether it may take seconds to compile one.
    """
    if not fast_int8():
        return _Pairs if fast_pairs() else _Widened
    if vnni.fits(*shape) and fast_panels(result, compiles=compiles):
        return _Panels
    return _Vnni


def scaled_rows(product_no: Tensor, scale_n1: Tensor) -> Tensor:
    """What a `Kernel` gave, with the scales of its rows."""
    return (product_no.float() * scale_n1).to(product_no.dtype)
