"""Muon beside torch's, and where the processor has no bf16 products."""

import pytest
import torch
from torch import Tensor, nn

from puna.training.muon import Muon, orthogonalised

SHAPES = [(24, 40), (40, 24), (32, 32)]


@pytest.fixture(params=[True, False], ids=["bf16", "fp32"])
def has_bf16(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr("puna.core.devices.fast_bf16", lambda _: request.param)
    return bool(request.param)


def gradients(shape: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(shape, generator=generator) for _ in range(4)]


@pytest.mark.parametrize("shape", SHAPES)
def test_steps_are_those_of_torch(shape: tuple[int, int], has_bf16: bool) -> None:
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


@pytest.mark.parametrize("shape", SHAPES)
def test_only_singular_values_change_and_come_near_one(
    shape: tuple[int, int], has_bf16: bool
) -> None:
    (matrix, *_) = gradients(shape)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    made = left.T @ orthogonalised(matrix).float() @ right.T
    off_diagonal = made - torch.diag(made.diagonal())
    assert off_diagonal.abs().max() < (0.03 if has_bf16 else 1e-4)
    large = values > 0.05 * values.max()  # five steps lift small ones part of the way
    assert made.diagonal()[large].min() > 0.6
    assert made.diagonal().max() < 1.3


def test_nothing_is_rounded_to_bf16_where_that_has_no_hardware(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("puna.core.devices.fast_bf16", lambda _: False)
    made = orthogonalised(gradients((8, 16))[0])
    assert made.dtype == torch.float32
    assert not torch.equal(made, made.bfloat16().float())
