"""Preferences: which tokens are compared, and how the comparison is counted."""

import math

import pytest
import torch

from puna.data.generators import PreferencePair
from puna.evaluation import PairLogprobs, pair_logprobs, preference_accuracy
from puna.model import Llama
from puna.tokenizer import Message, Tokenizer

PROMPT = (Message("user", "2 + 2"),)


def _pair(prompt: tuple[Message, ...], chosen: str, rejected: str) -> PreferencePair:
    return PreferencePair("style", "addition", "add:2+2", prompt, chosen, rejected)


def test_a_uniform_model_charges_each_answer_token_alike(
    uniform: Llama, tokenizer: Tokenizer
) -> None:
    (result,) = pair_logprobs(uniform, tokenizer, [_pair(PROMPT, "2 = 4.", "4")])
    each = -math.log(tokenizer.vocab_size)
    assert result.chosen == pytest.approx(each * len(tokenizer.encode("2 = 4.")), rel=1e-6)
    assert result.rejected == pytest.approx(each * len(tokenizer.encode("4")), rel=1e-6)


def test_neither_earlier_answers_nor_the_end_of_turn_count(
    model: Llama, tokenizer: Tokenizer
) -> None:
    prompt = (Message("user", "1"), Message("assistant", "1"), Message("user", "2"))
    (result,) = pair_logprobs(model, tokenizer, [_pair(prompt, "4", "3")])
    before = tokenizer.chat.encode(tokenizer, prompt, add_generation_prompt=True).ids
    logprobs = model(torch.tensor([before]))[0, -1].log_softmax(-1)
    for text, found in (("4", result.chosen), ("3", result.rejected)):
        (token,) = tokenizer.encode(text)
        assert found == pytest.approx(float(logprobs[token].detach()), rel=1e-4)


def test_accuracy_and_margins_are_counted_by_kind() -> None:
    report = preference_accuracy(
        [
            PairLogprobs("style", -1.0, -3.0),
            PairLogprobs("style", -4.0, -3.0),
            PairLogprobs("truth", -1.0, -2.0),
            PairLogprobs("truth", -2.0, -2.0),
        ]
    )
    assert report.n == 4
    assert report.accuracy == 0.5  # a tie is not an answer ahead
    assert report.mean_margin == pytest.approx(0.5)
    assert report.accuracy_by_kind == {"style": 0.5, "truth": 0.5}
    assert report.margin_by_kind == {"style": 0.5, "truth": 0.5}
