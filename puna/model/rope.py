"""Rotary position embedding in Hugging Face's half-split layout, with Llama 3.1's scaling."""

import math

import torch
from torch import Tensor

from puna.model.config import LlamaConfig


def rope_frequencies(config: LlamaConfig) -> Tensor:
    """Angular frequency of each rotated pair: (head_dim / 2,), fp32, radians per position.

    With `RopeScaling` the rule of Llama 3.1: pairs whose wavelength exceeds the original context
    are slowed by ``factor``, short ones are kept, those between interpolate.
    """
    exponents = torch.arange(0, config.head_dim, 2, dtype=torch.int64).float() / config.head_dim
    frequencies = 1.0 / (config.rope_theta**exponents)
    scaling = config.rope_scaling
    if scaling is None:
        return frequencies
    wavelengths = 2 * math.pi / frequencies
    ratio = scaling.original_context / wavelengths
    smooth = (ratio - scaling.low_freq_factor) / (
        scaling.high_freq_factor - scaling.low_freq_factor
    )
    smooth = smooth.clamp(0, 1)
    return (1 - smooth) * frequencies / scaling.factor + smooth * frequencies


def rope_tables(frequencies: Tensor, positions_bt: Tensor) -> tuple[Tensor, Tensor]:
    """Cosine and sine at each position: two of (batch, 1, time, head_dim / 2), fp32."""
    angles = positions_bt[:, None, :, None].float() * frequencies
    return angles.cos(), angles.sin()


def apply_rope(x_bhtd: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate each pair (i, i + head_dim / 2) of ``x_bhtd`` by its position's angle."""
    first, second = x_bhtd.chunk(2, dim=-1)
    cos, sin = cos.to(x_bhtd.dtype), sin.to(x_bhtd.dtype)
    return torch.cat((first * cos - second * sin, second * cos + first * sin), dim=-1)
