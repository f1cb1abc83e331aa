import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from puna.core.errors import UsageError
from puna.inference import Sampling, generate, stream
from puna.inference.sampling import choose
from puna.model import Llama, LlamaConfig

NEVER = frozenset[int]()


@pytest.fixture(scope="module")
def model() -> Llama:
    fields = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 48}
    built = Llama(LlamaConfig.parse(fields | {"vocab_size": 61, "context": 48}, where="test"))
    built.init_weights(seed=3)
    with torch.no_grad():
        for parameter in built.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return built.eval()


def without_cache(model: Llama, prompt: list[int], n: int) -> list[int]:
    ids = list(prompt)
    for _ in range(n):
        ids.append(int(model(torch.tensor([ids]))[0, -1].argmax()))
    return ids[len(prompt) :]


def test_greedy_text_equals_the_text_without_a_cache(model: Llama) -> None:
    prompts = [[1, 2, 3], [9], list(range(20)), [4, 4]]
    found = generate(model, prompts, Sampling(max_new_tokens=12), NEVER)
    assert [g.ids for g in found] == [without_cache(model, p, 12) for p in prompts]
    assert not any(g.stopped for g in found)


def test_batches_do_not_change_the_text(model: Llama) -> None:
    prompts = [[i, i + 1, *range(i % 7)] for i in range(10)]
    options = Sampling(max_new_tokens=8)
    one = generate(model, prompts, options, NEVER, batch_size=1)
    assert generate(model, prompts, options, NEVER, batch_size=4) == one


def test_a_stop_token_ends_the_text_and_is_not_part_of_it(model: Llama) -> None:
    free = without_cache(model, [5, 6], 10)
    stop = free[4]
    (found,) = generate(model, [[5, 6]], Sampling(max_new_tokens=10), frozenset({stop}))
    assert found.stopped
    assert found.ids == free[: free.index(stop)]
    assert list(stream(model, [5, 6], Sampling(max_new_tokens=10), frozenset({stop}))) == found.ids


def test_text_ends_where_the_context_does(model: Llama) -> None:
    (found,) = generate(model, [[1] * 40], Sampling(max_new_tokens=100), NEVER)
    assert len(found.ids) == 8
    assert not found.stopped


def test_a_long_prompt_in_the_list_does_not_cut_the_others_short(model: Llama) -> None:
    options = Sampling(max_new_tokens=20)
    short, long = generate(model, [[1, 2], [1] * 44], options, NEVER)
    assert (len(short.ids), len(long.ids)) == (20, 4)


@pytest.mark.parametrize(("prompt", "message"), [([], "empty"), ([1] * 48, "48 tokens")])
def test_a_prompt_that_does_not_fit_says_so(model: Llama, prompt: list[int], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        generate(model, [prompt], Sampling(), NEVER)
    with pytest.raises(UsageError, match=message):
        next(stream(model, prompt, Sampling(), NEVER))


def test_the_seed_fixes_sampled_text(model: Llama) -> None:
    def drawn(seed: int) -> list[int]:
        options = Sampling(max_new_tokens=20, temperature=1.5, seed=seed)
        return list(stream(model, [7], options, NEVER))

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


@given(
    st.lists(st.floats(-5, 5), min_size=2, max_size=12),
    st.floats(0.05, 1.0),
    st.floats(0.2, 3.0),
)
def test_nucleus_keeps_the_fewest_tokens_that_reach_the_mass(
    logits: list[float], top_p: float, temperature: float
) -> None:
    probabilities = torch.softmax(torch.tensor([logits]) / temperature, -1)[0]
    ordered = sorted(range(len(logits)), key=lambda i: -float(probabilities[i]))
    allowed, mass = set(), 0.0
    for token in ordered:
        if mass >= top_p + 1e-6:  # float sums: a token on the border may be in or out
            break
        allowed.add(token)
        mass += float(probabilities[token])
    options = Sampling(temperature=temperature, top_p=top_p)
    generator = torch.Generator().manual_seed(0)
    rows = torch.tensor([logits] * 64)
    ties = {i for i in range(len(logits)) if logits[i] in {logits[j] for j in allowed}}
    assert set(choose(rows, options, generator).tolist()) <= ties


def test_sampling_follows_the_probabilities() -> None:
    rows = torch.log(torch.tensor([[0.5, 0.3, 0.2]])).expand(20_000, 3)
    drawn = choose(rows, Sampling(temperature=1.0), torch.Generator().manual_seed(4))
    shares = torch.bincount(drawn, minlength=3) / 20_000
    # Three standard deviations of a share over 20,000 draws are 0.011.
    torch.testing.assert_close(shares, torch.tensor([0.5, 0.3, 0.2]), atol=0.011, rtol=0)
