"""Frozen weights in 4 bits, NormalFloat, as QLoRA keeps its base (Dettmers et al. 2023).

Each block of 64 weights is divided by its largest magnitude and rounded to the nearest of 16
quantiles of a normal distribution. The magnitudes are quantised once more (double quantisation,
section 3): 8 bits each, and a scale for every 256 of them; 4.13 bits a weight in all.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

BLOCK = 64  # weights that share a magnitude
GROUP = 256  # magnitudes that share a scale
_AT_ONCE = BLOCK * 2**14  # weights quantised or restored in one go: bounds what is wide meanwhile
# Appendix E of the paper.
QUANTILES = (
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
)


class NF4Linear(nn.Module):
    """A matrix product without bias whose frozen weight takes 4 bits a number.

    The dense weight exists only while a product is computed, forward and again backward.

    Args:
        weight_oi: (outputs, inputs), any floating type.
    """

    packed: Tensor
    magnitudes: Tensor
    scales: Tensor
    offset: Tensor

    def __init__(self, weight_oi: Tensor) -> None:
        super().__init__()
        self.shape = weight_oi.shape
        packed, block_max = _round(weight_oi)
        self.register_buffer("packed", packed)
        offset = block_max.mean()  # magnitudes are alike: what differs from their mean is small
        groups = _padded(block_max - offset, GROUP).view(-1, GROUP)
        scales = (groups.abs().amax(1) / 127).clamp(min=1e-12)
        codes = (groups / scales[:, None]).round().to(torch.int8).flatten()[: len(block_max)]
        self.register_buffer("magnitudes", codes)
        self.register_buffer("scales", scales)
        self.register_buffer("offset", offset)

    def dequantize(self, dtype: torch.dtype) -> Tensor:
        """The weight that the 4 bits stand for, (outputs, inputs)."""
        groups = _padded(self.magnitudes, GROUP).view(-1, GROUP) * self.scales[:, None]
        block_max = (groups.flatten()[: len(self.magnitudes)] + self.offset).to(dtype)
        values = torch.tensor(QUANTILES, device=self.packed.device, dtype=dtype)
        # a byte holds two codes: one look-up finds the pair
        pairs = torch.stack((values.repeat_interleave(16), values.repeat(16)), 1)
        weight = torch.empty(len(block_max), BLOCK, dtype=dtype, device=self.packed.device)
        step = _AT_ONCE // BLOCK
        for start in range(0, len(block_max), step):
            part = slice(start, start + step)
            found = F.embedding(self.packed[part].int(), pairs)
            torch.mul(found.flatten(1), block_max[part, None], out=weight[part])
        return weight.flatten()[: self.shape.numel()].view(self.shape)

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = _Product.apply(x, self)
        return product


class _Product(torch.autograd.Function):
    """``x @ weight.T``; what is kept for the backward pass is the 4 bits."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: NF4Linear) -> Tensor:
        ctx.layer = layer
        return F.linear(x, layer.dequantize(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        return grad @ ctx.layer.dequantize(grad.dtype), None


def _round(weight_oi: Tensor) -> tuple[Tensor, Tensor]:
    """Two codes a byte, (blocks, 32) uint8, and the largest magnitude of each block, fp32."""
    blocks = _padded(weight_oi.detach().flatten(), BLOCK).view(-1, BLOCK)
    packed = torch.empty(len(blocks), BLOCK // 2, dtype=torch.uint8, device=weight_oi.device)
    block_max = blocks.abs().amax(1).float()
    values = torch.tensor(QUANTILES, device=weight_oi.device)
    borders = (values[1:] + values[:-1]) / 2
    step = _AT_ONCE // BLOCK
    for start in range(0, len(blocks), step):
        part = slice(start, start + step)
        scaled = blocks[part].float() / block_max[part, None].clamp(min=1e-12)
        codes = torch.bucketize(scaled, borders, out_int32=True).to(torch.uint8)
        packed[part] = codes[:, ::2] * 16 + codes[:, 1::2]
    return packed, block_max


def _padded(flat: Tensor, size: int) -> Tensor:
    """``flat`` with zeros at its end, up to a multiple of ``size``."""
    return F.pad(flat, (0, -len(flat) % size)) if len(flat) % size else flat
