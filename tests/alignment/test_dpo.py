import math
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from puna.alignment import (
    Comparison,
    DPOConfig,
    DPOObjective,
    PairRows,
    encode_answers,
    encode_pair,
    reference_logprobs,
)
from puna.alignment.dpo import PairBatch
from puna.alignment.pairs import AnswerTokens, lay_out
from puna.core.errors import UsageError
from puna.model import Llama, LlamaConfig, LoraConfig, add_lora
from puna.tokenizer import Message, Tokenizer
from puna.training import Outcome

FIELDS = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 48, "context": 128}


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = ["What is the sum of 4 and 5? It is 9, the capital of Peru is Lima."] * 4
    return Tokenizer.train(texts, 300, n_special=16)


def fresh(vocab_size: int, seed: int = 2) -> Llama:
    built = Llama(LlamaConfig.parse(FIELDS | {"vocab_size": vocab_size}, where="test"))
    built.init_weights(seed)
    with torch.no_grad():  # large enough that answers differ by nats
        for parameter in built.model.layers.parameters():
            parameter.mul_(3)
    return built


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Llama:
    return fresh(tokenizer.vocab_size)


@pytest.fixture(scope="module")
def pairs(tokenizer: Tokenizer) -> list[Comparison]:
    asked = [Message("user", "What is 4 and 5?")]
    talk = [Message("user", "Hi"), Message("assistant", "Hello."), Message("user", "4 and 5?")]
    return [
        encode_pair(tokenizer, asked, "It is 9.", "9", 100, "pair 0"),
        encode_pair(tokenizer, talk, "It is 9, the sum.", "Lima", 100, "pair 1"),
        encode_pair(tokenizer, asked, "Nine", "It is the capital of Peru is", 100, "pair 2"),
        encode_pair(tokenizer, [Message("user", "Hi")], "Hi", "9", 100, "pair 3"),
    ]


@torch.inference_mode()
def alone(model: Llama, pair: Comparison, number: int, *, with_end: bool = False) -> float:
    """Log-probability of an answer's text, its conversation by itself, through full logits."""
    answer = pair.answers[number]
    ids = [*pair.prompt, *answer.ids]
    table = torch.log_softmax(model(torch.tensor([ids]))[0].double(), -1)
    kept = [place for place, text in enumerate(answer.content) if text or with_end]
    return sum(float(table[len(pair.prompt) + k - 1, answer.ids[k]]) for k in kept)


def rows_of(pairs: list[Comparison], reference: np.ndarray, **config: object) -> PairBatch:
    rows = PairRows(pairs, reference, DPOConfig.parse(config, where="dpo"))
    return rows.rows(np.arange(len(pairs)))


def test_only_the_last_answers_text_is_compared(
    tokenizer: Tokenizer, pairs: list[Comparison]
) -> None:
    chosen = pairs[1].answers[0]
    text = [i for i, flag in zip(chosen.ids, chosen.content, strict=True) if flag]
    assert tokenizer.decode(text) == "It is 9, the sum."
    assert chosen.ids == [*text, tokenizer.eot_id]
    assert "Hello." in tokenizer.decode(pairs[1].prompt)


def test_reference_logprobs_equal_each_answer_alone(
    model: Llama, pairs: list[Comparison], tmp_path: Path
) -> None:
    found = reference_logprobs(model, pairs, tmp_path)
    expected = [[alone(model, pair, number) for number in (0, 1)] for pair in pairs]
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_reference_logprobs_are_computed_once_for_the_same_data_and_weights(
    tokenizer: Tokenizer, pairs: list[Comparison], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = reference_logprobs(fresh(tokenizer.vocab_size), pairs, tmp_path)
    other = reference_logprobs(fresh(tokenizer.vocab_size, seed=3), pairs, tmp_path)
    swapped = reference_logprobs(fresh(tokenizer.vocab_size), pairs[::-1], tmp_path)
    assert not np.allclose(other, first)
    np.testing.assert_allclose(swapped, first[::-1], rtol=1e-6)
    monkeypatch.setattr(Llama, "hidden", None)
    again = reference_logprobs(fresh(tokenizer.vocab_size), pairs, tmp_path)
    assert np.array_equal(again, first)


def test_changed_weights_never_meet_the_old_reference(
    tokenizer: Tokenizer, pairs: list[Comparison], tmp_path: Path
) -> None:
    policy = fresh(tokenizer.vocab_size)
    before = reference_logprobs(policy, pairs, tmp_path)
    with torch.no_grad():
        policy.model.norm.weight[0] += 1
    assert not np.allclose(reference_logprobs(policy, pairs, tmp_path), before)


def test_the_objective_is_dpo_plus_the_weighted_likelihood_of_the_chosen(
    model: Llama, pairs: list[Comparison], tmp_path: Path
) -> None:
    batch = rows_of(pairs, reference_logprobs(model, pairs, tmp_path))
    outcome = DPOObjective(DPOConfig(nll_weight=0.2))(model, batch)
    expected = 0.0
    for pair in pairs:
        nll = -alone(model, pair, 0, with_end=True) / len(pair.answers[0].ids)
        expected += math.log(2) + 0.2 * nll  # the policy is the reference: margin 0
    assert outcome.count == len(pairs)
    assert float(outcome.loss_sum.detach()) == pytest.approx(expected, rel=1e-5)
    assert outcome.metrics["dpo_loss"] == pytest.approx(len(pairs) * math.log(2), rel=1e-6)
    assert outcome.metrics["reward_margin"] == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "of_gap"),
    [
        ({}, lambda gap: math.log1p(math.exp(-0.1 * gap))),
        (
            {"beta": 0.5, "label_smoothing": 0.1},  # the logistic loss both ways, weighted
            lambda gap: (
                0.9 * math.log1p(math.exp(-0.5 * gap)) + 0.1 * math.log1p(math.exp(0.5 * gap))
            ),
        ),
        ({"loss": "ipo"}, lambda gap: (gap - 5) ** 2),
        ({"loss": "hinge"}, lambda gap: max(0.0, 1 - 0.1 * gap)),
    ],
    ids=["dpo", "cdpo", "ipo", "hinge"],
)
@pytest.mark.parametrize("normalised", [False, True], ids=["summed", "per token"])
def test_each_loss_is_its_closed_form_of_the_log_ratio_gap(
    model: Llama,
    pairs: list[Comparison],
    changes: dict[str, object],
    of_gap: Callable[[float], float],
    normalised: bool,
) -> None:
    reference = np.array([[-3.0, -20], [-40, -4], [-9, -9], [-5, -50]], np.float32)
    config = DPOConfig.parse(
        changes | {"nll_weight": 0.0, "length_normalised": normalised}, where="dpo"
    )
    outcome = DPOObjective(config)(model, rows_of(pairs, reference))
    expected = 0.0
    for pair, (ref_chosen, ref_rejected) in zip(pairs, reference.tolist(), strict=True):
        lengths = [sum(answer.content) if normalised else 1 for answer in pair.answers]
        ratios = (alone(model, pair, 0) - ref_chosen, alone(model, pair, 1) - ref_rejected)
        gap = ratios[0] / lengths[0] - ratios[1] / lengths[1]
        expected += of_gap(gap)
    assert float(outcome.loss_sum.detach()) == pytest.approx(expected, rel=1e-5)


def gradient_norm(model: Llama, outcome: Outcome) -> float:
    gradients = torch.autograd.grad(outcome.loss_sum, list(model.parameters()))
    return float(torch.nn.utils.get_total_norm(gradients))


@pytest.mark.parametrize("loss", ["dpo", "ipo", "hinge"])
def test_shared_prompts_and_packed_rows_change_neither_loss_nor_gradient(
    model: Llama, pairs: list[Comparison], loss: str
) -> None:
    reference = np.array([[-3.0, -20], [-40, -4], [-9, -9], [-5, -50]], np.float32)
    found = []
    sizes = []
    for share in (False, True):
        for pack in (False, True):
            layout = {"share_prompt": share, "pack_rows": pack, "loss": loss}
            batch = rows_of(pairs, reference, **layout)
            sizes.append((batch.answers.ids.shape[0], batch.n_tokens))
            outcome = DPOObjective(DPOConfig.parse(layout, where="dpo"))(model, batch)
            found.append((float(outcome.loss_sum.detach()), gradient_norm(model, outcome)))
    plain, plain_packed, shared, packed = sizes
    assert plain[0] == 8
    assert plain_packed[0] < 8
    assert shared[0] == 4
    assert packed[0] < 4
    assert packed[1] < plain[1]
    # fp32 sums in another order
    np.testing.assert_allclose(found, [found[0]] * 4, rtol=1e-5)


def test_a_batch_is_the_sum_of_its_micro_batches(model: Llama, pairs: list[Comparison]) -> None:
    reference = np.array([[-3.0, -20], [-40, -4], [-9, -9], [-5, -50]], np.float32)
    objective = DPOObjective(DPOConfig())
    whole = objective(model, rows_of(pairs, reference))
    gradients = torch.autograd.grad(whole.loss_sum, list(model.parameters()))
    parts = [
        objective(model, rows_of(pairs[i : i + 1], reference[i : i + 1])) for i in range(len(pairs))
    ]
    added = torch.autograd.grad(sum(part.loss_sum for part in parts), list(model.parameters()))
    total = sum(float(part.loss_sum.detach()) for part in parts)
    assert float(whole.loss_sum.detach()) == pytest.approx(total, rel=1e-5)
    for one, other in zip(gradients, added, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_every_label_follows_its_place_in_the_row(
    tokenizer: Tokenizer, pairs: list[Comparison]
) -> None:
    batch = lay_out(pairs)
    flat = batch.ids.flatten()
    for number, end in enumerate(batch.ends.tolist()):
        own = batch.labels[batch.owners == number]
        answer = pairs[number // 2].answers[number % 2]
        assert own.tolist() == answer.ids
        assert flat[end - len(own) + 1 : end + 1].tolist() == answer.ids
        first, *others = batch.places[batch.owners == number].tolist()
        assert others == list(range(end - len(own) + 1, end))
        assert int(flat[first]) == pairs[number // 2].prompt[-1]


def test_a_batch_moves_whole_to_another_device(pairs: list[Comparison]) -> None:
    moved = lay_out(pairs).to(torch.device("meta"))
    devices = {getattr(moved, field.name).device.type for field in fields(moved)}
    assert devices == {"meta"}


def test_a_step_along_the_gradient_widens_the_margin(
    tokenizer: Tokenizer, pairs: list[Comparison], tmp_path: Path
) -> None:
    policy = fresh(tokenizer.vocab_size, seed=4)
    batch = rows_of(pairs, reference_logprobs(policy, pairs, tmp_path))
    objective = DPOObjective(DPOConfig(nll_weight=0.0))
    objective(policy, batch).loss_sum.backward()
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter -= 0.01 * parameter.grad
    assert objective(policy, batch).metrics["reward_margin"] > 0


def test_three_answers_share_a_prompt_best_first(tokenizer: Tokenizer, model: Llama) -> None:
    asked = [Message("user", "What is 4 and 5?")]
    ranked = encode_answers(tokenizer, asked, ["It is 9.", "9", "Lima"], 100, "row 0")
    batch = lay_out([ranked])
    assert batch.ids.shape[0] == 1
    sums = batch.by_answer(batch.logprobs(model).detach() * batch.content)
    expected = [alone(model, ranked, number) for number in range(3)]
    np.testing.assert_allclose(sums.numpy(), expected, rtol=1e-5)


def test_an_answer_without_text_divides_by_nothing(model: Llama) -> None:
    pair = Comparison([5, 6], (AnswerTokens([7], [False]), AnswerTokens([8, 9], [True, False])))
    config = DPOConfig(length_normalised=True)
    outcome = DPOObjective(config)(model, rows_of([pair], np.zeros((1, 2)), length_normalised=True))
    assert math.isfinite(float(outcome.loss_sum.detach()))


def test_a_pair_longer_than_a_row_is_named(tokenizer: Tokenizer) -> None:
    with pytest.raises(UsageError, match=r"pair 7: \d+ tokens exceed the row length of 20"):
        encode_pair(tokenizer, [Message("user", "What is it?" * 5)], "a", "b", 20, "pair 7")


def test_smoothing_of_a_loss_without_labels_is_refused() -> None:
    with pytest.raises(UsageError, match="label_smoothing is for the loss dpo, not ipo"):
        DPOConfig.parse({"loss": "ipo", "label_smoothing": 0.1}, where="dpo")


def test_the_reference_of_a_model_with_an_adapter_is_its_base(
    tokenizer: Tokenizer, pairs: list[Comparison], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = fresh(tokenizer.vocab_size)
    base = reference_logprobs(policy, pairs, tmp_path / "base")
    add_lora(policy, LoraConfig(rank=4))
    with torch.no_grad():
        for name, parameter in policy.named_parameters():
            if name.endswith("lora_B"):
                parameter.normal_(generator=torch.Generator().manual_seed(1))
    adapted = DPOObjective(DPOConfig())(policy, rows_of(pairs, base))
    assert abs(adapted.metrics["reward_margin"]) > 0.01
    np.testing.assert_allclose(reference_logprobs(policy, pairs, tmp_path), base, rtol=1e-6)
    with torch.no_grad():  # the adapter learns on, the base and so what is kept stays
        for name, parameter in policy.named_parameters():
            if name.endswith("lora_A"):
                parameter.mul_(2)
    monkeypatch.setattr(Llama, "hidden", None)
    np.testing.assert_allclose(reference_logprobs(policy, pairs, tmp_path), base, rtol=1e-6)
