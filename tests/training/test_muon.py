"""Muon beside torch's, and where the processor has no bf16 products."""

import pytest
import torch
from torch import Tensor, nn

from puna.training.muon import _POLYNOMIALS, Muon, orthogonalised

JORDAN = [(3.4445, -4.775, 2.0315)] * 5
SHAPES = [(24, 40), (40, 24), (32, 32)]


@pytest.fixture(params=[True, False], ids=["bf16", "fp32"])
def has_bf16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr("puna.core.devices.fast_bf16", lambda _: request.param)
    return bool(request.param)


def gradients(shape: tuple[int, ...]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator) for _ in range(4)]


@pytest.mark.parametrize("shape", SHAPES)
def test_steps_are_those_of_torch_with_its_polynomials(
    shape: tuple[int, int], has_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("puna.training.muon._POLYNOMIALS", JORDAN)
    start, *pushes = gradients(shape)
    ours, theirs = nn.Parameter(start.clone()), nn.Parameter(start.clone())
    optimizers = [
        Muon([ours], lr=0.02, weight_decay=0.1),
        torch.optim.Muon([theirs], lr=0.02, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
    ]
    for push in pushes:
        ours.grad, theirs.grad = push.clone(), push.clone()
        for optimizer in optimizers:
            optimizer.step()
    if has_bf16:
        assert torch.equal(ours, theirs)
    else:  # theirs rounds to bf16 all the same
        moved = (theirs - start).norm()
        assert 0 < (ours - theirs).norm() < 0.02 * moved


@pytest.mark.parametrize("shape", [*SHAPES, (64, 176), (128, 128)])
def test_only_singular_values_change_and_come_near_one(
    shape: tuple[int, int], has_bf16: bool
) -> None:
    (matrix, *_) = gradients(shape)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    made = left.T @ orthogonalised(matrix[None])[0].float() @ right.T
    off_diagonal = made - torch.diag(made.diagonal())
    assert off_diagonal.abs().max() < (0.03 if has_bf16 else 1e-4)
    large = values > 0.003 * values.norm()  # the steps lift smaller ones part of the way
    assert made.diagonal()[large].min() > 0.75
    assert made.diagonal().max() < 1.22


@pytest.mark.parametrize("equal", [False, True])
def test_a_single_direction_does_not_leave_the_range_of_the_polynomials(
    equal: bool, has_bf16: bool
) -> None:
    matrix = gradients((256, 1))[0] @ gradients((1, 704))[0]
    if equal:
        matrix = torch.full((1536, 1536), 0.37)  # its norm is a sum of as many equal squares
    values = torch.linalg.svdvals(orthogonalised(matrix[None])[0].float())
    assert 0.8 < values[0] < 1.22
    assert values[1] < (0.3 if has_bf16 else 0.05)  # what rounding brought in, lifted


def nearest_to_one(low: float, high: float) -> tuple[tuple[float, float, float], float]:
    """a, b, c of the odd polynomial of degree 5 that is nearest to 1 on [low, high]; how near.

    By Remez: its error is as large, with signs in turn, at the ends and at both its extrema.
    """
    inner = torch.tensor([0.75 * low + 0.25 * high, 0.25 * low + 0.75 * high]).double()
    for _ in range(50):
        x = torch.tensor([low, *inner.tolist(), high]).double()
        signs = torch.tensor([1.0, -1.0, 1.0, -1.0]).double()
        terms = torch.stack([x, x**3, x**5, signs], dim=1)
        a, b, c, error = torch.linalg.solve(terms, torch.ones(4).double()).tolist()
        root = (9 * b**2 - 20 * a * c) ** 0.5  # of a + 3 b y + 5 c y^2, y = x^2
        inner = (
            torch.tensor([(-3 * b - root) / (10 * c), (-3 * b + root) / (10 * c)]).double().sqrt()
        )
    return (a, b, c), error


def test_each_polynomial_is_the_best_on_what_the_one_before_left() -> None:
    low, high, found = 0.003, 1.0, []
    for _ in range(len(_POLYNOMIALS)):
        best, error = nearest_to_one(low, high)
        found.append(tuple(each / 1.02**power for each, power in zip(best, (1, 3, 5), strict=True)))
        low, high = 1 - error, 1 + error
    assert torch.tensor(found) == pytest.approx(torch.tensor(_POLYNOMIALS), abs=1e-4)


def test_matrices_of_one_shape_stepped_together_step_as_alone(
    has_bf16: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stepped() -> list[nn.Parameter]:
        made = [nn.Parameter(torch.ones(shape)) for shape in (*SHAPES, *SHAPES, (24, 40))]
        optimizer = Muon(made, lr=0.02, weight_decay=0.1)
        for turn in range(3):
            for number, each in enumerate(made):
                each.grad = gradients(each.shape)[turn].roll(number)
            made[3].grad = None  # as of a frozen one
            optimizer.step()
        return made

    together = stepped()
    monkeypatch.setattr("puna.training.muon._TOGETHER", 1)
    for one, other in zip(stepped(), together, strict=True):
        assert (one - other).norm() <= (0.01 if has_bf16 else 1e-5) * (1 - other).norm()
    assert torch.equal(together[3], torch.ones(SHAPES[0]))


def test_nothing_is_rounded_to_bf16_where_that_has_no_hardware(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("puna.core.devices.fast_bf16", lambda _: False)
    made = orthogonalised(gradients((8, 16))[0][None])
    assert made.dtype == torch.float32
    assert not torch.equal(made, made.bfloat16().float())
