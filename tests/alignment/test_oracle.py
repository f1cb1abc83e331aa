"""Every answer of a tiny language enumerated: what an optimal policy is, and who finds it.

Five tokens, answers of three: all 125 are known, and so is the policy that KL-regularised reward
asks for, pi*(y) ~ pi_ref(y) exp(R(y) / beta). PPO, GRPO and RLOO run through the loop and every
function of production; only the engine is replaced, by draws from the enumerated distribution. That
each usual mistake fails the same check is shown in a table of mutations.
"""

import itertools
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from puna.alignment import experience, ppo
from puna.alignment.advantages import gae, whiten
from puna.alignment.grpo import GRPO, GRPOConfig
from puna.alignment.kl import KLConfig, KLController, Reference
from puna.alignment.losses import dpo_loss
from puna.alignment.online import Online
from puna.alignment.pairs import AnswerBatch
from puna.alignment.ppo import PPO, PPOConfig
from puna.alignment.rollouts import Answer, RolloutConfig, Task
from puna.core.events import EventLog
from puna.model import Llama, LlamaConfig
from puna.training import LoopConfig, train

VOCAB, LENGTH, BETA = 5, 3, 0.5
ANSWERS = torch.tensor(list(itertools.product(range(VOCAB), repeat=LENGTH)))
N_STATES = 1 + VOCAB + VOCAB**2  # what was written so far: nothing, one token, two
PROMPT = [0]
TASK = Task(PROMPT, {})


class Tabular(Llama):
    """A policy that is a table: logits of the next token for every beginning of an answer."""

    def __init__(self) -> None:
        fields = {"dim": N_STATES, "n_layers": 1, "n_heads": 1, "n_kv_heads": 1, "ffn_dim": 1}
        fields |= {"vocab_size": VOCAB, "head_dim": 2}
        nn.Module.__init__(self)
        self.config = LlamaConfig.parse(fields, where="test")
        self.compute_dtype = None
        self.table = nn.Parameter(torch.zeros(VOCAB, N_STATES))

    @property
    def device(self) -> torch.device:
        return self.table.device

    @property
    def dtype(self) -> torch.dtype:
        return self.table.dtype

    def head_weight(self) -> Tensor:
        return self.table

    def hidden(self, ids_bt: Tensor, **layout: Any) -> Tensor:
        """One-hot states; the prompt is at position 0 and an answer's tokens follow each other."""
        places, before = layout["positions_bt"], ids_bt.roll(1, 1)
        second = 1 + ids_bt
        third = 1 + VOCAB + VOCAB * before + ids_bt
        state = torch.where(places == 0, 0, torch.where(places == 1, second, third))
        return nn.functional.one_hot(state, N_STATES).float()

    def answer_logprobs(self) -> Tensor:
        """Log-probability of each of the 125 answers, differentiable."""
        first, second = ANSWERS[:, 0], ANSWERS[:, 1]
        states = torch.stack((0 * first, 1 + first, 1 + VOCAB + VOCAB * first + second), 1)
        table = self.table.log_softmax(0)
        return table[ANSWERS, states].sum(1)


def rewards() -> Tensor:
    """A reward in [-1, 1] of each answer that no sum of single tokens' rewards explains."""
    return torch.rand(len(ANSWERS), generator=torch.Generator().manual_seed(3)) * 2 - 1


def reference_policy() -> Tabular:
    policy = Tabular()
    with torch.no_grad():
        policy.table.normal_(0, 0.5, generator=torch.Generator().manual_seed(4))
    return policy


def regret(policy: Tabular) -> float:
    """What is missing to the best of reward - beta * KL, as a share of what can be gained."""
    with torch.no_grad():
        reference = reference_policy().answer_logprobs().double()
        found = policy.answer_logprobs().double()
        best = torch.logsumexp(reference + rewards().double() / BETA, 0) * BETA
        start = (reference.exp() * rewards()).sum()
        value = (found.exp() * (rewards() - BETA * (found - reference))).sum()
        return float((best - value) / (best - start))


class Draws:
    """Samples answers from the table, in place of the engine."""

    def __init__(self, n_answers: int) -> None:
        self.n_answers = n_answers

    def __call__(self, model: Llama, tasks: Sequence[Task], seed: int) -> list[Answer]:
        assert isinstance(model, Tabular)
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            chances = model.answer_logprobs().exp()
        n = len(tasks) * self.n_answers
        drawn = torch.multinomial(chances, n, replacement=True, generator=generator)
        return [Answer(TASK, ids, "", ended=True) for ids in ANSWERS[drawn].tolist()]


def score(answers: Sequence[Answer]) -> list[float]:
    table = rewards().view(VOCAB, VOCAB, VOCAB).tolist()
    return [table[a][b][c] for a, b, c in (answer.ids for answer in answers)]


def learn(method: PPO | GRPO, policy: Tabular, steps: int, rate: float, folder: Path) -> float:
    """Train and return the regret."""
    config = method.rollouts
    loop = LoopConfig(
        steps=steps,
        batch_rows=config.prompts // 2,
        learning_rate=rate,
        final_lr_fraction=0.05,
        weight_decay=0.0,
        clip_norm=100.0,
        precision="fp32",
        checkpoint_every=steps,
        log_every=steps,
    )
    draws, log = Draws(config.answers), EventLog()
    tasks = [TASK] * config.prompts
    online = Online(policy, method, tasks, draws, score, loop, log, seed=0, stage="oracle")
    train(
        policy,
        online.objective,
        online,
        loop,
        folder,
        log,
        after_step=online.after_step,
        beside=method.critic,
        kept=online,
    )
    return regret(policy)


def run_ppo(folder: Path) -> float:
    policy = reference_policy()
    config = PPOConfig(
        rollouts=RolloutConfig(prompts=256, epochs=2),
        kl=KLConfig(coefficient=BETA),
        gae_lambda=1.0,
        shared_trunk=True,
        value_clip=None,
    )
    return learn(PPO(config, policy), policy, 200, 0.15, folder)


def test_ppo_finds_the_optimum_of_reward_less_divergence(tmp_path: Path) -> None:
    assert regret(reference_policy()) == pytest.approx(1)
    assert run_ppo(tmp_path) < 0.01


def test_rloo_finds_it_too(tmp_path: Path) -> None:
    config = GRPOConfig(
        method="rloo",
        rollouts=RolloutConfig(prompts=2, answers=128, epochs=2),
        kl=KLConfig(coefficient=BETA),
    )
    assert learn(GRPO(config), reference_policy(), 200, 0.15, tmp_path) < 0.01


# --- the check finds mistakes


def reward_on_the_first_token(
    rewards_a: Tensor, kl_at: Tensor, mask_at: Tensor, coefficient: float
) -> Tensor:
    rewards_at = -coefficient * kl_at * mask_at
    rewards_at[:, 0] += rewards_a
    return rewards_at


def shifted_reference(*arguments: Any) -> Tensor:
    return reference_logprobs(*arguments).roll(1, 0)


def shifted_labels(model: Llama, answers: AnswerBatch, temperature: float) -> Any:
    return answer_logprobs(model, replace(answers, labels=answers.labels.roll(1, 0)), temperature)


reference_logprobs, answer_logprobs, estimate = (
    Reference.logprobs,
    ppo.answer_logprobs,
    KLController.estimate,
)
MUTATIONS: dict[str, list[tuple[object, str, Callable[..., Any]]]] = {
    "the reward on the wrong token": [(ppo, "token_rewards", reward_on_the_first_token)],
    "the reference's log-probabilities shifted": [(Reference, "logprobs", shifted_reference)],
    "the policy's log-probabilities shifted": [
        (ppo, "answer_logprobs", shifted_labels),
        (experience, "answer_logprobs", shifted_labels),
    ],
    "no divergence": [(KLController, "estimate", lambda *given: 0 * estimate(*given))],
    "the divergence flipped": [(KLController, "estimate", lambda *given: -estimate(*given))],
    "the advantage flipped": [(ppo, "whiten", lambda *given: -whiten(*given))],
    "the answer's tokens one late": [(ppo, "gae", lambda *given: gae(*given).roll(1, 1))],
}


@pytest.mark.parametrize("mistake", MUTATIONS)
def test_the_same_check_finds(
    mistake: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for owner, name, mutated in MUTATIONS[mistake]:
        monkeypatch.setattr(owner, name, mutated)
    assert run_ppo(tmp_path) > 0.02


# --- preferences


def test_dpo_recovers_the_rewards_behind_the_preferences() -> None:
    # Every pair of answers, each order as often as Bradley and Terry have it.
    policy = reference_policy().double()
    reward, reference = rewards().double(), policy.answer_logprobs().detach()
    wins_pp = torch.sigmoid(reward[:, None] - reward[None, :])
    left, right = (~torch.eye(len(ANSWERS), dtype=torch.bool)).nonzero(as_tuple=True)
    optimizer = torch.optim.LBFGS(
        policy.parameters(), max_iter=400, tolerance_grad=1e-12, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        logprobs = policy.answer_logprobs()
        sides = (logprobs[left], logprobs[right], reference[left], reference[right])
        losses, _ = dpo_loss(*sides, BETA)
        total = (wins_pp[left, right] * losses).mean()
        total.backward()
        return total

    optimizer.step(loss)
    with torch.no_grad():
        found = BETA * (policy.answer_logprobs() - reference)
    # Preferences say nothing of a constant added to all rewards.
    torch.testing.assert_close(found - found.mean(), reward - reward.mean(), atol=1e-3, rtol=0)
