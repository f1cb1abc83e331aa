"""Products of bytes by the micro-kernel of torch's compiler."""

import shutil
from pathlib import Path

import pytest
import torch
from gaps import longest_gap
from torch import Tensor

from puna.core.devices import avx512, cpu_flags
from puna.inference import kept_code, vnni
from puna.inference.integers import integer_kernel

USED_HERE = avx512("avx512_vnni") and "amx_int8" not in cpu_flags()
only_where_used = pytest.mark.skipif(not USED_HERE, reason="this processor has another kernel")


def product(rows_ni: Tensor, weight_oi: Tensor, result: torch.dtype = torch.float32) -> Tensor:
    """By the kernel, with a scale of 1 and of 2 for the last output."""
    multiply = vnni.multiply(result, compiles=True)
    assert multiply is not None
    n, (outputs, inputs) = len(rows_ni), weight_oi.shape
    scales = torch.ones(outputs)
    scales[-1] = 2.0
    zeros = weight_oi.sum(1, dtype=torch.int32) * 128
    out = torch.full((n + 1, outputs), torch.nan, dtype=result)
    sizes = (n, outputs, inputs, torch.get_num_threads())
    multiply(rows_ni, vnni.panels(weight_oi), zeros, scales, out, *sizes)
    assert out[n:].isnan().all()  # nothing is written behind the rows
    return out[:n]


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
def test_a_long_product_lets_other_threads_run() -> None:
    rows = torch.zeros(512, 4096, dtype=torch.uint8)
    weight = torch.zeros(8192, 4096, dtype=torch.int8)
    # a product that kept Python to itself would be one gap
    assert longest_gap(lambda: product(rows, weight)) < 0.5


@only_where_used
def test_the_kernel_is_compiled_once_and_found_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    monkeypatch.setattr(kept_code, "_shelves", lambda: first)
    find = vnni.multiply.__wrapped__
    assert find(torch.float32, compiles=False) is None
    assert find(torch.float32, compiles=True) is not None
    assert [path.name for path in first.iterdir()] == ["multiply-torch.float32.so"]
    shutil.copytree(first, second)  # Python loads no library twice from the same place
    monkeypatch.setattr(kept_code, "_shelves", lambda: second)
    monkeypatch.setattr(kept_code, "_compiled", _no_compiler)
    assert find(torch.float32, compiles=False) is not None
    assert find(torch.bfloat16, compiles=True) is None


@only_where_used
def test_a_damaged_kernel_is_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_code, "_shelves", lambda: tmp_path)
    path = tmp_path / "multiply-torch.float32.so"
    path.write_bytes(b"(")
    find = vnni.multiply.__wrapped__
    assert find(torch.float32, compiles=False) is None
    assert find(torch.float32, compiles=True) is not None
    assert path.stat().st_size > 1


def _no_compiler(arguments: list[str], text: str) -> None:
    raise FileNotFoundError("g++")
