"""Products in 8 bits against those in full."""

import pytest
import torch

from puna.core.errors import UsageError
from puna.model import Llama, LlamaConfig, cross_entropy_sum
from puna.model.float8 import Float8Linear, set_float8
from puna.model.linear import Linear

STEP = 2**-4  # e4m3 has 3 bits behind the point: half a step of relative error at most
SHAPE = {"vocab_size": 64, "dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 96}


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    return float(((found.float() - expected).norm() / expected.norm()).detach())


@pytest.mark.parametrize("n_rows", [1, 16, 37])
@pytest.mark.parametrize("size", [1e-4, 1.0, 1e4])
def test_product_and_gradients_are_those_of_fp32_within_a_step(n_rows: int, size: float) -> None:
    generator = torch.Generator().manual_seed(n_rows)
    layer = Linear(64, 48)
    with torch.no_grad():
        layer.weight.normal_(0, 0.02, generator=generator)
    x = (size * torch.randn(n_rows, 64, generator=generator)).requires_grad_()
    towards = torch.randn(n_rows, 48, generator=generator)
    expected = layer(x)
    gradients = torch.autograd.grad((expected * towards).sum(), (x, layer.weight))
    layer.__class__ = Float8Linear
    found = layer(x.bfloat16())
    coarse = torch.autograd.grad((found * towards).sum(), (x, layer.weight))
    assert relative(found, expected) < STEP
    for ours, exact in zip(coarse, gradients, strict=True):
        assert relative(ours, exact) < 2 * STEP  # e5m2 has a bit less


def loss_of(model: Llama, ids: torch.Tensor) -> torch.Tensor:
    loss, count = cross_entropy_sum(model.hidden(ids[:, :-1]), model.head_weight(), ids[:, 1:])
    return loss / count


def test_a_model_learns_in_8_bits_what_it_learns_in_bf16() -> None:
    ids = torch.randint(0, 64, (4, 33), generator=torch.Generator().manual_seed(1))
    ends = []
    for on in (False, True):
        model = Llama(LlamaConfig(**SHAPE))
        model.init_weights(seed=1)
        model.compute_dtype = torch.bfloat16
        set_float8(model, on=on)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        first = float(loss_of(model, ids).detach())
        for _ in range(25):
            loss_of(model, ids).backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append(float(loss_of(model, ids).detach()))
        assert ends[-1] < first / 4
    assert ends[1] == pytest.approx(ends[0], abs=0.1)


def test_only_products_of_blocks_change_and_all_change_back() -> None:
    model = Llama(LlamaConfig(**SHAPE))
    model.init_weights(seed=1)
    ids = torch.arange(32)[None]
    with torch.no_grad():
        before = model(ids)
        names = list(model.state_dict())
        set_float8(model, on=True)
        assert sum(type(m) is Float8Linear for m in model.modules()) == 14
        assert type(model.lm_head) is Linear
        assert list(model.state_dict()) == names
        set_float8(model, on=False)
        assert torch.equal(model(ids), before)


def test_a_width_the_hardware_cannot_do_is_named() -> None:
    with pytest.raises(
        UsageError, match=r"multiples of 16; model\.layers\.0\.mlp\.gate_proj has \(100, 64\)"
    ):
        set_float8(Llama(LlamaConfig(**SHAPE | {"ffn_dim": 100})), on=True)
