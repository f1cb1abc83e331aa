"""Adapters merged into the weights they change, and what rounding loses on the way."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from puna.core.errors import UsageError
from puna.model.linear import Linear
from puna.model.llama import Llama
from puna.model.lora import LoRALinear, dense_weight, lora_layers, replace_module
from puna.model.nf4 import NF4Linear

_ROWS = 1024  # of a weight that are in fp64 at once


@dataclass(frozen=True)
class WeightError:
    """How far a merged weight, as it is stored, is from the exact sum."""

    product: str
    largest: float
    """Largest error of a weight."""
    relative: float
    """Root mean square of the errors over that of the weights."""
    of_change: float
    """The same over that of the change: the share of what was learned that rounding drowns."""


@dataclass(frozen=True)
class MergeReport:
    """What a merge lost."""

    weights: tuple[WeightError, ...]
    """Of each product that had an adapter."""
    logits: float | None
    """Largest difference of the probe's logits; None without a probe."""
    logits_relative: float | None
    """Root mean square of those differences over that of the logits."""

    @property
    def worst(self) -> WeightError:
        """The product that lost most, relative to its weights."""
        return max(self.weights, key=lambda error: error.relative)

    def __str__(self) -> str:
        worst = self.worst
        text = (
            f"merged {len(self.weights)} products; worst {worst.product}: error at most "
            f"{worst.largest:.1e}, {worst.relative:.1e} of the weights, {worst.of_change:.1e} of "
            "the change"
        )
        if self.logits is None:
            return text
        return f"{text}; logits differ by at most {self.logits:.1e} ({self.logits_relative:.1e})"


@torch.no_grad()
def merge(
    model: Llama, dtype: torch.dtype = torch.float32, probe_bt: Tensor | None = None
) -> MergeReport:
    """Turn ``model`` back into plain weights of one data type, its adapters added, in place.

    A base in 4 bits is dequantised first: that, and not the weights it was made from, is what the
    adapter was trained on. All parameters are trainable afterwards.

    Args:
        dtype: of the weights afterwards.
        probe_bt: token ids whose logits are compared before and after, in fp32 arithmetic, so
            that what differs is the weights.

    Raises `UsageError` for a model without adapters.
    """
    if not any(True for _ in lora_layers(model)):
        raise UsageError("the model has no adapter to merge: train or load one first")
    before = None if probe_bt is None else _logits(model, probe_bt)
    errors = []
    for name, module in list(model.named_modules()):
        if isinstance(module, LoRALinear):
            weight, error = _merged(name, module, dtype)
            errors.append(error)
            replace_module(model, name, _linear(weight))
    for name, module in list(model.named_modules()):
        if isinstance(module, NF4Linear):
            replace_module(model, name, _linear(module.dequantize(dtype)))
    for parameter in model.parameters():
        parameter.data = parameter.data.to(dtype)
    model.requires_grad_()
    if before is None or probe_bt is None:
        return MergeReport(tuple(errors), None, None)
    difference = _logits(model, probe_bt) - before
    relative = float(difference.norm() / before.norm())
    return MergeReport(tuple(errors), float(difference.abs().max()), relative)


@torch.no_grad()
def merged_copy(model: Llama, dtype: torch.dtype = torch.float32) -> Llama:
    """A plain model that computes what ``model`` does now, adapters and all; frozen.

    For the engine, which wants plain weights. What has no adapter is shared, not copied, where it
    has that data type already.
    """
    with torch.device("meta"):
        twin = Llama(model.config)
    state = {}
    for name in twin.state_dict():
        module = model.get_submodule(name.rpartition(".")[0])
        if isinstance(module, LoRALinear):
            state[name], _ = _merged(name, module, dtype)
        elif isinstance(module, NF4Linear):
            state[name] = module.dequantize(dtype)
        else:
            state[name] = model.get_parameter(name).detach().to(dtype)
    twin.load_state_dict(state, assign=True)
    twin.compute_dtype = model.compute_dtype
    return twin.requires_grad_(requires_grad=False)


def _merged(name: str, layer: LoRALinear, dtype: torch.dtype) -> tuple[Tensor, WeightError]:
    """The merged weight of a product, summed in fp64, and what storing it as ``dtype`` loses."""
    change = (layer.lora_A, layer.lora_B, layer.magnitude)
    merged, largest, squares = merged_rows(dense_weight(layer.base), *change, layer.scale, dtype)
    return merged, weight_error(name, largest, squares)


@torch.no_grad()
def merged_rows(
    base_oi: Tensor,
    down_ri: Tensor,
    up_or: Tensor,
    magnitude_o: Tensor | None,
    scale: float,
    dtype: torch.dtype,
) -> tuple[Tensor, float, list[float]]:
    """Rows of a weight with their change, summed in fp64 and stored as ``dtype``.

    Returns them, the largest error of storing, and the sums of squares of errors, weights, changes.
    """
    merged = torch.empty_like(base_oi, dtype=dtype)
    down = down_ri.double()
    largest = 0.0
    squares = torch.zeros(3, dtype=torch.float64)
    for start in range(0, len(base_oi), _ROWS):
        part = slice(start, start + _ROWS)
        weight = base_oi[part].double()
        exact = weight + scale * up_or[part].double() @ down
        if magnitude_o is not None:
            exact *= (magnitude_o[part].double() / exact.norm(dim=1))[:, None]
        merged[part] = exact.to(dtype)
        error = merged[part].double() - exact
        largest = max(largest, float(error.abs().max()))
        sums = [float(t.square().sum()) for t in (error, exact, exact - weight)]
        squares += torch.tensor(sums, dtype=torch.float64)
    return merged, largest, squares.tolist()


def weight_error(product: str, largest: float, squares: Sequence[float]) -> WeightError:
    """From the largest error and the sums of squares of errors, weights and changes."""
    errors, weights, changes = (math.sqrt(square) for square in squares)
    relative = errors / weights if weights else 0.0
    return WeightError(product, largest, relative, errors / changes if changes else 0.0)


def _logits(model: Llama, ids_bt: Tensor) -> Tensor:
    used, model.compute_dtype = model.compute_dtype, torch.float32
    try:
        return model(ids_bt)
    finally:
        model.compute_dtype = used


def _linear(weight_oi: Tensor) -> Linear:
    with torch.device("meta"):
        layer = Linear(weight_oi.shape[1], weight_oi.shape[0])
    layer.weight = nn.Parameter(weight_oi)
    return layer
