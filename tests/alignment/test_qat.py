"""Training with the rounding of 4-bit weights and 8-bit activations."""

import pytest
import torch

from puna.alignment.qat import (
    GROUP,
    QATLinear,
    quantisation_aware,
    round_activations,
    round_weight,
)
from puna.core.errors import UsageError
from puna.model import Llama, LlamaConfig, cross_entropy_sum
from puna.model.linear import Linear


def model(**changes: int) -> Llama:
    fields = {"dim": 64, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "ffn_dim": 96}
    built = Llama(LlamaConfig(**fields | {"vocab_size": 31, "context": 32} | changes))
    built.init_weights(1)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.mul_(3)
    return built


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(1))


def test_weights_lie_on_fifteen_values_in_each_group() -> None:
    weight = normal(8, 96)
    rounded = round_weight(weight).unflatten(1, (-1, GROUP))
    groups = weight.unflatten(1, (-1, GROUP))
    scale = groups.abs().amax(-1, keepdim=True) / 7
    steps = rounded / scale
    torch.testing.assert_close(steps, steps.round(), atol=1e-5, rtol=0)
    assert steps.abs().max() <= 7 + 1e-5
    assert ((rounded - groups).abs() <= scale / 2 + 1e-6).all()
    torch.testing.assert_close(round_weight(rounded.flatten(1)), rounded.flatten(1))


def test_activations_lie_on_256_values_of_their_token() -> None:
    x = normal(2, 5, 64) * torch.logspace(-3, 3, 5)[:, None]
    rounded = round_activations(x)
    spread = x.amax(-1, keepdim=True) - x.amin(-1, keepdim=True)
    assert ((rounded - x).abs() <= spread / 255 * 0.51).all()
    assert all(len(row.unique()) <= 256 for row in rounded.flatten(0, 1))
    positive = round_activations(x.abs() + 1.0)  # the grid holds zero all the same
    assert ((positive - x.abs() - 1).abs() <= (x.abs().amax(-1, keepdim=True) + 1) / 255).all()


def test_gradients_pass_through_the_rounding() -> None:
    layer = QATLinear(64, 32)
    with torch.no_grad():
        layer.weight.copy_(normal(32, 64))
    x = normal(3, 64).requires_grad_()
    towards = torch.ones(3, 32)
    of_x, of_weight = torch.autograd.grad(layer(x), (x, layer.weight), towards)
    torch.testing.assert_close(of_x, towards @ round_weight(layer.weight.detach()))
    torch.testing.assert_close(of_weight, towards.T @ round_activations(x.detach()))


def test_training_with_the_rounding_leaves_a_better_rounded_model() -> None:
    ids = torch.randint(0, 31, (4, 16), generator=torch.Generator().manual_seed(2))
    labels = ids.roll(-1, 1)

    def loss(of: Llama) -> torch.Tensor:
        total, count = cross_entropy_sum(of.hidden(ids), of.head_weight(), labels)
        return total / count

    def train(of: Llama) -> None:
        optimizer = torch.optim.Adam(of.parameters(), lr=2e-3)
        for _ in range(30):
            optimizer.zero_grad()
            loss(of).backward()
            optimizer.step()

    plain, aware = model(), model()
    train(plain)
    with quantisation_aware(plain):
        after_rounding = float(loss(plain).detach())
    with quantisation_aware(aware):
        train(aware)
        foretold = float(loss(aware).detach())
    assert foretold < 0.9 * after_rounding
    names = list(model().state_dict())
    assert list(aware.state_dict()) == names
    assert {type(m) for m in aware.modules() if isinstance(m, Linear)} == {Linear}
    with quantisation_aware(aware):  # its weights are on the grid: rounding again changes nothing
        assert float(loss(aware).detach()) == pytest.approx(foretold, abs=1e-4)


@pytest.mark.parametrize("seed", range(3))
def test_training_finds_grid_points_whose_errors_cancel(seed: int) -> None:
    """Of correlated inputs many weights give nearly one product; the nearest grid points do not."""
    generator = torch.Generator().manual_seed(seed)
    mixed = torch.randn(8, 2 * GROUP, generator=generator) / 8**0.5
    inputs = torch.randn(512, 8, generator=generator) @ mixed
    exact = torch.randn(16, 2 * GROUP, generator=generator) / 8
    layer = QATLinear(2 * GROUP, 16)
    layer.weight = torch.nn.Parameter(exact.clone())

    def error() -> torch.Tensor:
        return (layer(inputs) - inputs @ exact.T).square().mean()

    nearest = error().item()
    optimizer = torch.optim.Adam(layer.parameters(), lr=3e-3)
    falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0.01, 200)
    for _ in range(200):
        optimizer.zero_grad()
        error().backward()
        optimizer.step()
        falling.step()
    assert error().item() < 0.5 * nearest  # 0.13 to 0.31 of it with eight seeds


def test_widths_that_groups_do_not_divide_are_refused() -> None:
    odd = model(ffn_dim=40)
    with pytest.raises(UsageError, match=r"mlp\.down_proj has 40 inputs, no multiple of 32"):
        quantisation_aware(odd).__enter__()
    assert {type(m) for m in odd.modules() if isinstance(m, Linear)} == {Linear}
