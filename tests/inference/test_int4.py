"""Products with 4-bit weights, by torch's kernel and by the one for processors with bf16."""

import pytest
import torch
from gaps import longest_gap
from torch import Tensor

from puna.core.devices import avx512
from puna.inference import int4
from puna.inference.int4 import GROUP, PANEL, Int4

HERE = avx512("avx512_bf16")
only_where_used = pytest.mark.skipif(not HERE, reason="this processor has torch's kernel")


def stands_for(weight_oi: Tensor) -> Tensor:
    """What 16 steps from the least to the largest of a group leave of weights, in fp32."""
    groups = weight_oi.unflatten(1, (-1, GROUP))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = (high - low) / 15
    codes = ((groups - low) / scale).round()
    half = scale.bfloat16().float()
    zero = (low + 8 * scale).bfloat16().float()
    return ((codes - 8) * half + zero).flatten(1)


def torchs(monkeypatch: pytest.MonkeyPatch, weight_oi: Tensor) -> Int4:
    """The product by torch's kernel."""
    with monkeypatch.context() as patch:
        patch.setattr(int4, "multiply", lambda **_: None)
        made = Int4(weight_oi)
    assert made.panels is None
    return made


@pytest.mark.parametrize("own", [pytest.param(True, marks=only_where_used), False])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 9, 16, 27])
@pytest.mark.parametrize(("outputs", "inputs"), [(16, 32), (48, 96), (176, 1536)])
def test_products_are_those_of_what_the_codes_stand_for(
    monkeypatch: pytest.MonkeyPatch, own: bool, n: int, outputs: int, inputs: int
) -> None:
    rng = torch.Generator().manual_seed(n)
    weight = torch.randn(outputs, inputs, generator=rng) + 0.5
    rows = torch.randn(n, inputs, generator=rng).bfloat16()
    product = Int4(weight, compiles=True) if own else torchs(monkeypatch, weight)
    exact = rows.double() @ stands_for(weight).double().T
    # sums in fp32, then rounded to bf16
    torch.testing.assert_close(product(rows).double(), exact, rtol=2**-8, atol=1e-3)
    assert product(rows.float().view(n, 1, inputs)).shape == (n, 1, outputs)


@only_where_used
def test_a_row_has_the_same_product_in_any_batch() -> None:
    product = Int4(torch.randn(64, 160), compiles=True)
    rows = torch.randn(23, 160).bfloat16()
    together = product(rows)
    for n in range(1, 23):
        assert torch.equal(product(rows[:n]), together[:n])
        assert torch.equal(product(rows[n:]), together[n:])


@only_where_used
def test_nothing_is_written_behind_the_rows() -> None:
    panels = int4.panels(torch.zeros(PANEL, GROUP), torch.ones(PANEL, 1), torch.ones(PANEL, 1))
    for n in range(9):
        out = torch.full((n + 1, PANEL), torch.nan, dtype=torch.bfloat16)
        torch.ops.puna.int4(torch.ones(n, GROUP).bfloat16(), panels, out[:n])
        assert torch.equal(out[:n], torch.full((n, PANEL), -7.0 * GROUP).bfloat16())
        assert out[n:].isnan().all()


@only_where_used
def test_panels_hold_five_bits_a_weight(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = torch.randn(64, 160)
    bits = 8 * sum(each.nbytes for each in Int4(weight, compiles=True).buffers())
    assert bits == 5 * weight.numel()
    assert bits == 8 * sum(each.nbytes for each in torchs(monkeypatch, weight).buffers())


@only_where_used
def test_a_long_product_lets_other_threads_run() -> None:
    product, rows = Int4(torch.randn(4096, 2048), compiles=True), torch.zeros(512, 2048).bfloat16()
    # a product that kept Python to itself would be one gap
    assert longest_gap(lambda: product(rows)) < 0.5
