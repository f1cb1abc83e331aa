"""A tiny model that answers sums half of the time learns to answer: PPO, GRPO, RLOO.

It is tuned on demonstrations of which half shrug, so it starts at a known score, about one half.
The reward is a Python function that checks the sum. The score that counts is of sums that were in
the demonstrations but for which no reward was ever given.
"""

import copy
import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from puna.alignment.grpo import GRPO, GRPOConfig
from puna.alignment.kl import KLConfig
from puna.alignment.online import train_online
from puna.alignment.ppo import PPO, PPOConfig
from puna.alignment.rollouts import (
    RolloutConfig,
    Task,
    each_by,
    encode_task,
    sample_answers,
)
from puna.core.events import EventLog
from puna.core.random import stream
from puna.data import PackedRows, write_tokens
from puna.inference import Engine, Sampling
from puna.model import Llama, LlamaConfig
from puna.tokenizer import Message, Tokenizer
from puna.training import LoopConfig, RowSource, next_token, train

SHAPE = {"dim": 64, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 128, "context": 128}


def right_sum(text: str, record: Mapping[str, Any]) -> float:
    return float(text == record["answer"])


@dataclass(frozen=True)
class School:
    """Sums, and a model that shrugs at half of them."""

    tokenizer: Tokenizer
    model: Llama
    rewarded: list[Task]
    held_out: list[Task]

    def score(self, model: Llama) -> float:
        """Mean reward of sampled answers to the sums held out, 32 to each of 20."""
        sampling = Sampling(max_new_tokens=5, temperature=1.0, seed=9)
        answers = sample_answers(Engine(model, self.tokenizer), self.held_out, 32, sampling)
        return sum(each_by(right_sum)(answers)) / len(answers)


def demonstrations(tokenizer: Tokenizer) -> list[tuple[list[int], list[bool]]]:
    """Thirty of each sum."""
    drawn = stream(2, "demonstrations")
    chats = []
    for _ in range(30):
        for a, b in itertools.product(range(10), repeat=2):
            answer = "?" if drawn.random() < 0.5 else str(a + b)
            chat = [Message("user", f"{a}+{b}"), Message("assistant", answer)]
            tokens = tokenizer.chat.encode(tokenizer, chat)
            chats.append((tokens.ids, tokens.trained))
    return chats


@pytest.fixture(scope="module")
def school(tmp_path_factory: pytest.TempPathFactory) -> School:
    folder = tmp_path_factory.mktemp("school")
    text = "user assistant\n\n ? 0 1 2 3 4 5 6 7 8 9 + ="
    tokenizer = Tokenizer.train([text] * 9, 283, digit_group=1, n_special=12)
    tokens = write_tokens(folder / "tokens", demonstrations(tokenizer), tokenizer.vocab_size)
    model = Llama(LlamaConfig.parse(SHAPE | {"vocab_size": tokenizer.vocab_size}, where="test"))
    model.init_weights(0)
    loop = LoopConfig(
        steps=350,
        batch_rows=8,
        optimizer="muon",
        learning_rate=6e-3,
        warmup_steps=20,
        precision="fp32",
        checkpoint_every=350,
    )
    source = RowSource(PackedRows(tokens, 128), 3, loop)
    train(model, next_token, source, loop, folder / "sft", EventLog())
    sums = [
        encode_task(tokenizer, [Message("user", f"{a}+{b}")], {"answer": str(a + b)})
        for a, b in itertools.product(range(10), repeat=2)
    ]
    order = stream(1, "sums").permutation(len(sums))
    shuffled = [sums[place] for place in order]
    return School(tokenizer, model, shuffled[:80], shuffled[80:])


def ppo(model: Llama) -> PPO:
    rollouts = RolloutConfig(prompts=128, max_new_tokens=5, epochs=2)
    return PPO(PPOConfig(rollouts=rollouts, kl=KLConfig(coefficient=0.02)), model)


def grpo(_model: Llama) -> GRPO:
    rollouts = RolloutConfig(prompts=16, answers=8, max_new_tokens=5)
    kl = KLConfig(coefficient=0.02, estimator="k3")
    return GRPO(GRPOConfig(rollouts=rollouts, kl=kl))


def rloo(_model: Llama) -> GRPO:
    rollouts = RolloutConfig(prompts=16, answers=8, max_new_tokens=5)
    return GRPO(GRPOConfig(method="rloo", rollouts=rollouts, kl=KLConfig(coefficient=0.02)))


@pytest.mark.parametrize(
    ("method", "steps", "batch_rows"), [(ppo, 60, 64), (grpo, 60, 8), (rloo, 60, 8)]
)
def test_sums_without_a_reward_are_answered_too(
    school: School,
    tmp_path: Path,
    method: Callable[[Llama], PPO | GRPO],
    steps: int,
    batch_rows: int,
) -> None:
    assert 0.35 < school.score(school.model) < 0.6  # half of the demonstrations shrug
    model = copy.deepcopy(school.model)
    loop = LoopConfig(
        steps=steps,
        batch_rows=batch_rows,
        learning_rate=6e-4,
        warmup_steps=3,
        weight_decay=0.0,
        precision="fp32",
        checkpoint_every=steps,
    )
    events: list[dict[str, Any]] = []
    train_online(
        model,
        school.tokenizer,
        method(model),
        school.rewarded,
        each_by(right_sum),
        loop,
        tmp_path,
        EventLog(readers=(events.append,)),
        seed=5,
        stage="learn",
    )
    assert school.score(model) >= 0.9
    rows = [event for event in events if event["kind"] == "rollout"]
    assert [row["step"] for row in rows][-1] == steps
    assert rows[0]["reward"] < 0.6 < rows[-1]["reward"]
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-4)  # the first rollout is the reference's
    assert 0.3 < rows[-1]["kl"] < 3  # ln 2 buys a certain answer; nats per answer
