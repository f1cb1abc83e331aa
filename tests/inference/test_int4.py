"""Products with 4-bit weights, by torch's kernel and by the one for processors with bf16."""

import pytest
import torch
from gaps import longest_gap
from torch import Tensor

from puna.core.devices import avx512
from puna.inference import int4
from puna.inference.int4 import GROUP, PANEL, Int4

only_where_used = pytest.mark.skipif(
    not avx512("avx512_bf16"), reason="the kernel's instructions are missing: it would crash"
)


def stands_for(weight_oi: Tensor) -> Tensor:
    """What 16 steps from the least to the largest of a group leave of weights, in fp32."""
    groups = weight_oi.unflatten(1, (-1, GROUP))
    low, high = groups.amin(-1, keepdim=True), groups.amax(-1, keepdim=True)
    scale = ((high - low) / 15).clamp(min=1e-8)
    codes = ((groups - low) / scale).round()
    half = scale.bfloat16().float()
    zero = (low + 8 * scale).bfloat16().float()
    return ((codes - 8) * half + zero).flatten(1)


def own(weight_oi: Tensor) -> Int4:
    """The product by the kernel here."""
    made = Int4(weight_oi, compiles=True)
    assert made.panels is not None
    return made


def torchs(monkeypatch: pytest.MonkeyPatch, weight_oi: Tensor) -> Int4:
    """The product by torch's kernel."""
    with monkeypatch.context() as patch:
        patch.setattr(int4, "has_kernel", lambda **_: False)
        made = Int4(weight_oi)
    assert made.panels is None
    return made


@pytest.mark.parametrize("here", [pytest.param(True, marks=only_where_used), False])
@pytest.mark.parametrize("n", [1, 2, 3, 4, 5, 7, 8, 9, 16, 27])
@pytest.mark.parametrize(("outputs", "inputs"), [(16, 32), (48, 96), (176, 1536)])
def test_products_are_those_of_what_the_codes_stand_for(
    monkeypatch: pytest.MonkeyPatch, here: bool, n: int, outputs: int, inputs: int
) -> None:
    rng = torch.Generator().manual_seed(n)
    weight = torch.randn(outputs, inputs, generator=rng) + 0.5
    weight[3] = 0.0  # no step between its least and its largest
    rows = torch.randn(n, inputs, generator=rng).bfloat16()
    product = own(weight) if here else torchs(monkeypatch, weight)
    exact = rows.double() @ stands_for(weight).double().T
    # sums in fp32, then rounded to bf16
    torch.testing.assert_close(product(rows).double(), exact, rtol=2**-8, atol=1e-3)
    wide = product(rows.float().view(n, 1, inputs))
    assert wide.dtype == torch.float32
    assert torch.equal(wide, product(rows).float().view(n, 1, outputs))


@only_where_used
def test_a_row_has_the_same_product_in_any_batch() -> None:
    product = own(torch.randn(64, 160))
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
    bits = 8 * sum(each.nbytes for each in own(weight).buffers())
    assert bits == 5 * weight.numel()
    assert bits == 8 * sum(each.nbytes for each in torchs(monkeypatch, weight).buffers())


@only_where_used
def test_rows_that_are_strided_are_laid_one_behind_the_other() -> None:
    product, wide = own(torch.randn(32, 64)), torch.randn(5, 128).bfloat16()
    assert torch.equal(product(wide[:, ::2]), product(wide[:, ::2].clone()))


@only_where_used
@pytest.mark.parametrize("threads", [2, 3])
def test_threads_share_the_work_and_change_nothing(threads: int) -> None:
    multiply = int4._KERNEL.find(compiles=True)
    assert multiply is not None
    panels, rows = own(torch.randn(1536, 576)).panels, torch.randn(21, 576).bfloat16()
    alone, together = (torch.empty(21, 1536, dtype=torch.bfloat16) for _ in range(2))
    multiply(rows, panels, alone, 21, 1536, 576, 1)
    for _ in range(20):
        multiply(rows, panels, together, 21, 1536, 576, threads)
        assert torch.equal(together, alone)


@only_where_used
def test_rows_of_another_width_are_refused() -> None:
    with pytest.raises(ValueError, match="rows of 96 numbers by weights of 64"):
        own(torch.randn(32, 64))(torch.randn(5, 96))


@only_where_used
def test_what_is_not_finite_spoils_its_row_alone() -> None:
    product, rows = own(torch.randn(32, 64)), torch.randn(9, 64).bfloat16()
    clean = product(rows)
    rows[4, 7] = torch.nan
    found = product(rows)
    assert found[4].isnan().all()
    rest = [n for n in range(9) if n != 4]
    assert torch.equal(found[rest], clean[rest])


def test_tensors_that_do_not_fit_are_refused_while_code_is_traced() -> None:
    def call(rows: Tensor, panels: Tensor, out: Tensor) -> None:
        torch.ops.puna.int4(*(each.to("meta") for each in (rows, panels, out)))

    rows, out = torch.zeros(3, 64).bfloat16(), torch.zeros(3, 32).bfloat16()
    panels = torch.zeros(2, 2, 320, dtype=torch.uint8)
    call(rows, panels, out)
    wrong = [
        (rows.float(), panels, out),
        (rows, panels, out.float()),
        (rows, panels, out[:2]),
        (rows[:, :32], panels, out),
        (torch.zeros(64, 3).bfloat16().T, panels, out),
        (rows, panels[:1], out),
        (rows, panels[:, :1], out),
        (rows, panels.to(torch.int8), out),
    ]
    for each in wrong:
        with pytest.raises(ValueError, match="do not fit"):
            call(*each)


def test_processors_without_bf16_products_do_not_compile_the_kernel(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("puna.core.devices.cpu_flags", lambda: {"avx2"})
    monkeypatch.setattr(int4, "_KERNEL", None)
    assert not int4.has_kernel(compiles=True)
    assert Int4(torch.randn(16, 32), compiles=True).panels is None


@only_where_used
@pytest.mark.clock
def test_a_long_product_lets_other_threads_run() -> None:
    product, rows = own(torch.randn(4096, 2048)), torch.zeros(512, 2048).bfloat16()
    # a product that kept Python to itself would be one gap
    assert longest_gap(lambda: product(rows)) < 0.5
