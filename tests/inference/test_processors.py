"""Formats of weights on processors with and without bf16 and integer products."""

from collections.abc import Callable
from functools import cache

import pytest
import torch
from tiny_engine import tiny_llama

from puna.core.devices import fast_bf16, fast_int8
from puna.inference import (
    Engine,
    EngineConfig,
    Request,
    Sampling,
    generate,
    int4,
    integers,
    packed,
    vnni,
)
from puna.inference.integers import fast_pairs
from puna.inference.packed import fast_halves
from puna.inference.runner import Runner
from puna.inference.weights import Int8Rows, activation_dtype
from puna.model import Llama
from puna.tokenizer import Tokenizer

Be = Callable[[str], None]
# what products have hardware or a kernel: as Zen 4 and later, as Sapphire Rapids, as Ice Lake, with
# AVX2 only, and as processors for which FBGEMM is not made
KINDS: dict[str, set[str]] = {
    "bf16 and VNNI": {"bf16", "int4", "int8", "panels", "halves"},
    "bf16, VNNI and AMX": {"bf16", "int4", "int8", "halves"},
    "VNNI": {"int8", "panels", "halves"},
    "VNNI, no compiler": {"int8", "halves"},
    "AVX2": {"pairs", "halves"},
    "none": set(),
}


@cache
def here() -> dict[str, bool]:
    """What this processor lacks cannot be played: kernels refuse, sums overflow."""
    return {
        "bf16": fast_bf16("cpu"),
        "int4": int4.has_kernel(compiles=True),
        "int8": fast_int8(),
        "panels": all(vnni.find(made, compiles=True) for made in (torch.float32, torch.bfloat16)),
        "pairs": fast_pairs(),
        "halves": fast_halves(),
    }


# twice what rounding the weights, and bf16 activations, move this model's log-probabilities by
NEAR = {"bf16": 0.02, "int8": 0.02, "int4": 0.15, "w8a8": 0.05}


@pytest.fixture
def be(monkeypatch: pytest.MonkeyPatch) -> Be:
    def patch(kind: str) -> None:
        has = {what: there and what in KINDS[kind] for what, there in here().items()}
        monkeypatch.setattr("puna.core.devices.fast_bf16", lambda _: has["bf16"])
        if not has["int4"]:
            monkeypatch.setattr(int4, "has_kernel", lambda **_: False)
        monkeypatch.setattr(integers, "fast_int8", lambda: has["int8"])
        monkeypatch.setattr(integers, "fast_panels", lambda *_, **__: has["panels"])
        monkeypatch.setattr(integers, "fast_pairs", lambda: has["pairs"])
        monkeypatch.setattr(packed, "fast_halves", lambda: has["halves"])

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
@pytest.mark.parametrize("kind", KINDS)
def test_every_format_says_what_the_model_says(
    model: Llama, tokenizer: Tokenizer, be: Be, kind: str, form: str
) -> None:
    exact = logprobs(model, tokenizer, weights="fp32")
    be(kind)
    ways: list[dict[str, object]] = [{}, {"packed_copy": True}]
    if kind != "VNNI, no compiler" and (
        form == "w8a8"
        or (form == "bf16" and "bf16" not in KINDS[kind])
        or (form == "int4" and kind == "VNNI")
    ):
        ways.append({"compile": True})
    for more in ways:
        found = logprobs(model, tokenizer, weights=form, **more)
        assert 0 < (found - exact).abs().mean() < NEAR[form]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("inputs", "outputs"), [(64, 32), (33, 17), (1200, 40), (1200, 128), (576, 192)]
)
def test_integers_are_multiplied_to_the_same_numbers(
    be: Be, kind: str, inputs: int, outputs: int
) -> None:
    be(kind)
    torch.manual_seed(0)
    made = activation_dtype("w8a8", "cpu")
    weight = torch.randn(outputs, inputs)
    kernel = integers.integer_kernel(weight.shape, made)
    panels = here()["panels"] and "panels" in KINDS[kind] and outputs % 64 == 0
    assert (kernel is integers._Panels) is panels
    # sums of 16 bits overflow first where neighbours are large, and where both are rounded up
    weight[0], weight[1] = 1.0, -1.0
    weight[2, ::2], weight[2, 1::2] = 91.5, 89.5
    scale = kernel.scales(weight)
    whole = (weight / scale[:, None]).round().to(torch.int8)
    rows, _ = kernel.rounding.apply(torch.randn(5, inputs))
    steps, zero = kernel.rounding.steps, kernel.rounding.zero
    rows[0], rows[1] = zero + steps, zero - steps
    found = kernel(whole, scale, made)(rows)
    exact = (rows.double() - zero) @ whole.double().T * scale.double()
    assert found.dtype == made
    tolerance = 1e-6 if found.dtype == torch.float32 else 2**-8
    torch.testing.assert_close(found.double(), exact, rtol=tolerance, atol=tolerance)


def test_what_pairs_are_rounded_to_fits_in_16_bits() -> None:
    torch.manual_seed(0)
    halves = torch.tensor([91.5, 89.5]).repeat(1, 32)
    weight = torch.cat((torch.randn(400, 64), halves, torch.zeros(1, 64)))
    scale = integers._Pairs.scales(weight)
    whole = (weight / scale[:, None]).round().abs()
    largest_byte = 2 * integers._Pairs.rounding.steps
    assert whole.max() <= 127
    largest_pair = whole.unflatten(1, (-1, 2)).sum(-1).max()
    assert largest_byte * largest_pair < 2**15 <= largest_byte * (largest_pair + 1)


def test_a_product_kept_only_packed_is_counted(model: Llama, be: Be) -> None:
    sizes = []
    for kind in ("none", "AVX2"):
        be(kind)
        runner = Runner(model, "w8a8", n_pages=2, page_size=16)
        sizes.append(runner.weight_bytes)
        # without a kernel of its own the product reads the weights that are kept anyway
        alone = fast_pairs() and kind == "AVX2"
        assert bool(Int8Rows(torch.ones(2, 2)).packed_bytes) is alone
    assert sizes[0] == sizes[1]


def test_bf16_weights_take_half_the_memory_whatever_computes(
    model: Llama, tokenizer: Tokenizer, be: Be
) -> None:
    be("none")
    engines = [
        Engine(model, tokenizer, EngineConfig(weights=form, cache_tokens=64))
        for form in ("bf16", "fp32")
    ]
    half, full = (sum(p.nbytes for p in engine.model.parameters()) for engine in engines)
    assert half == full // 2
    assert engines[0].model.dtype == torch.float32
