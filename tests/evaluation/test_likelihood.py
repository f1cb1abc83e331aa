"""Bits per byte: closed form, the plain formula, and texts longer than the context."""

import math

import pytest
import torch

from puna.evaluation import bits_per_byte, document_ids
from puna.evaluation.scoring import summed_logprobs
from puna.model import Llama
from puna.tokenizer import Tokenizer

SHORT = ["17 + 25 = 42.", "Grüße aus Köln"]
LONG = "The capital of France is Paris. Grüße aus Köln: 3 € für 2. 17 + 25 = 42. " * 3


def test_a_uniform_model_costs_log2_of_the_vocabulary_for_each_token(
    uniform: Llama, tokenizer: Tokenizer
) -> None:
    result = bits_per_byte(uniform, tokenizer, [*SHORT, LONG])
    texts = [*SHORT, LONG]
    n_tokens = sum(len(ids) + 1 for ids in tokenizer.encode_batch(texts))  # + 1: the end token
    assert result.n_tokens == n_tokens
    assert result.n_bytes == sum(len(text.encode()) for text in texts)
    assert result.bits == pytest.approx(n_tokens * math.log2(tokenizer.vocab_size), rel=1e-6)
    assert result.bits_per_byte == pytest.approx(result.bits / result.n_bytes)


def test_it_is_the_plain_sum_over_each_document_alone(model: Llama, tokenizer: Tokenizer) -> None:
    nats = 0.0
    for ids in document_ids(tokenizer, SHORT):
        row = torch.tensor([ids])
        logprobs = model(row[:, :-1]).log_softmax(-1)
        nats -= logprobs.gather(2, row[:, 1:, None]).sum().item()
    # fp32 sums in another order
    assert bits_per_byte(model, tokenizer, SHORT).bits == pytest.approx(
        nats / math.log(2), rel=1e-5
    )


def test_texts_do_not_influence_each_other(model: Llama, tokenizer: Tokenizer) -> None:
    together = bits_per_byte(model, tokenizer, [*SHORT, LONG]).bits
    apart = sum(bits_per_byte(model, tokenizer, [text]).bits for text in [*SHORT, LONG])
    assert together == pytest.approx(apart, rel=1e-5)


def test_a_long_text_is_cut_into_windows_and_every_token_predicted_once(
    model: Llama, tokenizer: Tokenizer
) -> None:
    (ids,) = document_ids(tokenizer, [LONG])
    context = model.config.context
    assert len(ids) > 2 * context
    nats = 0.0
    for start in range(0, len(ids) - 1, context):
        row = torch.tensor([ids[start : start + context + 1]])
        logprobs = model(row[:, :-1]).log_softmax(-1)
        nats -= logprobs.gather(2, row[:, 1:, None]).sum().item()
    result = bits_per_byte(model, tokenizer, [LONG])
    assert result.n_tokens == len(ids) - 1
    assert result.bits == pytest.approx(nats / math.log(2), rel=1e-5)


def test_only_scored_tokens_count_and_padding_changes_nothing(model: Llama) -> None:
    sequences = [[1, 2, 3, 4], [5, 6], [7, 8, 9]]
    masks = [[True, False, True, False], [True, True], [False, False, False]]
    sums = summed_logprobs(model, sequences, masks)
    logprobs = model(torch.tensor([[1, 2, 3]])).log_softmax(-1)
    assert sums[0] == pytest.approx(logprobs[0, 1, 3].item(), rel=1e-5)
    alone = summed_logprobs(model, sequences[1:2], masks[1:2])
    assert sums[1] == pytest.approx(alone[0], rel=1e-5)
    assert sums[2] == 0
