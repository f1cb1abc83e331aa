"""Weights in 4 bits: the published code, its error, its size, its gradient."""

import math

import pytest
import torch

from puna.model import nf4
from puna.model.nf4 import QUANTILES, NF4Linear


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_sixteen_values_are_quantiles_of_a_normal_distribution() -> None:
    """Equation 4 of QLoRA: 8 quantiles below zero, zero, 7 above, ends shared, scaled to 1."""
    offset = 0.5 * (1 / 32 + 1 / 30)
    below = torch.linspace(offset, 0.5, 8)[:-1]
    above = torch.linspace(0.5, 1 - offset, 9)
    values = torch.special.ndtri(torch.cat([below, above]).double())
    values = values / values.abs().max()
    # the published table was made in fp32, whose quantiles of 0.97 are good to six digits
    torch.testing.assert_close(torch.tensor(QUANTILES).double(), values, atol=2e-6, rtol=0)


def test_each_weight_becomes_the_nearest_value_times_the_magnitude_of_its_block() -> None:
    weight = normal(16, 192)
    restored = NF4Linear(weight).dequantize(torch.float32).view(-1, 64)
    blocks = weight.view(-1, 64)
    biggest = blocks.abs().amax(1, keepdim=True)
    values = torch.tensor(QUANTILES)
    nearest = (blocks / biggest)[..., None].sub(values).abs().argmin(-1)
    exact = values[nearest] * biggest
    # double quantisation: half a step of 8 bits over the spread of the magnitudes
    spread = (biggest - biggest.mean()).abs().max()
    assert (restored - exact).abs().max() <= spread / 127 / 2 + 1e-6


def test_normal_weights_keep_the_error_that_four_bits_allow() -> None:
    weight = normal(256, 512)
    error = NF4Linear(weight).dequantize(torch.float32) - weight
    # 0.0728 is also what torchao 0.18 loses on such weights; uniform 4 bits in blocks lose 0.088
    assert float(error.abs().mean()) == pytest.approx(0.0728, abs=0.001)


def test_a_weight_takes_a_little_over_four_bits() -> None:
    layer = NF4Linear(normal(512, 512))
    bits = 8 * sum(buffer.nbytes for buffer in layer.buffers()) / 512**2
    assert 4 < bits < 4.13


@pytest.mark.parametrize("shape", [(3, 64), (5, 40), (1, 7), (130, 64)])
def test_any_shape_and_blocks_of_zeros_come_back(shape: tuple[int, int]) -> None:
    weight = normal(*shape)
    weight[0] = 0
    restored = NF4Linear(weight).dequantize(torch.float32)
    assert restored.shape == shape
    assert not restored[0, : min(shape[1], 64) if shape[1] >= 64 else 0].any()
    # the widest gap between values is 0.3 of a block's largest weight
    assert (restored - weight).abs().max() <= 0.16 * weight.abs().max()


def test_going_through_a_weight_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = normal(64, 192)
    whole = NF4Linear(weight)
    monkeypatch.setattr(nf4, "_AT_ONCE", 64 * 5)
    parts = NF4Linear(weight)
    assert torch.equal(whole.packed, parts.packed)
    assert torch.equal(whole.dequantize(torch.float32), parts.dequantize(torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_product_and_gradient_are_those_of_the_restored_weight(dtype: torch.dtype) -> None:
    layer = NF4Linear(normal(48, 64))
    x = normal(2, 5, 64, seed=2).to(dtype).requires_grad_()
    plain = torch.nn.functional.linear(x, layer.dequantize(dtype))
    towards = torch.ones_like(plain) * math.pi
    assert torch.equal(layer(x), plain)
    ours = torch.autograd.grad(layer(x), x, towards)[0]
    torch.testing.assert_close(ours, torch.autograd.grad(plain, x, towards)[0])


def test_nothing_dense_is_kept_for_the_backward_pass() -> None:
    layer = NF4Linear(normal(256, 256))
    kept: list[torch.Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        layer(normal(2, 256).requires_grad_())
    assert kept == []
