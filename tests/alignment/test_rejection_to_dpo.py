"""From a tuned model to a preferred one: sampled answers, pairs, a reward model, DPO.

The task is to name a digit, the higher the better. The tuned model names each with equal chance.
"""

import json
import re
from collections.abc import Mapping, Sequence
from copy import deepcopy
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pytest

from puna.alignment import DPOConfig, DPOObjective, PairRows, encode_pair, reference_logprobs
from puna.alignment.pairs import Comparison
from puna.alignment.rejection import PAIRS, Prompt, RejectionConfig, sample_best
from puna.alignment.reward import (
    RankedRows,
    RewardConfig,
    RewardModel,
    RewardObjective,
    judge_rewards,
)
from puna.alignment.rollouts import each_by, encode_task, sample_answers
from puna.core.events import EventLog
from puna.data import PackedRows, write_tokens
from puna.inference import Engine, EngineConfig, Sampling
from puna.model import Llama, LlamaConfig
from puna.tokenizer import Message, Tokenizer
from puna.training import LoopConfig, RowSource, next_token, train

DIGITS = 10
SHAPE = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 128, "context": 128}
_SAID = re.compile(r"I take (\d)\.")


def question(number: int) -> Message:
    return Message("user", f"Take one, number {number}")


def worth(text: str, record: Mapping[str, Any]) -> float:
    """How high the digit is; -1 for any other answer."""
    said = _SAID.fullmatch(text.strip())
    return -1.0 if said is None else float(said[1])


def loop(steps: int, rate: float) -> LoopConfig:
    return LoopConfig(
        steps=steps, batch_rows=16, learning_rate=rate, warmup_steps=5, weight_decay=0.0,
        precision="fp32", log_every=1000, checkpoint_every=1000,
    )  # fmt: skip


def sampled(model: Llama, tokenizer: Tokenizer, asked: Sequence[int], seed: int) -> list[float]:
    engine = Engine(model, tokenizer, EngineConfig(cache_tokens=8192, max_rows=64))
    tasks = [encode_task(tokenizer, [question(n)], {}) for n in asked]
    sampling = Sampling(max_new_tokens=16, temperature=1.0, seed=seed)
    return list(each_by(worth)(sample_answers(engine, tasks, 1, sampling)))


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["Take one, number 1. I take 1."] * 4, 280, n_special=16)


@pytest.fixture(scope="module")
def tuned(tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Llama:
    folder = tmp_path_factory.mktemp("tuned")
    model = Llama(LlamaConfig.parse(SHAPE | {"vocab_size": tokenizer.vocab_size}, where="test"))
    model.init_weights(1)
    items = []
    for n in range(400):
        talk = [question(n), Message("assistant", f"I take {n % DIGITS}.")]
        tokens = tokenizer.chat.encode(tokenizer, talk)
        items.append((tokens.ids, tokens.trained))
    rows = PackedRows(write_tokens(folder / "tokens", items, tokenizer.vocab_size), 64)
    config = loop(120, 3e-3)
    train(model, next_token, RowSource(rows, 1, config), config, folder / "points", EventLog())
    return model


@pytest.fixture(scope="module")
def pairs(
    tuned: Llama, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> list[Comparison]:
    folder = tmp_path_factory.mktemp("sampled")
    engine = Engine(tuned, tokenizer, EngineConfig(cache_tokens=8192, max_rows=64))
    asked = [Prompt((question(n),), {}) for n in range(160)]
    config = RejectionConfig(answers=16, max_new_tokens=16)
    sample_best(engine, asked, each_by(worth), config, folder, EventLog(), origin={})
    rows = [json.loads(line) for line in (folder / PAIRS).read_text().splitlines()]
    return [
        encode_pair(
            tokenizer,
            [Message(**m) for m in row["prompt"]],
            row["chosen"],
            row["rejected"],
            100,
            "",
        )
        for row in rows
    ]


def test_a_reward_model_trained_on_pairs_is_right_on_others(
    tuned: Llama, pairs: list[Comparison], tmp_path: Path
) -> None:
    kept, others = pairs[:110], pairs[110:]
    assert len(others) >= 30
    model = RewardModel.from_policy(deepcopy(tuned))
    config = loop(100, 1e-3)
    source = RowSource(RankedRows(kept), 1, config)
    train(model, RewardObjective(RewardConfig()), source, config, tmp_path, EventLog())
    report = judge_rewards(model, others)
    assert report.accuracy >= 0.95
    assert report.calibration_error < 0.1


def test_dpo_on_the_same_pairs_wins_against_what_it_started_from(
    tuned: Llama, tokenizer: Tokenizer, pairs: list[Comparison], tmp_path: Path
) -> None:
    policy = deepcopy(tuned)
    reference = reference_logprobs(policy, pairs, tmp_path)
    dpo, config = DPOConfig(), loop(150, 1e-3)
    source = RowSource(PairRows(pairs, reference, dpo), 1, config)
    train(policy, DPOObjective(dpo), source, config, tmp_path / "points", EventLog())
    asked = range(160, 360)  # prompts that no pair is of
    before = np.array(sampled(tuned, tokenizer, asked, seed=1))
    after = np.array(sampled(policy, tokenizer, asked, seed=2))
    wins = fmean((after > before) + 0.5 * (after == before))
    assert 4 < before.mean() < 5  # any digit, with equal chance
    assert wins >= 0.9
    # The likelihood term keeps the form of the answer and its end.
    assert (after >= 0).mean() > 0.95
