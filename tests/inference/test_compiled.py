"""Compiled decoding: the same text, whatever the numbers of rows and positions."""

import pytest
import torch
from torch import Tensor

from puna.inference import Engine, EngineConfig, Request, Sampling, generate
from puna.inference.attention import fusion_barrier
from puna.inference.compiled import Step
from puna.model import Llama, LlamaConfig
from puna.tokenizer import Tokenizer

TEXTS = ["The llama eats grass. 2024-11-25", "17 + 25 = 42, said Ada."] * 30


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS, 300, n_special=16)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Llama:
    fields = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 64}
    size = {"vocab_size": tokenizer.vocab_size, "context": 256}
    built = Llama(LlamaConfig.parse(fields | size, where="test"))
    built.init_weights(seed=5)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
    return built


# fp32 rounding differs by 1e-5; it may tip an int8 entry to the next step, of 1/127 of its head
@pytest.mark.parametrize(("cache_weights", "tolerance"), [("auto", 1e-4), ("int8", 1e-2)])
def test_compiled_text_equals_the_plain_one_for_all_numbers_of_rows_and_positions(
    model: Llama, tokenizer: Tokenizer, cache_weights: str, tolerance: float
) -> None:
    shared = {"cache_tokens": 4096, "cache_weights": cache_weights, "weights": "fp32"}
    plain = Engine(model, tokenizer, EngineConfig.parse(shared, where="test"))
    fast = {"compile": True, "packed_copy": True}
    compiled = Engine(model, tokenizer, EngineConfig.parse(shared | fast, where="test"))
    # The first call has as many rows as positions and as heads' numbers: no size may stand for
    # another afterwards.
    for rows, length in [(8, 7), (16, 15), (2, 30), (1, 3), (1, 40), (7, 9), (33, 20), (3, 200)]:
        sampling = Sampling(max_new_tokens=6, logprobs=0, ignore_stop_tokens=True)
        prompts = [[1 + (rows + row * 7 + n) % 250 for n in range(length)] for row in range(rows)]
        requests = [Request(prompt, sampling) for prompt in prompts]
        for ours, theirs in zip(
            generate(compiled, requests), generate(plain, requests), strict=True
        ):
            assert ours.ids == theirs.ids
            for one, other in zip(ours.logprobs, theirs.logprobs, strict=True):
                assert one.logprob == pytest.approx(other.logprob, abs=tolerance)


# heads of several lines of a CPU's cache, whose values lie in parts
@pytest.mark.parametrize(("cache_weights", "tolerance"), [("auto", 1e-4), ("int8", 2e-2)])
def test_compiled_text_equals_the_plain_one_where_values_lie_in_parts(
    tokenizer: Tokenizer, cache_weights: str, tolerance: float
) -> None:
    fields = {"dim": 256, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "ffn_dim": 64}
    size = {"vocab_size": tokenizer.vocab_size, "context": 256}
    wide = Llama(LlamaConfig.parse(fields | size, where="test"))
    wide.init_weights(seed=6)
    with torch.no_grad():
        for parameter in wide.parameters():
            parameter.mul_(4)  # so that attention counts
    shared = {"cache_tokens": 512, "cache_weights": cache_weights, "weights": "fp32"}
    plain = Engine(wide, tokenizer, EngineConfig.parse(shared, where="test"))
    compiled = Engine(wide, tokenizer, EngineConfig.parse(shared | {"compile": True}, where="test"))
    sampling = Sampling(max_new_tokens=6, logprobs=0, logit_bias={7: 1000.0})
    for rows in (1, 3):
        prompts = [[1 + (row * 7 + n) % 250 for n in range(40 + row)] for row in range(rows)]
        requests = [Request(prompt, sampling) for prompt in prompts]
        for ours, theirs in zip(
            generate(compiled, requests), generate(plain, requests), strict=True
        ):
            for one, other in zip(ours.logprobs, theirs.logprobs, strict=True):
                assert one.logprob == pytest.approx(other.logprob, abs=tolerance)


@pytest.mark.parametrize("weights", ["bf16", "int8", "int4", "w8a8"])
def test_compiled_log_probabilities_are_the_plain_ones_in_every_format_of_weights(
    model: Llama, tokenizer: Tokenizer, weights: str
) -> None:
    shared = {"cache_tokens": 512, "weights": weights}
    plain = Engine(model, tokenizer, EngineConfig.parse(shared, where="test"))
    fast = shared | {"compile": True}
    compiled = Engine(model, tokenizer, EngineConfig.parse(fast, where="test"))
    prompt = tokenizer.encode("Ada eats grass")
    for rows in (1, 3):
        # forced along one text, so that a near tie decided otherwise changes nothing after it
        sampling = Sampling(max_new_tokens=6, logprobs=0, logit_bias={7: 1000.0})
        requests = [Request(prompt[row:], sampling) for row in range(rows)]
        pairs = zip(generate(compiled, requests), generate(plain, requests), strict=True)
        for ours, theirs in pairs:
            assert ours.ids == theirs.ids == [7] * 6
            mine = torch.tensor([entry.logprob for entry in ours.logprobs])
            other = torch.tensor([entry.logprob for entry in theirs.logprobs])
            # bf16 has 8 bits: logits of size 4 are rounded by about 0.01 in each of few layers
            torch.testing.assert_close(mine, other, atol=0.08, rtol=0)


def test_engines_of_two_models_in_one_process_keep_to_their_own(
    model: Llama, tokenizer: Tokenizer
) -> None:
    config = EngineConfig(cache_tokens=512, weights="fp32", compile=True)
    other_rope = model.config.model_copy(update={"rope_theta": 100.0, "norm_eps": 0.1})
    other = Llama(other_rope)
    other.load_state_dict(model.state_dict())
    request = Request(tokenizer.encode("Ada eats"), Sampling(max_new_tokens=3, logprobs=0))
    engines = [Engine(each, tokenizer, config) for each in (model, other)]
    for engine, each in zip(engines, (model, other), strict=True):
        (found,) = generate(engine, [request])
        ids = [*request.prompt, *found.ids]
        logits = each(torch.tensor([ids]))[0, len(request.prompt) - 1 : -1]
        expected = logits.log_softmax(-1).gather(1, torch.tensor(found.ids)[:, None])[:, 0]
        ours = torch.tensor([entry.logprob for entry in found.logprobs])
        torch.testing.assert_close(ours, expected, atol=1e-4, rtol=0)


def test_sizes_that_vary_are_not_taken_for_each_other() -> None:
    step = Step("sums", "", lambda a, b: a.sum(1)[:, None] + b.sum(1)[None], {0: [0, 1], 1: [0, 1]})
    for shape in ((4, 4, 4, 4), (3, 5, 2, 7), (9, 2, 6, 4)):
        a, b = torch.randn(*shape[:2]), torch.randn(*shape[2:])
        torch.testing.assert_close(step(a, b), a.sum(1)[:, None] + b.sum(1)[None])


def test_inductors_code_finds_the_memory_it_worked_in() -> None:
    def chained(x: Tensor) -> Tensor:
        inner = fusion_barrier(torch.sin(x) + x)
        return inner * inner.mean(1, keepdim=True)

    step = Step("chained", "", chained, {0: [0]})
    for rows in (3, 3, 5, 5, 5):
        x = torch.randn(rows, 64)
        torch.testing.assert_close(step(x), chained(x))
    assert step._compiled is not None
    assert step._compiled._code is not None
    assert step._compiled._code.keeps
