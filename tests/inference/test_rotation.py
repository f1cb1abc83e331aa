"""Rotated weights: another basis, the same model."""

import pytest
import torch
from tiny_engine import tiny_llama

from puna.inference import Engine, EngineConfig
from puna.inference.rotation import (
    Basis,
    Rotation,
    rotated,
    spread,
    spreading,
    unrotated_hidden,
)
from puna.inference.weights import Int8Rows, SpreadInt8Rows
from puna.model import Llama, LlamaConfig
from puna.tokenizer import Tokenizer


@pytest.mark.parametrize("size", [1, 7, 64, 96, 576, 1024])
def test_a_rotation_keeps_lengths_and_is_undone(size: int) -> None:
    turn = Rotation(size, torch.device("cpu"))
    x = torch.randn(5, size)
    turned = turn.apply(x)
    torch.testing.assert_close(turned.norm(dim=-1), x.norm(dim=-1), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(turn.undo(turned), x, rtol=1e-5, atol=1e-5)


def test_a_rotation_spreads_one_large_channel_over_all() -> None:
    x = torch.zeros(576)
    x[17] = 24.0
    assert Rotation(576, torch.device("cpu")).apply(x).abs().max() < 24.0 / 4


@pytest.mark.parametrize("size", [1, 7, 8, 64, 96, 704, 1536, 14336])
def test_spreading_is_orthogonal_and_the_same_compiled(size: int) -> None:
    torch.manual_seed(size)
    factor = spreading(size)
    left, right = torch.randn(3, size), torch.randn(5, size)
    spread_left, spread_right = spread(left, factor), spread(right, factor)
    # summed in double: fp32's own sums of so many numbers are not what is tested
    found, expected = (
        a.double() @ b.double().T for a, b in ((spread_left, spread_right), (left, right))
    )
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    compiled = torch.compile(spread, fullgraph=True)(left, factor)
    torch.testing.assert_close(compiled, spread_left, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("size", [64, 128, 256, 512, 704, 768, 1536, 2816, 8192, 14336])
def test_spreading_shares_an_outlier_among_64_channels(size: int) -> None:
    channels = torch.eye(size)[:: max(1, size // 48)]
    magnitudes = spread(channels, spreading(size)).abs()
    assert ((magnitudes > 0).sum(-1) == 64).all()
    torch.testing.assert_close(magnitudes.amax(-1), torch.full((len(channels),), 1 / 8))


def test_products_of_8_bits_are_closer_where_outliers_are_spread() -> None:
    torch.manual_seed(1)
    weight, x = torch.randn(64, 1536) * 0.02, torch.randn(40, 1536)
    x[:, 700] *= 300.0
    exact = x @ weight.T
    plain, even = (kind(weight)(x) for kind in (Int8Rows, SpreadInt8Rows))
    assert (even - exact).norm() < 0.4 * (plain - exact).norm()


@pytest.mark.parametrize("tied", [True, False])
def test_a_rotated_model_says_what_the_model_says(tied: bool) -> None:
    fields = {"dim": 48, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 64}
    size = {"vocab_size": 300, "context": 64, "tie_embeddings": tied}
    model = Llama(LlamaConfig.parse(fields | size, where="test"))
    model.init_weights(seed=3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape))
    ids = torch.randint(0, 300, (2, 20))
    turned = rotated(model)
    with torch.inference_mode():
        torch.testing.assert_close(turned(ids), model(ids), rtol=1e-4, atol=1e-4)
        restored = unrotated_hidden(model.model.norm.weight, turned.hidden(ids))
        torch.testing.assert_close(restored, model.hidden(ids), rtol=1e-4, atol=1e-4)


def tiny(tokenizer: Tokenizer) -> Llama:
    return tiny_llama(tokenizer.vocab_size, context=64, dim=64, noise=0.0)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(
        ["The llama eats grass. 2024-11-25", "17 + 25 = 42, said Ada."] * 30, 300, n_special=16
    )


def test_embeddings_of_rounded_rotated_weights_are_those_of_the_model(tokenizer: Tokenizer) -> None:
    model = tiny(tokenizer)
    with torch.no_grad():
        model.model.norm.weight.copy_(torch.rand(64) * 3)
    plain, rounded = (
        Engine(model, tokenizer, EngineConfig(weights=weights, cache_tokens=64))
        for weights in ("fp32", "w8a8")
    )
    prompts = [tokenizer.encode("The llama eats"), tokenizer.encode("grass")]
    similar = (plain.embed(prompts) * rounded.embed(prompts)).sum(-1)
    assert similar.min() > 0.995


def test_a_rotated_adapter_changes_a_rotated_weight_as_the_adapter_does(
    tokenizer: Tokenizer,
) -> None:
    """Exact but for fp32's sums: merged and then rotated is rotated and then merged."""
    model = tiny(tokenizer)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.copy_(torch.rand(64) * 3)
    basis, before = Basis(model), rotated(model).state_dict()
    products = [name for name in model.state_dict() if name.endswith("_proj.weight")]
    assert len(products) == 7 * 2
    added = {}
    with torch.no_grad():
        for name in products:
            weight, product = model.state_dict()[name], name.removesuffix(".weight")
            down, up = torch.randn(4, weight.shape[1]), torch.randn(weight.shape[0], 4)
            weight += up @ down
            added[name] = basis.outputs(product, up) @ basis.inputs(product, down)
    after = rotated(model).state_dict()
    for name, change in added.items():
        torch.testing.assert_close(after[name], before[name] + change, rtol=1e-4, atol=1e-4)
