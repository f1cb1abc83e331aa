"""Quantisation-aware training: the model learns with the rounding that an edge device will apply.

Weights of the blocks in 4 bits, symmetric, with a scale for each group of 32; activations in 8
bits, with scale and offset of each token ("8da4w", ExecuTorch's XNNPACK format). Rounding passes
its gradient on unchanged (straight-through estimator, Bengio et al. 2013; Jacob et al. 2017).
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor

from puna.core.errors import UsageError
from puna.model import Llama
from puna.model.linear import Linear
from puna.model.lora import replace_module

GROUP = 32


class QATLinear(Linear):
    """A product of rounded activations with rounded weights; the exact weight is trained."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(round_activations(x), round_weight(self.weight).to(x.dtype))


@contextmanager
def quantisation_aware(model: Llama) -> Iterator[None]:
    """Within, the products of ``model``'s blocks round as the edge does; its names stay.

    Afterwards they are plain again, with the trained weights on the grid of 4 bits.

    Raises `UsageError` for widths that groups do not divide.
    """
    layers = model.model.layers
    plain = {n: m for n, m in layers.named_modules(prefix="model.layers") if isinstance(m, Linear)}
    for name, layer in plain.items():
        if layer.weight.shape[1] % GROUP:
            raise UsageError(
                f"{name} has {layer.weight.shape[1]} inputs, no multiple of {GROUP}: widen it"
            )
    for name, layer in plain.items():
        with torch.device("meta"):
            rounding = QATLinear(layer.weight.shape[1], layer.weight.shape[0])
        rounding.weight = layer.weight
        replace_module(model, name, rounding)
    try:
        yield
    finally:
        for name, layer in plain.items():
            layer.weight.data.copy_(round_weight(layer.weight.detach()))
            replace_module(model, name, layer)


def round_weight(weight_oi: Tensor) -> Tensor:
    """The weight on a grid of -7 to 7 steps in each group of 32 inputs, straight-through.

    A weight that is on its grid already stays as it is.
    """
    groups = weight_oi.detach().float().unflatten(1, (-1, GROUP))
    scale = (groups.abs().amax(-1, keepdim=True) / 7).clamp(min=1e-12)
    rounded = ((groups / scale).round() * scale).flatten(1)
    return _straight_through(weight_oi, rounded)


def round_activations(x: Tensor) -> Tensor:
    """Each token's numbers on a grid of 256 steps that spans them and zero, straight-through."""
    wide = x.detach().float()
    low = wide.amin(-1, keepdim=True).clamp(max=0)
    high = wide.amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low) / 255).clamp(min=1e-12)
    zero = (-low / scale).round()
    steps = ((wide / scale).round() + zero).clamp(0, 255)
    return _straight_through(x, (steps - zero) * scale)


def _straight_through(exact: Tensor, rounded: Tensor) -> Tensor:
    return exact + (rounded.to(exact.dtype) - exact).detach()
