"""Dense weights kept a second time in a kernel's own layout."""

import pytest
import torch

from puna.inference import packed
from puna.inference.packed import fast_halves, pack, packed_itemsize

FP32, BF16 = torch.float32, torch.bfloat16


@pytest.fixture(params=[False, True], ids=["oneDNN", "FBGEMM"])
def halves(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether weights in bf16 are multiplied as fp16 ones, where that kernel is there."""
    there = bool(request.param) and fast_halves()
    monkeypatch.setattr(packed, "fast_halves", lambda: there)
    return there


@pytest.mark.parametrize("shape", [(40, 64), (17, 33), (8192 + 40, 24), (576, 1536)])
def test_products_are_those_of_the_weights(halves: bool, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape).bfloat16()
    weight[:, 0] = 2.0**-20  # below what fp16 holds in full
    rows = torch.randn(2, 9, shape[1])
    product = pack(weight, FP32)
    assert isinstance(product, packed._Halves) is halves
    exact = rows.double() @ weight.double().T
    largest = exact.abs().amax()
    assert (product(rows) - exact).abs().amax() < 2e-6 * largest


def test_a_row_gets_the_same_products_in_any_company(halves: bool) -> None:
    torch.manual_seed(0)
    weight, rows = torch.randn(96, 1200).bfloat16(), torch.randn(70, 1200)
    product = pack(weight, FP32)
    together = product(rows)
    for n in (1, 2, 5, 16, 33):
        torch.testing.assert_close(product(rows[:n]), together[:n], rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("large", [65_536.0, float("inf"), float("nan")])
def test_weights_that_fp16_cannot_hold_stay_as_they_are(halves: bool, large: float) -> None:
    weight = torch.ones(4, 8).bfloat16()
    weight[1, 2] = large
    product = pack(weight, FP32)
    assert not isinstance(product, packed._Halves)
    row = torch.zeros(1, 8)
    row[0, 2] = 1.0
    torch.testing.assert_close(
        product(row)[0, 1], torch.tensor(large), rtol=0, atol=0, equal_nan=True
    )


def test_the_copy_takes_two_bytes_a_weight_only_where_they_were_bf16(halves: bool) -> None:
    assert packed_itemsize(BF16, FP32) == (2 if halves else 4)
    assert packed_itemsize(FP32, FP32) == 4
    assert packed_itemsize(BF16, BF16) == 2
    assert not isinstance(pack(torch.ones(4, 8), FP32), packed._Halves)
