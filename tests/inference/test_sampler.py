"""Choices against closed-form distributions."""

import math
from collections import Counter
from collections.abc import Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from puna.inference.sampler import SMALL_VOCABULARY, Chooser, choose, top_logprobs
from puna.inference.sampling import Sampling

DRAWS = 4000
LOGITS = [2.0, 1.0, 0.5, 0.0, -0.5, -1.0, 1.5, 0.2]
WRITTEN = (1, 1, 6)
PROMPT = (0, 3)


def sampling(**fields: object) -> Sampling:
    return Sampling.parse({"temperature": 1.0, **fields}, where="test")


def softmax(logits: Sequence[float], temperature: float = 1.0) -> list[float]:
    weights = [math.exp(x / temperature) for x in logits]
    return [w / sum(weights) for w in weights]


def only(probabilities: Sequence[float], kept: set[int]) -> list[float]:
    total = sum(p for n, p in enumerate(probabilities) if n in kept)
    return [p / total if n in kept else 0.0 for n, p in enumerate(probabilities)]


def repeated(x: float, strength: float) -> float:
    return x / strength if x > 0 else x * strength


def expected(case: str) -> tuple[Sampling, list[float]]:
    """Settings and the distribution that their definitions give, by hand."""
    plain = softmax(LOGITS)  # in falling order: tokens 0, 6, 1, 2, 7, 3, 4, 5
    counts = Counter(WRITTEN)
    match case:
        case "temperature":
            return sampling(temperature=0.7), softmax(LOGITS, 0.7)
        case "top-k":
            return sampling(top_k=3), only(plain, {0, 6, 1})
        case "top-p":  # .40 + .24 < .7 <= .40 + .24 + .15
            return sampling(top_p=0.7), only(plain, {0, 6, 1})
        case "min-p":  # a fifth of the first: exp(-1.5) = .22 is in, exp(-1.8) = .17 is out
            return sampling(min_p=0.2), only(plain, {0, 6, 1, 2})
        case "top-k, then top-p of what is left":  # .48 + .29 < .8 <= all three
            return sampling(top_k=3, top_p=0.6), only(plain, {0, 6})
        case "presence":
            return sampling(presence_penalty=1.2), softmax(
                [x - 1.2 * (n in counts) for n, x in enumerate(LOGITS)]
            )
        case "frequency":
            return sampling(frequency_penalty=0.8), softmax(
                [x - 0.8 * counts[n] for n, x in enumerate(LOGITS)]
            )
        case "repetition":
            return sampling(repetition_penalty=1.7), softmax(
                [repeated(x, 1.7) if n in {*WRITTEN, *PROMPT} else x for n, x in enumerate(LOGITS)]
            )
        case _:
            return sampling(logit_bias={4: 2.0, 0: -3.0}), softmax(
                [x + {4: 2.0, 0: -3.0}.get(n, 0.0) for n, x in enumerate(LOGITS)]
            )


CASES = [
    *("temperature", "top-k", "top-p", "min-p", "top-k, then top-p of what is left"),
    *("presence", "frequency", "repetition", "logit bias"),
]


def chooser_for(options: Sampling, seed: int) -> Chooser:
    made = Chooser(options.model_copy(update={"seed": seed}), PROMPT)
    for token in WRITTEN:
        made.accept(token)
    return made


def chi_square_is_small(observed: Counter[int], probabilities: Sequence[float]) -> bool:
    """Below the value that a true distribution passes once in a million times.

    By Wilson and Hilferty (1931) the cube root of chi-square over its degrees is normal.
    """
    n = observed.total()
    kept = [k for k, p in enumerate(probabilities) if p > 0]
    assert set(observed) <= set(kept)
    statistic = sum(
        (observed[k] - n * probabilities[k]) ** 2 / (n * probabilities[k]) for k in kept
    )
    degrees = len(kept) - 1
    spread = 2 / (9 * degrees)
    return statistic < degrees * (1 - spread + 4.75 * math.sqrt(spread)) ** 3


@pytest.mark.parametrize("case", CASES)
def test_draws_follow_the_distribution_that_the_settings_define(case: str) -> None:
    options, probabilities = expected(case)
    choosers = [chooser_for(options, seed) for seed in range(DRAWS)]
    observed = Counter(choose(torch.tensor(LOGITS).expand(DRAWS, -1), choosers))
    assert chi_square_is_small(observed, probabilities)


def test_the_stream_of_one_seed_follows_the_distribution_too() -> None:
    chooser = Chooser(sampling(), PROMPT)
    logits = torch.tensor([LOGITS])
    observed = Counter(choose(logits, [chooser])[0] for _ in range(DRAWS))
    assert chi_square_is_small(observed, softmax(LOGITS))


@pytest.mark.parametrize("options", [{}, {"top_p": 0.9}, {"top_k": 1500}, {"min_p": 1e-3}])
def test_a_large_vocabulary_is_drawn_from_as_if_it_were_sorted_whole(
    options: dict[str, float],
) -> None:
    """More tokens than the candidates looked at first, and a last block that is not full."""
    size = SMALL_VOCABULARY + 10
    logits = torch.linspace(3, -3, size)[torch.randperm(size, generator=torch.manual_seed(1))]
    order = logits.argsort(descending=True).tolist()
    plain = torch.softmax(logits.double(), -1).tolist()
    kept, mass = set(), 0.0
    for place, token in enumerate(order):
        if place == options.get("top_k", size) or mass >= options.get("top_p", 1.0):
            break
        if plain[token] >= options.get("min_p", 0.0) * plain[order[0]]:
            kept.add(token)
        mass += plain[token]
    choosers = [Chooser(sampling(seed=n, **options), ()) for n in range(DRAWS)]
    drawn = choose(logits.expand(DRAWS, -1), choosers)
    groups = 20  # tokens in order of probability, pooled so that each pool is drawn often
    pool = {token: place * groups // len(order) for place, token in enumerate(order)}
    pooled = [0.0] * groups
    for token, p in enumerate(only(plain, kept)):
        pooled[pool[token]] += p
    assert set(drawn) <= kept
    assert chi_square_is_small(Counter(pool[token] for token in drawn), pooled)


@given(
    logits=st.lists(st.floats(-30, 30), min_size=2, max_size=150),
    top_k=st.integers(0, 5),
    top_p=st.floats(0.05, 1.0),
    min_p=st.floats(0, 1),
    temperature=st.floats(0, 3),
)
@settings(max_examples=60)
def test_extreme_draws_stay_among_the_tokens_that_pass(
    logits: list[float], top_k: int, top_p: float, min_p: float, temperature: float
) -> None:
    """Also those that fp32 would round up to 1."""
    options = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    shares = torch.softmax(torch.tensor(logits).double() / max(temperature, 1e-5), -1).tolist()
    best = max(shares)
    for draw in (0.0, 0.5, 1 - 2**-53):
        chooser = Chooser(options, ())
        chooser.draw = lambda draw=draw: draw  # type: ignore[method-assign]
        (token,) = choose(torch.tensor([logits]), [chooser])
        above = sum(share > shares[token] * (1 + 1e-6) for share in shares)
        assert not top_k or above < top_k
        assert shares[token] >= min_p * best * (1 - 1e-5)
        assert sum(s for s in shares if s > shares[token] * (1 + 1e-6)) < top_p + 1e-6
        if temperature == 0 or min_p == 1:
            assert shares[token] >= best * (1 - 1e-5)


@given(
    rows=st.lists(
        st.fixed_dictionaries(
            {
                "temperature": st.sampled_from([0.0, 0.5, 1.0]),
                "top_k": st.sampled_from([0, 2]),
                "top_p": st.sampled_from([0.5, 1.0]),
                "min_p": st.sampled_from([0.0, 0.3]),
                "repetition_penalty": st.sampled_from([1.0, 1.5]),
                "frequency_penalty": st.sampled_from([0.0, 1.0]),
                "logit_bias": st.sampled_from([{}, {2: 1.5}]),
                "seed": st.integers(0, 50),
            }
        ),
        min_size=1,
        max_size=6,
    ),
    dtype=st.sampled_from([torch.float32, torch.bfloat16]),
)
@settings(max_examples=60)
def test_a_row_is_chosen_alike_alone_and_beside_any_others(
    rows: list[dict[str, object]], dtype: torch.dtype
) -> None:
    logits = torch.randn(len(rows), 200, generator=torch.manual_seed(0)).to(dtype)
    before = logits.clone()
    options = [Sampling.parse(row, where="test") for row in rows]
    together = choose(logits, [chooser_for(o, o.seed) for o in options])
    alone = [choose(logits[n : n + 1], [chooser_for(o, o.seed)])[0] for n, o in enumerate(options)]
    assert together == alone
    assert torch.equal(logits, before)


@pytest.mark.parametrize("size", [5, 64, 130, 1000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_greedy_takes_the_first_of_the_greatest(size: int, dtype: torch.dtype) -> None:
    logits = torch.randn(40, size, generator=torch.manual_seed(size)).to(dtype)
    found = choose(logits, [Chooser(Sampling(), ())] * 40)
    assert found == [row.index(max(row)) for row in logits.tolist()]


def test_reported_probabilities_are_the_models_own() -> None:
    """Before temperature and filters, best first, more asked than there are tokens."""
    (entry,) = top_logprobs(torch.tensor([LOGITS]), [2], 20)
    logs = [math.log(p) for p in softmax(LOGITS)]
    assert entry.logprob == pytest.approx(logs[2], abs=1e-6)
    assert [token for token, _ in entry.top] == [0, 6, 1, 2, 7, 3, 4, 5]
    assert [value for _, value in entry.top] == pytest.approx(sorted(logs, reverse=True), abs=1e-6)
