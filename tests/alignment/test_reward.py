import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForSequenceClassification, LlamaForSequenceClassification

from puna.alignment.pairs import Comparison, encode_answers
from puna.alignment.reward import (
    RankedRows,
    RewardConfig,
    RewardModel,
    RewardObjective,
    calibration_error,
    judge_rewards,
    save_reward_model,
    score,
)
from puna.core.errors import UsageError
from puna.formats import load_model
from puna.model import Llama, LlamaConfig, LoraConfig, add_lora
from puna.tokenizer import Message, Tokenizer

FIELDS = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 48, "context": 128}
ASKED = [Message("user", "What is 4 and 5?")]
ANSWERS = [["It is 9.", "9", "Lima"], ["The sum of 4 and 5 is 9.", "It is Peru."], ["9", "5", "4"]]


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    texts = ["What is the sum of 4 and 5? It is 9, the capital of Peru is Lima."] * 4
    return Tokenizer.train(texts, 300, n_special=16)


def reward_model(tokenizer: Tokenizer, *, tied: bool = False) -> RewardModel:
    shape = {"vocab_size": tokenizer.vocab_size, "tie_embeddings": tied}
    policy = Llama(LlamaConfig.parse(FIELDS | shape, where="test"))
    policy.init_weights(5)
    model = RewardModel.from_policy(policy)
    with torch.no_grad():
        for parameter in model.model.layers.parameters():
            parameter.mul_(3)
        model.score.weight.normal_(generator=torch.Generator().manual_seed(2))
    return model


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> RewardModel:
    return reward_model(tokenizer)


@pytest.fixture(scope="module")
def comparisons(tokenizer: Tokenizer) -> list[Comparison]:
    return [encode_answers(tokenizer, ASKED, answers, 100, "row") for answers in ANSWERS]


@torch.inference_mode()
def alone(model: RewardModel, comparison: Comparison, number: int) -> float:
    """Score of one conversation by itself: the last position of an unpadded row."""
    ids = [*comparison.prompt, *comparison.answers[number].ids]
    return float(model.hidden(torch.tensor([ids]))[0, -1] @ model.score.weight[0])


def test_a_fresh_head_scores_all_alike_and_loses_log_two(
    tokenizer: Tokenizer, comparisons: list[Comparison]
) -> None:
    policy = Llama(LlamaConfig.parse(FIELDS | {"vocab_size": tokenizer.vocab_size}, where="test"))
    policy.init_weights(1)
    outcome = RewardObjective(RewardConfig())(
        RewardModel.from_policy(policy), RankedRows(comparisons).rows(np.arange(3))
    )
    assert outcome.count == 3
    assert float(outcome.loss_sum.detach()) == pytest.approx(3 * math.log(2), rel=1e-6)


@pytest.mark.parametrize("margin", [0.0, 0.5])
def test_the_loss_is_bradley_terry_over_every_pair_of_a_prompt(
    model: RewardModel, comparisons: list[Comparison], margin: float
) -> None:
    outcome = RewardObjective(RewardConfig(margin=margin))(
        model, RankedRows(comparisons).rows(np.arange(3))
    )
    expected = right = 0.0
    for comparison in comparisons:
        scores = [alone(model, comparison, n) for n in range(len(comparison.answers))]
        gaps = [(b - a, scores[a] - scores[b]) for b in range(len(scores)) for a in range(b)]
        terms = [math.log1p(math.exp(margin * steps - gap)) for steps, gap in gaps]
        expected += sum(terms) / len(terms)
        right += sum(gap > 0 for _, gap in gaps) / len(gaps)
    assert float(outcome.loss_sum.detach()) == pytest.approx(expected, rel=1e-5)
    assert outcome.metrics["reward_accuracy"] == pytest.approx(right, abs=1e-6)


def test_scores_of_conversations_do_not_depend_on_their_neighbours(
    model: RewardModel, tokenizer: Tokenizer, comparisons: list[Comparison]
) -> None:
    conversations = [[*ASKED, Message("assistant", text)] for row in ANSWERS for text in row]
    expected = [alone(model, c, n) for c in comparisons for n in range(len(c.answers))]
    assert score(model, tokenizer, conversations) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    one_by_one = [score(model, tokenizer, [each])[0] for each in conversations]
    assert one_by_one == pytest.approx(expected, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("tied", [False, True])
def test_transformers_opens_the_folder_and_gives_equal_scores(
    tokenizer: Tokenizer, comparisons: list[Comparison], tmp_path: Path, tied: bool
) -> None:
    model = reward_model(tokenizer, tied=tied)
    save_reward_model(tmp_path / "reward", model, tokenizer)
    peer = AutoModelForSequenceClassification.from_pretrained(
        tmp_path / "reward", dtype=torch.float32
    )
    assert isinstance(peer, LlamaForSequenceClassification)
    assert peer.config.num_labels == 1
    rows = [[*c.prompt, *answer.ids] for c in comparisons for answer in c.answers]
    width = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.pad_id] * (width - len(row)) for row in rows])
    with torch.inference_mode():
        theirs = peer(ids, attention_mask=(ids != tokenizer.pad_id).long()).logits[:, 0]
    ours = [alone(model, c, n) for c in comparisons for n in range(len(c.answers))]
    assert theirs.tolist() == pytest.approx(ours, rel=1e-4, abs=1e-5)


def test_a_saved_reward_model_comes_back_bit_for_bit(
    model: RewardModel, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    save_reward_model(tmp_path / "reward", model, tokenizer)
    loaded, _ = load_model(tmp_path / "reward", cls=RewardModel)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor)
    with pytest.raises(UsageError, match="LlamaForSequenceClassification"):
        load_model(tmp_path / "reward")


def test_the_right_token_is_read_where_padding_is_the_end_of_turn(
    model: RewardModel,
    tokenizer: Tokenizer,
    comparisons: list[Comparison],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    conversations = [[*ASKED, Message("assistant", text)] for row in ANSWERS for text in row]
    expected = [alone(model, c, n) for c in comparisons for n in range(len(c.answers))]
    monkeypatch.setattr(tokenizer, "pad_id", tokenizer.eot_id)
    assert score(model, tokenizer, conversations) == pytest.approx(expected, rel=1e-4, abs=1e-5)
    save_reward_model(tmp_path / "reward", model, tokenizer)
    peer = LlamaForSequenceClassification.from_pretrained(tmp_path / "reward", dtype=torch.float32)
    first = [*comparisons[0].prompt, *comparisons[0].answers[0].ids]
    with torch.inference_mode():
        assert float(peer(torch.tensor([first])).logits) == pytest.approx(expected[0], rel=1e-4)
        with pytest.raises(ValueError, match="padding token"):
            peer(torch.tensor([first, first]))


def test_the_calibration_error_is_the_mean_gap_of_confidence_and_truth() -> None:
    confidence = torch.tensor([0.95, 0.95, 0.95, 0.95, 0.65, 0.65])
    right = torch.tensor([1.0, 1.0, 1.0, 0.0, 1.0, 1.0])
    expected = (4 * abs(0.75 - 0.95) + 2 * abs(1.0 - 0.65)) / 6
    assert calibration_error(confidence, right) == pytest.approx(expected, abs=1e-6)
    certain = torch.ones(5)
    assert calibration_error(certain, certain) == 0


def test_the_report_speaks_of_the_best_against_the_worst(
    model: RewardModel, comparisons: list[Comparison]
) -> None:
    report = judge_rewards(model, comparisons)
    gaps = [alone(model, c, 0) - alone(model, c, len(c.answers) - 1) for c in comparisons]
    assert report.n == 3
    assert report.accuracy == pytest.approx(sum(gap > 0 for gap in gaps) / 3)
    assert report.mean_gap == pytest.approx(sum(gaps) / 3, rel=1e-4)
    assert 0 <= report.calibration_error <= 1


def test_a_conversation_without_an_answer_is_named(
    model: RewardModel, tokenizer: Tokenizer
) -> None:
    with pytest.raises(UsageError, match="conversation 2 must end with the assistant's answer"):
        score(model, tokenizer, [[*ASKED, Message("assistant", "9")], ASKED])


@pytest.mark.parametrize("base", ["kept", "bf16", "nf4"])
def test_an_adapter_leaves_the_head_trained_in_full_precision(
    tokenizer: Tokenizer, comparisons: list[Comparison], base: str
) -> None:
    model = reward_model(tokenizer)
    add_lora(model, LoraConfig.parse({"rank": 2, "base": base}, where="test"))
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert {name.rpartition(".")[2] for name in trained} == {"lora_A", "lora_B", "weight"}
    assert [name for name in trained if name.endswith("weight")] == ["score.weight"]
    assert model.score.weight.dtype == torch.float32
    outcome = RewardObjective(RewardConfig())(model, RankedRows(comparisons).rows(np.arange(3)))
    outcome.loss_sum.backward()
    gradient = model.score.weight.grad
    assert gradient is not None
    assert gradient.abs().sum() > 0


def test_a_head_that_knows_nothing_tosses_a_coin(
    tokenizer: Tokenizer, comparisons: list[Comparison]
) -> None:
    policy = Llama(LlamaConfig.parse(FIELDS | {"vocab_size": tokenizer.vocab_size}, where="test"))
    policy.init_weights(1)
    report = judge_rewards(RewardModel.from_policy(policy), comparisons)
    assert (report.accuracy, report.calibration_error) == (0.5, 0.0)
