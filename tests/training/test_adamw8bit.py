"""AdamW with moments of 8 bits beside torch's, and the code of the moments."""

import math

import pytest
import torch

from puna.training import adamw8bit
from puna.training.adamw8bit import AdamW8bit


def normal(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quadratic(optimizer_class: type, steps: int = 200, **settings: float) -> float:
    """How far from the minimum of a badly scaled quadratic the optimizer ends."""
    target = normal(64, 96)
    scale = torch.logspace(-1, 1, 96)
    weight = torch.nn.Parameter(torch.zeros(64, 96))
    optimizer = optimizer_class([weight], lr=0.02, betas=(0.9, 0.95), **settings)
    for step in range(steps):
        noise = 0.1 * normal(64, 96, seed=step + 2)
        weight.grad = scale * (weight.detach() - target + noise)
        for group in optimizer.param_groups:
            group["lr"] = 0.02 * (1 - step / steps)
        optimizer.step()
    return float((weight.detach() - target).square().mean())


def test_small_tensors_are_updated_as_torch_does() -> None:
    ours, theirs = (torch.nn.Parameter(normal(30, 40)) for _ in range(2))
    settings = {"lr": 0.01, "betas": (0.9, 0.95), "weight_decay": 0.1}
    pair = (AdamW8bit([ours], **settings), torch.optim.AdamW([theirs], **settings))
    for step in range(20):
        ours.grad = normal(30, 40, seed=step)
        theirs.grad = ours.grad.clone()
        for optimizer in pair:
            optimizer.step()
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_the_first_step_of_a_large_tensor_is_torchs() -> None:
    """The moments are rounded after they are used, so the first step is not touched."""
    ours, theirs = (torch.nn.Parameter(normal(100, 77)) for _ in range(2))
    for weight, kind in ((ours, AdamW8bit), (theirs, torch.optim.AdamW)):
        weight.grad = normal(100, 77, seed=2)
        kind([weight], lr=0.01, weight_decay=0.1).step()
    torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)


def test_it_converges_as_torchs_does() -> None:
    ours, theirs = quadratic(AdamW8bit), quadratic(torch.optim.AdamW)
    assert theirs < 0.03  # from 1
    assert ours == pytest.approx(theirs, rel=0.05)


def test_moments_take_a_little_over_a_byte() -> None:
    weight = torch.nn.Parameter(normal(256, 512))
    weight.grad = normal(256, 512, seed=2)
    optimizer = AdamW8bit([weight], lr=0.01)
    optimizer.step()
    n_bytes = sum(tensor.nbytes for tensor in optimizer.state[weight].values())
    assert n_bytes / weight.numel() == pytest.approx(2 + 2 * 4 / 256, abs=1e-3)


@pytest.mark.parametrize(("size", "signed", "unsigned"), [(1.0, 110, 110), (1e-3, 3, 20)])
def test_the_code_keeps_numbers_as_its_docstring_says(
    size: float, signed: float, unsigned: float
) -> None:
    values = torch.cat([torch.ones(1), size * torch.linspace(0.8, 1.0, 255)])
    codes, biggest = torch.zeros(256, dtype=torch.int8), torch.zeros(1)
    adamw8bit._store_signed(-values, codes, biggest)
    restored = adamw8bit._signed(codes, biggest)
    assert ((restored + values) / values).abs().max() < 1 / signed
    codes = torch.zeros(256, dtype=torch.uint8)
    adamw8bit._store_positive(values, codes, biggest)
    restored = adamw8bit._positive(codes, biggest)
    assert ((restored - values) / values).abs().max() < 1 / unsigned


def test_a_second_moment_never_becomes_zero() -> None:
    values = torch.full((256,), 1e-30)
    values[0], values[1] = 1.0, 0.0
    codes, biggest = torch.zeros(256, dtype=torch.uint8), torch.zeros(1)
    adamw8bit._store_positive(values, codes, biggest)
    restored = adamw8bit._positive(codes, biggest)
    assert restored[1] == 0  # there no gradient ever came
    assert (restored[2:] > 0).all()


def test_going_through_a_tensor_in_parts_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def trained() -> torch.Tensor:
        weight = torch.nn.Parameter(normal(70, 91))
        optimizer = AdamW8bit([weight], lr=0.01)
        for step in range(5):
            weight.grad = normal(70, 91, seed=step)
            optimizer.step()
        return weight.detach()

    whole = trained()
    monkeypatch.setattr(adamw8bit, "_AT_ONCE", 512)
    assert torch.equal(trained(), whole)


def test_weights_stay_finite_where_gradients_differ_by_many_orders() -> None:
    weight = torch.nn.Parameter(torch.zeros(64, 64))
    optimizer = AdamW8bit([weight], lr=0.01)
    scale = torch.logspace(-20, 5, 64)
    for step in range(50):
        weight.grad = scale * normal(64, 64, seed=step)
        optimizer.step()
    # a step of Adam is at most the rate over the root of the decays' ratio
    assert float(weight.detach().abs().max()) < 50 * 0.01 * (0.1 / math.sqrt(0.001))
