"""Whatever is on and whatever runs beside it, a text is the one the plain model writes."""

import itertools
from collections import Counter

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_sampler import chi_square_is_small
from tiny_engine import CONTEXT, Build, Reference, greedy, run, tiny_llama
from transformers import LlamaConfig as PeerConfig
from transformers import LlamaForCausalLM

from puna.inference import Engine, EngineConfig, Request, Sampling, generate
from puna.model import Llama, LlamaConfig
from puna.tokenizer import Tokenizer

SYSTEM = list(range(40, 70))
PROMPTS = [
    [1, 2, 3],
    [*SYSTEM, 5],
    [*SYSTEM, 5, 6],
    [9],
    [7, 8, 9] * 12,
    [*SYSTEM[:17], 4],
    SYSTEM[:16],
]
OFF: dict[str, object] = {"prefix_cache": False, "max_rows": 1, "chunk_tokens": 512}
SETTINGS: dict[str, dict[str, object]] = {
    "alone": OFF,
    "batch": {**OFF, "max_rows": 64},
    "prefix cache": {"max_rows": 2},
    "chunked prefill": {"chunk_tokens": 8},
    "pages of one token": {"page_size": 1},
    "pages of 16": {"page_size": 16},
    "look-up": {"speculation": 4},
    "a cache for one text": {"cache_tokens": CONTEXT},
    "little room": {"cache_tokens": 2 * CONTEXT, "page_size": 4},
    "all at once": {
        **{"speculation": 3, "cache_tokens": 2 * CONTEXT, "page_size": 4},
        **{"chunk_tokens": 16, "max_rows": 5},
    },
}


@pytest.mark.parametrize("name", SETTINGS)
def test_greedy_text_is_that_of_the_plain_model(
    build: Build, reference: Reference, name: str
) -> None:
    engine = build(**SETTINGS[name])
    requests = [greedy(prompt, 30) for prompt in PROMPTS]
    expected = [reference(prompt, 30) for prompt in PROMPTS]
    assert run(engine, requests) == expected
    assert run(engine, requests[::-1]) == expected[::-1]  # with what the cache has kept
    assert engine.stats().pages_used == 0
    if SETTINGS[name].get("speculation"):
        assert engine.stats().drafted_tokens >= engine.stats().accepted_tokens > 0


@pytest.mark.parametrize("draft_seed", [3, 11])
@pytest.mark.parametrize("name", ["alone", "little room", "all at once"])
def test_a_draft_model_good_or_bad_does_not_change_text(
    build: Build, reference: Reference, tokenizer: Tokenizer, name: str, draft_seed: int
) -> None:
    """Seed 3 is the model itself: all its proposals are right."""
    draft = tiny_llama(tokenizer.vocab_size, draft_seed)
    engine = build(draft=draft, **{**SETTINGS[name], "speculation": 3})
    expected = [reference(prompt, 30) for prompt in PROMPTS]
    assert run(engine, [greedy(prompt, 30) for prompt in PROMPTS]) == expected
    if draft_seed == 3:  # a text of 30 has its 29 after the first in turns of 4
        stats = engine.stats()
        assert stats.accepted_tokens >= 0.6 * stats.generated_tokens


def test_shared_beginnings_are_read_once(build: Build) -> None:
    engine = build(max_rows=8)
    run(engine, [greedy([*SYSTEM, n], 2) for n in range(8)])
    stats = engine.stats()
    assert stats.cached_tokens == 7 * (len(SYSTEM) // 8 * 8)
    assert stats.prompt_tokens == 8 * 31 - stats.cached_tokens


@given(
    arrivals=st.lists(
        st.tuples(
            st.integers(0, len(PROMPTS) - 1),
            st.integers(0, 12),  # tokens asked
            st.integers(0, 3),  # turns before the next arrives
            st.one_of(st.none(), st.integers(0, 8)),  # turns until it is cancelled
        ),
        min_size=1,
        max_size=9,
    ),
    name=st.sampled_from(sorted(SETTINGS)),
)
@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
def test_any_schedule_of_arrivals_and_cancellations_gives_the_plain_text(
    build: Build, reference: Reference, arrivals: list[tuple[int, int, int, int | None]], name: str
) -> None:
    engine = build(**SETTINGS[name])
    found: dict[int, list[int]] = {}
    asked: dict[int, tuple[int, int]] = {}
    deadline: dict[int, int] = {}
    due, start = [], 0
    for which, n, pause, patience in arrivals:
        due.append((start, which, n, patience))
        start += pause
    for turn in itertools.count():
        while due and due[0][0] <= turn:
            _, which, n, patience = due.pop(0)
            handle = engine.submit(greedy(PROMPTS[which], n))
            asked[handle], found[handle] = (which, n), []
            if patience is not None:
                deadline[handle] = turn + patience
        for handle in [h for h, when in deadline.items() if when == turn]:
            engine.cancel(handle)
        if engine.idle and not due:
            break
        for handle, delta in engine.step():
            assert turn < deadline.get(handle, turn + 1)  # nothing comes after a cancellation
            found[handle].extend(delta.ids)
        assert turn < 2000
    for handle, (which, n) in asked.items():
        whole = reference(PROMPTS[which], n)
        cut = handle in deadline
        assert found[handle] == (whole[: len(found[handle])] if cut else whole)
    stats = engine.stats()
    assert (stats.pages_used, stats.waiting_tokens, stats.running, stats.waiting) == (0, 0, 0, 0)


@pytest.mark.parametrize("name", ["batch", "chunked prefill", "look-up", "all at once"])
def test_log_probabilities_are_the_training_models_in_any_batch(
    build: Build, model: Llama, name: str
) -> None:
    """In fp32, where sums in another order differ by some 1e-6."""
    engine = build(**SETTINGS[name])
    options: dict[str, object] = {"logprobs": 2, "prompt_logprobs": True}
    found = generate(engine, [greedy(prompt, 20, **options) for prompt in PROMPTS])
    for prompt, each in zip(PROMPTS, found, strict=True):
        whole = [*prompt, *each.ids]
        with torch.inference_mode():
            logprobs = torch.log_softmax(model(torch.tensor([whole]))[0].float(), -1)
        assert each.prompt_logprobs is not None
        assert each.prompt_logprobs[0] is None
        entries = [*each.prompt_logprobs[1:], *each.logprobs]
        assert [entry.id for entry in entries if entry] == whole[1:]
        for row, entry in zip(logprobs, entries, strict=False):
            assert entry is not None
            assert entry.logprob == pytest.approx(float(row[entry.id]), abs=1e-5)
            values, tokens = row.topk(2)
            assert [token for token, _ in entry.top] == tokens.tolist()
            assert [value for _, value in entry.top] == pytest.approx(values.tolist(), abs=1e-5)


def test_a_preempted_prompt_reports_each_log_probability_once(build: Build) -> None:
    engine = build(cache_tokens=48, chunk_tokens=8, page_size=4)
    first = engine.submit(greedy(range(1, 17), 30))
    second = engine.submit(greedy(range(20, 50), 1, prompt_logprobs=True))
    seen = {first: [], second: []}
    while not engine.idle:
        for handle, delta in engine.step():
            seen[handle].append(delta)
    (entries,) = [d.prompt_logprobs for d in seen[second] if d.prompt_logprobs is not None]
    assert [entry.id for entry in entries if entry] == list(range(21, 50))


def test_a_cache_in_8_bits_gives_nearly_the_same_probabilities(build: Build) -> None:
    exact = generate(build(), [greedy(p, 0, prompt_logprobs=True) for p in PROMPTS])
    engine = build(cache_weights="int8", chunk_tokens=8)
    close = generate(engine, [greedy(p, 0, prompt_logprobs=True) for p in PROMPTS])
    ours = [e.logprob for each in exact for e in each.prompt_logprobs or () if e]
    theirs = [e.logprob for each in close for e in each.prompt_logprobs or () if e]
    # keys and values are off by at most 1/254 of the greatest in their head
    torch.testing.assert_close(torch.tensor(theirs), torch.tensor(ours), atol=0.05, rtol=0)
    assert theirs != ours


def test_the_seed_fixes_sampled_text_in_any_batch(build: Build) -> None:
    def request(seed: int) -> Request:
        return greedy([7], 20, temperature=1.5, seed=seed, top_p=0.9, frequency_penalty=0.5)

    alone = [run(build(**OFF), [request(seed)])[0] for seed in range(12)]
    for name in ("batch", "look-up", "all at once"):
        assert run(build(**SETTINGS[name]), [request(seed) for seed in range(12)]) == alone
    assert len({tuple(text) for text in alone}) == 12


@pytest.mark.parametrize("with_draft", [False, True])
def test_speculation_leaves_the_distribution_of_sampled_text_as_it_is(
    build: Build, model: Llama, tokenizer: Tokenizer, with_draft: bool
) -> None:
    """The first two drawn tokens. A bias makes look-up guess right, top-k a draft of its own."""
    prompt = [5, 6, 7, 5, 6, 7, 5, 6]
    bias = {} if with_draft else dict.fromkeys((5, 6, 7), 200.0)
    options = {"temperature": 0.8 if with_draft else 3.0, "top_k": 3, "logit_bias": bias}
    draft = tiny_llama(tokenizer.vocab_size, 3) if with_draft else None
    engine = build(draft=draft, speculation=3, max_rows=256, cache_tokens=16384)
    drawn = generate(engine, [greedy(prompt, 3, seed=n, **options) for n in range(1000)])
    assert engine.stats().accepted_tokens > 0

    @torch.inference_mode()
    def distribution(ids: list[int]) -> dict[int, float]:
        logits = model(torch.tensor([ids]))[0, -1]
        logits[list(bias)] += 200.0
        values, tokens = logits.topk(3)
        shares = torch.softmax(values / options["temperature"], -1)
        return dict(zip(tokens.tolist(), shares.tolist(), strict=True))

    exact = {
        (one, two): p * q
        for one, p in distribution(prompt).items()
        for two, q in distribution([*prompt, one]).items()
    }
    often = [pair for pair, p in exact.items() if p > 0.01]  # chi-square wants several of each
    seen = [(each.ids[0], each.ids[1]) for each in drawn]
    assert set(seen) <= set(exact)
    rest = 1 - sum(exact[pair] for pair in often)
    places = Counter(often.index(pair) if pair in often else len(often) for pair in seen)
    assert chi_square_is_small(places, [*(exact[pair] for pair in often), max(rest, 0.0)])


def test_positions_beyond_the_trained_length_follow_the_configs_scaling(
    tokenizer: Tokenizer,
) -> None:
    """Llama 3.1's scaling, 24 trained positions, a text of 90: as transformers computes it."""
    fields = {"vocab_size": tokenizer.vocab_size, "dim": 32, "n_layers": 2, "n_heads": 4}
    scaling = {"factor": 8.0, "original_context": 24}
    shape = {"n_kv_heads": 2, "ffn_dim": 64, "context": 192, "rope_theta": 10_000.0}
    config = LlamaConfig.parse(fields | shape | {"rope_scaling": scaling}, where="test")
    model = Llama(config)
    model.init_weights(7)
    peer = LlamaForCausalLM(
        PeerConfig(
            vocab_size=tokenizer.vocab_size,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=192,
            rms_norm_eps=config.norm_eps,
            rope_parameters={
                "rope_type": "llama3",
                "rope_theta": 10_000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 24,
            },
        )
    ).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(5)  # else attention is too even for positions to matter
    peer.load_state_dict(model.state_dict())
    text = torch.randint(0, 300, (90,), generator=torch.manual_seed(2)).tolist()
    engine = Engine(model, tokenizer, EngineConfig(weights="fp32", chunk_tokens=16))
    options = Sampling(max_new_tokens=30, prompt_logprobs=True, logprobs=0)
    (found,) = generate(engine, [Request(text, options)])
    with torch.inference_mode():
        whole = torch.tensor([[*text, *found.ids]])
        expected = torch.log_softmax(peer(whole).logits[0, :-1], -1)
    ours = [e.logprob for e in [*(found.prompt_logprobs or ()), *found.logprobs] if e]
    theirs = expected.gather(1, whole[0, 1:, None])[:, 0].tolist()
    assert ours == pytest.approx(theirs, abs=2e-4)  # fp32 through weights 5 times the usual
    plain = Llama(config.model_copy(update={"rope_scaling": None}))
    plain.load_state_dict(model.state_dict())
    with torch.inference_mode():
        unscaled = torch.log_softmax(plain(whole)[0, :-1], -1)
    assert (unscaled - expected).abs().max() > 0.1  # so the scaling is what was compared
    assert found.ids == expected[len(text) - 1 :].argmax(-1).tolist()
