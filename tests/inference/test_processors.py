"""Formats of weights on processors with and without bf16 and integer products."""

from collections.abc import Callable

import pytest
import torch
from tiny_engine import tiny_llama

from puna.core.devices import fast_bf16, fast_int8
from puna.inference import Engine, EngineConfig, Request, Sampling, generate, weights
from puna.inference.weights import Int8Rows, activation_dtype, quantised_rows
from puna.model import Llama
from puna.tokenizer import Tokenizer

Be = Callable[[bool, bool], None]
# (bf16 products, integer products): as Zen 4 and later, as Ice Lake, and with AVX2 only
KINDS = [(True, True), (False, True), (False, False)]
NAMES = ["bf16 and VNNI", "VNNI", "neither"]
# what this processor lacks cannot be played: kernels refuse, sums overflow
BF16_HERE, INTEGERS_HERE = fast_bf16("cpu"), fast_int8()
# twice what rounding the weights, and bf16 activations, move this model's log-probabilities by
NEAR = {"bf16": 0.02, "int8": 0.02, "int4": 0.15, "w8a8": 0.05}


@pytest.fixture
def be(monkeypatch: pytest.MonkeyPatch) -> Be:
    def patch(has_bf16: bool, has_integers: bool) -> None:
        monkeypatch.setattr("puna.core.devices.fast_bf16", lambda _: has_bf16 and BF16_HERE)
        monkeypatch.setattr(weights, "fast_int8", lambda: has_integers and INTEGERS_HERE)

    return patch


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["The llama eats grass. 2026-11-27"] * 30, 280, n_special=16)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Llama:
    return tiny_llama(tokenizer.vocab_size, context=64, dim=64, noise=0.0)


def logprobs(model: Llama, tokenizer: Tokenizer, **settings: object) -> torch.Tensor:
    """Of prompts, and of an answer that is forced: of several rows, then of one."""
    fields = {"cache_tokens": 512, "page_size": 16, **settings}
    engine = Engine(model, tokenizer, EngineConfig.parse(fields, where="test"))
    sampling = Sampling(max_new_tokens=4, logprobs=0, prompt_logprobs=True, logit_bias={7: 1000.0})
    prompts = [[5 + (row + 3 * n) % 250 for n in range(12 + row)] for row in range(3)]
    requests = [Request(prompt, sampling) for prompt in prompts]
    made = [*generate(engine, requests), *generate(engine, requests[:1])]
    entries = [e for each in made for e in (*(each.prompt_logprobs or [])[1:], *each.logprobs)]
    return torch.tensor([entry.logprob for entry in entries if entry is not None])


@pytest.mark.parametrize("form", NEAR)
@pytest.mark.parametrize(("has_bf16", "has_integers"), KINDS, ids=NAMES)
def test_every_format_says_what_the_model_says(
    model: Llama, tokenizer: Tokenizer, be: Be, has_bf16: bool, has_integers: bool, form: str
) -> None:
    exact = logprobs(model, tokenizer, weights="fp32")
    be(has_bf16, has_integers)
    ways: list[dict[str, object]] = [{}, {"packed_copy": True}]
    for more in [*ways, {"compile": True}] if form == "bf16" and not has_bf16 else ways:
        found = logprobs(model, tokenizer, weights=form, **more)
        assert 0 < (found - exact).abs().mean() < NEAR[form]


@pytest.mark.parametrize(("has_bf16", "has_integers"), KINDS, ids=NAMES)
def test_rows_of_8_bits_are_multiplied_to_the_same_numbers(
    be: Be, has_bf16: bool, has_integers: bool
) -> None:
    be(has_bf16, has_integers)
    torch.manual_seed(0)
    layer = Int8Rows(torch.randn(32, 64))
    rows, _ = quantised_rows(torch.randn(5, 64))
    rows[0] = 255  # sums of 16 bits would overflow
    exact = (rows.double() - 128) @ layer.weight.double().T * layer.scale.double()
    found = layer.multiply(rows)
    assert found.dtype == activation_dtype("w8a8", "cpu")
    tolerance = 1e-6 if found.dtype == torch.float32 else 2**-8
    torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance)


def test_bf16_weights_take_half_the_memory_whatever_computes(
    model: Llama, tokenizer: Tokenizer, be: Be
) -> None:
    be(False, False)
    engines = [
        Engine(model, tokenizer, EngineConfig(weights=form, cache_tokens=64))
        for form in ("bf16", "fp32")
    ]
    half, full = (sum(p.nbytes for p in engine.model.parameters()) for engine in engines)
    assert half == full // 2
    assert engines[0].model.dtype == torch.float32
