import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from puna.alignment import DPOConfig, DPOObjective, dpo_loss, encode_pair, reference_logprobs
from puna.alignment.dpo import PairTokens, collate
from puna.core.errors import UsageError
from puna.model import Llama, LlamaConfig
from puna.tokenizer import Message, Tokenizer

logprobs = st.floats(-50, 0)


@given(logprobs, logprobs, logprobs, logprobs, st.floats(0.01, 1))
def test_dpo_is_the_logistic_loss_of_the_margin(
    chosen: float, rejected: float, ref_chosen: float, ref_rejected: float, beta: float
) -> None:
    values = (chosen, rejected, ref_chosen, ref_rejected)
    tensors = [torch.tensor([x], dtype=torch.float64) for x in values]
    loss, margin = dpo_loss(*tensors, beta)
    expected = beta * ((chosen - ref_chosen) - (rejected - ref_rejected))
    assert float(margin) == pytest.approx(expected, abs=1e-9)
    assert float(loss) == pytest.approx(math.log1p(math.exp(-expected)), abs=1e-9)


def test_a_policy_equal_to_its_reference_loses_log_two() -> None:
    same = torch.tensor([-3.0, -9.0])
    loss, margin = dpo_loss(same, same - 1, same, same - 1, 0.1)
    torch.testing.assert_close(loss, torch.full((2,), math.log(2)))
    assert margin.tolist() == [0, 0]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = ["What is the sum of 4 and 5? It is 9, the capital of Peru is Lima."] * 4
    return Tokenizer.train(texts, 300, n_special=16)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Llama:
    fields = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 48}
    config = fields | {"vocab_size": tokenizer.vocab_size, "context": 128}
    built = Llama(LlamaConfig.parse(config, where="test"))
    built.init_weights(seed=2)
    return built


@pytest.fixture(scope="module")
def pairs(tokenizer: Tokenizer) -> list[PairTokens]:
    asked = [Message("user", "What is 4 and 5?")]
    talk = [Message("user", "Hi"), Message("assistant", "Hello."), Message("user", "4 and 5?")]
    return [
        encode_pair(tokenizer, asked, "It is 9.", "9", 100, "pair 0"),
        encode_pair(tokenizer, talk, "It is 9, the sum.", "Lima", 100, "pair 1"),
    ]


@torch.inference_mode()
def alone(model: Llama, ids: list[int], places: list[int]) -> float:
    """Summed log-probability of the tokens at ``places``, one row, no padding."""
    table = torch.log_softmax(model(torch.tensor([ids]))[0], -1)
    return sum(float(table[place - 1, ids[place]]) for place in places)


def test_only_the_last_answers_text_is_compared(
    tokenizer: Tokenizer, pairs: list[PairTokens]
) -> None:
    chosen = pairs[1].chosen
    assert tokenizer.decode([i for i, c in zip(chosen.ids, chosen.content, strict=True) if c]) == (
        "It is 9, the sum."
    )
    trained = [i for i, t in zip(chosen.ids, chosen.trained, strict=True) if t]
    assert trained[-1] == tokenizer.eot_id
    assert tokenizer.decode(trained[:-1]) == "It is 9, the sum."


def test_reference_logprobs_equal_each_answer_alone(
    model: Llama, pairs: list[PairTokens], tmp_path: Path
) -> None:
    found = reference_logprobs(model, pairs, tmp_path / "kept")
    for pair, row in zip(pairs, found, strict=True):
        for side, value in zip((pair.chosen, pair.rejected), row, strict=True):
            places = [i for i, c in enumerate(side.content) if c]
            assert value == pytest.approx(alone(model, side.ids, places), rel=1e-5)


def test_reference_logprobs_are_computed_once(
    model: Llama, pairs: list[PairTokens], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = reference_logprobs(model, pairs, tmp_path / "kept")
    monkeypatch.setattr(Llama, "hidden", None)
    assert np.array_equal(reference_logprobs(model, pairs, tmp_path / "kept"), first)


def test_the_objective_is_dpo_plus_the_weighted_likelihood_of_the_chosen(
    model: Llama, pairs: list[PairTokens], tmp_path: Path
) -> None:
    reference = reference_logprobs(model, pairs, tmp_path / "kept")
    outcome = DPOObjective(DPOConfig(nll_weight=0.2))(model, collate(pairs, reference))
    expected = 0.0
    for pair in pairs:
        places = [i for i, t in enumerate(pair.chosen.trained) if t]
        nll = -alone(model, pair.chosen.ids, places) / len(places)
        expected += math.log(2) + 0.2 * nll  # the policy is the reference: margin 0
    assert outcome.count == 2
    assert float(outcome.loss_sum.detach()) == pytest.approx(expected, rel=1e-5)
    assert outcome.metrics["reward_margin"] == pytest.approx(0, abs=1e-5)


def test_a_step_along_the_gradient_widens_the_margin(
    tokenizer: Tokenizer, pairs: list[PairTokens], tmp_path: Path
) -> None:
    policy = Llama(
        LlamaConfig.parse(
            {
                "vocab_size": tokenizer.vocab_size,
                "dim": 32,
                "n_layers": 1,
                "n_heads": 4,
                "n_kv_heads": 4,
                "ffn_dim": 48,
            },
            where="test",
        )
    )
    policy.init_weights(seed=4)
    batch = collate(pairs, reference_logprobs(policy, pairs, tmp_path / "kept"))
    objective = DPOObjective(DPOConfig(nll_weight=0.0))
    objective(policy, batch).loss_sum.backward()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter -= 0.05 * parameter.grad
    assert objective(policy, batch).metrics["reward_margin"] > 0


def test_a_pair_longer_than_a_row_is_named(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match=r"pair 7: \d+ tokens exceed the row length of 20"):
        encode_pair(tokenizer, [Message("user", "What is it?" * 5)], "a", "b", 20, "pair 7")
