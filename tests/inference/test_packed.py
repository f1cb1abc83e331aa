"""Dense weights kept a second time in a kernel's own layout."""

import ctypes
from types import SimpleNamespace

import psutil
import pytest
import torch
from torch import Tensor

from puna.core.devices import fast_bf16
from puna.inference import load_engine, packed
from puna.inference.fbgemm import has_fbgemm
from puna.inference.packed import Product, fast_halves, pack, packed_itemsize
from puna.inference.weights import Dense

FP32, BF16 = torch.float32, torch.bfloat16


@pytest.fixture(params=[False, True], ids=["oneDNN", "FBGEMM"])
def halves(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    """Whether weights in bf16 are multiplied as fp16 ones, where that kernel is there."""
    there = bool(request.param) and fast_halves()
    monkeypatch.setattr(packed, "fast_halves", lambda: there)
    return there


def one(weight_oi: Tensor) -> Product:
    (product,) = pack([weight_oi], FP32)
    return product


@pytest.mark.parametrize("shape", [(40, 640), (17, 1033), (8192 + 40, 512), (40, 24)])
def test_products_are_those_of_the_weights(halves: bool, shape: tuple[int, int]) -> None:
    torch.manual_seed(0)
    weight = torch.randn(shape).bfloat16()
    rows = torch.randn(2, 9, shape[1])
    product = one(weight)
    small = 24  # filled up to 512 inputs it would be larger than in fp32
    assert isinstance(product, packed._Halves) is (halves and shape[1] > small)
    exact = rows.double() @ weight.double().T
    assert (product(rows) - exact).abs().amax() < 2e-6 * exact.abs().amax()


def test_bf16_weights_are_exact_but_for_the_smallest(halves: bool) -> None:
    held = [65_280.0, -65_280.0, 1 + 2**-7, 2**-14, 1.9921875 * 2**-17, -(2**-24)]
    rounded = [1.9921875 * 2**-18, 1.5 * 2**-24, 2**-30]
    weight = torch.zeros(512, 512).bfloat16()
    weight[0, : len(held)], weight[1, : len(rounded)] = torch.tensor(held), torch.tensor(rounded)
    found = one(weight)(torch.eye(512)).T
    assert torch.equal(found[0], weight[0].float())
    assert torch.equal(found[1], weight[1].half().float() if halves else weight[1].float())


@pytest.mark.parametrize("large", [65_536.0, -65_536.0, *map(float, ("inf", "-inf", "nan"))])
def test_weights_that_fp16_cannot_hold_stay_as_they_are(halves: bool, large: float) -> None:
    weight = torch.ones(4, 512).bfloat16()
    weight[1, 2] = large
    product = one(weight)
    assert not isinstance(product, packed._Halves)
    row = torch.zeros(1, 512)
    row[0, 2] = 1.0
    found = product(row)[0, 1]
    torch.testing.assert_close(found, torch.tensor(large), rtol=0, atol=0, equal_nan=True)


def test_each_weight_of_a_model_goes_to_the_kernel_that_holds_it(halves: bool) -> None:
    fitting, large, narrow = torch.ones(4, 512), torch.full((4, 512), 1e5), torch.ones(4, 16)
    weights = [weight.bfloat16() for weight in (fitting, large, narrow, fitting)]
    products = pack(weights, FP32)
    assert [isinstance(each, packed._Halves) for each in products] == [halves, False, False, halves]
    for weight, product in zip(weights, products, strict=True):
        assert torch.equal(product(torch.ones(1, weight.shape[1]))[0], weight.float().sum(1))


def test_a_row_gets_nearly_the_same_products_in_any_company(halves: bool) -> None:
    torch.manual_seed(0)
    weight, rows = torch.randn(96, 1200).bfloat16(), torch.randn(70, 1200)
    product = one(weight)
    together = product(rows)
    for n in (1, 2, 5, 7, 16, 32, 33):
        assert (product(rows[:n]) - together[:n]).abs().amax() < 4e-6 * together.abs().amax()


class Mallinfo2(ctypes.Structure):
    """As malloc.h of glibc 2.33 and later has it."""

    _names = "arena ordblks smblks hblks hblkhd usmblks fsmblks uordblks fordblks keepcost"
    _fields_ = [(name, ctypes.c_size_t) for name in _names.split()]


@pytest.mark.parametrize("inputs", [256, 512, 513, 576, 1536])
def test_what_a_copy_takes_is_known_before(halves: bool, inputs: int) -> None:
    library = ctypes.CDLL(None)
    library.mallinfo2.restype = Mallinfo2

    def held() -> int:
        info = library.mallinfo2()
        return info.uordblks + info.hblkhd

    weight = torch.ones(4096, inputs).bfloat16()
    one(weight)  # code that is made for the first product stays
    before = held()
    copy = one(weight)
    took = (held() - before) / weight.numel()
    assert took == pytest.approx(packed_itemsize(BF16, FP32, inputs), rel=0.05)
    assert copy(torch.ones(1, inputs)).shape == (1, 4096)


def test_only_what_was_in_bf16_is_kept_in_fewer_bytes() -> None:
    assert packed_itemsize(FP32, FP32, 512) == 4
    assert packed_itemsize(BF16, BF16, 512) == 2


def test_another_quantised_engine_is_neither_in_the_way_nor_lost(halves: bool) -> None:
    engines = torch.backends.quantized
    former = engines.engine
    others = [name for name in engines.supported_engines if name not in ("none", "fbgemm")]
    try:
        for name in others:
            engines.engine = name
            assert isinstance(one(torch.ones(4, 512).bfloat16()), packed._Halves) is halves
            assert engines.engine == name
    finally:
        engines.engine = former


def test_an_operator_that_torch_lacks_is_not_asked_for() -> None:
    assert not has_fbgemm("linear_prepack_fp16", "no_such_operator")


@pytest.mark.parametrize("ample", [False, True])
def test_an_engine_keeps_a_copy_where_it_takes_less_than_a_quarter_of_the_memory(
    monkeypatch: pytest.MonkeyPatch, ample: bool
) -> None:
    n_params, dim = 134_515_008, 576
    stored, rows = BF16, BF16 if fast_bf16("cpu") else FP32
    copied = packed_itemsize(stored, rows, dim) * n_params
    available = 4 * copied * (1.01 if ample else 0.99)
    memory = SimpleNamespace(available=int(available), total=int(available))
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory)
    engine = load_engine("smollm2")
    head = engine._runner.head
    assert isinstance(head, Dense)
    assert (head.packed is not None) is ample
