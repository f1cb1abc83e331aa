"""Products of bytes by the micro-kernel of torch's compiler."""

from collections.abc import Callable
from functools import partial

import pytest
import torch
from gaps import longest_gap
from torch import Tensor

from puna.core.devices import avx512, cpu_flags
from puna.inference import vnni
from puna.inference.integers import integer_kernel

USED_HERE = avx512("avx512_vnni") and "amx_int8" not in cpu_flags()
only_where_used = pytest.mark.skipif(not USED_HERE, reason="this processor has another kernel")


def prepared(
    rows_ni: Tensor, weight_oi: Tensor, result: torch.dtype, threads: int | None = None
) -> tuple[Callable[[], None], Tensor]:
    """A product by the kernel, with a scale of 1 and of 2 for the last output, and its result."""
    multiply = vnni.find(result, compiles=True)
    assert multiply is not None
    n, (outputs, inputs) = len(rows_ni), weight_oi.shape
    scales = torch.ones(outputs)
    scales[-1] = 2.0
    zeros = weight_oi.sum(1, dtype=torch.int32) * 128
    panels, out = vnni.panels(weight_oi), torch.full((n + 1, outputs), torch.nan, dtype=result)
    sizes = (n, outputs, inputs, threads or torch.get_num_threads())
    return partial(multiply, rows_ni, panels, zeros, scales, out, *sizes), out


def product(
    rows_ni: Tensor,
    weight_oi: Tensor,
    result: torch.dtype = torch.float32,
    threads: int | None = None,
) -> Tensor:
    multiply, out = prepared(rows_ni, weight_oi, result, threads)
    multiply()
    assert out[-1].isnan().all()  # nothing is written behind the rows
    return out[:-1]


@only_where_used
@pytest.mark.parametrize("n", [1, 2, 5, 6, 7, 12, 23, 24, 25, 30, 48, 49, 100])
@pytest.mark.parametrize(("outputs", "inputs"), [(64, 4), (192, 36), (64, 1540)])
def test_sums_of_bytes_are_exact_for_any_number_of_rows(n: int, outputs: int, inputs: int) -> None:
    rng = torch.Generator().manual_seed(n)
    rows = torch.randint(0, 256, (n, inputs), generator=rng, dtype=torch.uint8)
    weight = torch.randint(-127, 128, (outputs, inputs), generator=rng, dtype=torch.int8)
    exact = (rows.long() - 128) @ weight.long().T
    exact[:, -1] *= 2
    assert exact.abs().max() < 2**24  # what fp32 holds exactly
    assert torch.equal(product(rows, weight), exact.float())
    assert torch.equal(product(rows, weight, torch.bfloat16), exact.float().bfloat16())


@only_where_used
def test_no_sum_leaves_32_bits() -> None:
    inputs = vnni._MOST_INPUTS // 4 * 4
    assert vnni.fits(64, inputs)
    assert not vnni.fits(64, inputs + 4)
    for weight in (-127, 127):
        for row in (0, 255):
            rows = torch.full((1, inputs), row, dtype=torch.uint8)
            weights = torch.full((64, inputs), weight, dtype=torch.int8)
            exact = float((row - 128) * weight * inputs)
            assert product(rows, weights)[0, 0].item() == pytest.approx(exact, rel=1e-6)


def test_shapes_that_the_kernel_does_not_take_get_another() -> None:
    assert vnni.fits(128, 8)
    for outputs, inputs in ((65, 8), (32, 8), (64, 6)):
        assert not vnni.fits(outputs, inputs)
        kernel = integer_kernel(torch.Size((outputs, inputs)), torch.float32, compiles=True)
        assert kernel.__name__ != "_Panels"


@only_where_used
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_share_the_work_and_change_nothing(threads: int) -> None:
    rows = torch.randint(0, 256, (50, 576), dtype=torch.uint8)
    weight = torch.randint(-127, 128, (1536, 576), dtype=torch.int8)
    alone = product(rows, weight, threads=1)
    for _ in range(20):
        assert torch.equal(product(rows, weight, threads=threads), alone)


@only_where_used
def test_rows_that_are_strided_are_laid_one_behind_the_other() -> None:
    weight = torch.randint(-127, 128, (64, 32), dtype=torch.int8)
    kernel = integer_kernel(weight.shape, torch.float32, compiles=True)(
        weight, torch.ones(64), torch.float32
    )
    rows = torch.randint(0, 256, (5, 64), dtype=torch.uint8)[:, ::2]
    exact = (rows.long() - 128) @ weight.long().T
    assert torch.equal(kernel(rows), exact.float())


@only_where_used
@pytest.mark.clock
def test_a_long_product_lets_other_threads_run() -> None:
    rows = torch.zeros(512, 4096, dtype=torch.uint8)
    weight = torch.zeros(8192, 4096, dtype=torch.int8)
    # a product that kept Python to itself would be one gap
    assert longest_gap(prepared(rows, weight, torch.float32)[0]) < 0.5


@pytest.mark.parametrize("flags", [set(), {"avx2"}, {"avx512_vnni", "amx_int8"}])
def test_processors_with_another_kernel_do_not_compile_this_one(
    monkeypatch: pytest.MonkeyPatch, flags: set[str]
) -> None:
    monkeypatch.setattr("puna.core.devices.cpu_flags", lambda: flags)
    monkeypatch.setattr(vnni, "cpu_flags", lambda: flags)
    monkeypatch.setattr(vnni, "_kernel", None)
    assert vnni.find(torch.float32, compiles=True) is None
