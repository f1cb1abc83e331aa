"""GRPO and RLOO: several answers to each prompt are each other's baseline; no value model.

GRPO (Shao et al. 2024, arXiv 2402.03300) scales by the group's spread and pays for straying from
the reference in the loss. RLOO (Ahmadian et al. 2024, arXiv 2402.14740) compares with the mean of
the others and pays in the reward.
"""

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from puna.alignment.advantages import group_advantages, leave_one_out_advantages
from puna.alignment.experience import CLIPPED, MOVED, Seen, TokenBatch, token_entropies
from puna.alignment.kl import KLConfig, KLController, answer_logprobs
from puna.alignment.losses import kl_k3, ppo_policy_loss
from puna.alignment.rollouts import RolloutConfig
from puna.alignment.value import ValueModel
from puna.core.config import Config
from puna.model import Llama
from puna.training import Outcome


class GRPOConfig(Config):
    """The knobs of GRPO and RLOO."""

    method: Literal["grpo", "rloo"] = "grpo"
    """GRPO, or RLOO, which needs neither the spread nor a penalty in the loss."""
    rollouts: RolloutConfig = RolloutConfig(answers=8)
    """How answers are sampled, at least two to a prompt, and how long they are learned from."""
    kl: KLConfig = KLConfig(coefficient=0.04, estimator="k3")
    """The price of straying from the reference: in GRPO's loss, in RLOO's reward."""
    clip_low: float = Field(default=0.2, gt=0, lt=1)
    """How far below 1 the ratio of probabilities may be pushed."""
    clip_high: float = Field(default=0.2, gt=0)
    """How far above 1; more than ``clip_low`` lets rare tokens rise (arXiv 2503.14476)."""
    scale_by_spread: bool = True
    """Divide GRPO's advantages by the group's standard deviation; off in arXiv 2503.20783."""
    mean_over: Literal["tokens", "answers"] = "tokens"
    """What the loss is a mean of: tokens, so that long answers count by their length (arXiv
    2503.14476), or answers, each the mean of its tokens, as in GRPO's paper."""
    entropy_weight: float = Field(default=0.0, ge=0)
    """Reward for spread-out next tokens; 0 saves their computation."""

    @model_validator(mode="after")
    def _answers_to_compare(self) -> Self:
        if self.rollouts.answers < 2:
            raise ValueError(
                f"rollouts.answers is {self.rollouts.answers}: answers to a prompt are compared, "
                "so ask for at least 2"
            )
        return self


class GRPO:
    """Credit and loss of GRPO or RLOO.

    Args:
        config: its knobs.
    """

    def __init__(self, config: GRPOConfig) -> None:
        self.config = config
        self.rollouts = config.rollouts
        self.kl = KLController(config.kl)
        self.critic: ValueModel | None = None

    def credit(self, seen: Seen, rewards_a: Tensor) -> tuple[dict[str, Tensor], dict[str, float]]:
        """One advantage for all tokens of an answer; the share of prompts that taught nothing."""
        grouped = self.config.rollouts.answers
        if self.config.method == "rloo":
            strayed = self.kl.estimate(seen.logprobs_at, seen.reference_at).sum(1)
            total = rewards_a - self.kl.coefficient * strayed
            advantages = leave_one_out_advantages(total.view(-1, grouped))
        else:
            advantages = group_advantages(
                rewards_a.view(-1, grouped), scale=self.config.scale_by_spread
            )
        columns = {
            "logprobs": seen.logprobs_at,
            "reference": seen.reference_at,
            "advantages": advantages.view(-1, 1) * seen.mask_at,
        }
        undecided = (rewards_a.view(-1, grouped).std(1) < 1e-6).float().mean()
        return columns, {"undecided": float(undecided)}

    def __call__(self, model: Llama, batch: TokenBatch) -> Outcome:
        """Clipped policy loss, with GRPO the penalty, less the entropy's reward."""
        config, old = self.config, batch.columns
        logprobs, states, _ = answer_logprobs(model, batch.answers, self.rollouts.temperature)
        loss, clipped = ppo_policy_loss(
            logprobs, old["logprobs"], old["advantages"], config.clip_low, config.clip_high
        )
        if config.method == "grpo":
            loss = loss + self.kl.coefficient * self.kl.estimate(logprobs, old["reference"])
        entropies = -logprobs.detach()  # an estimate that costs nothing
        if config.entropy_weight:
            entropies = token_entropies(states, model.head_weight())
            loss = loss - config.entropy_weight * entropies
        weights, count = self._weights(batch)
        metrics = {
            "entropy": entropies,
            CLIPPED: clipped,
            MOVED: kl_k3(old["logprobs"], logprobs),
        }
        sums = {name: float((values.detach() * weights).sum()) for name, values in metrics.items()}
        return Outcome((loss * weights).sum(), count, sums)

    def _weights(self, batch: TokenBatch) -> tuple[Tensor, int]:
        """Weight of each token (n,), and what the weights sum to."""
        owners = batch.answers.owners
        if self.config.mean_over == "tokens":
            return torch.ones(len(owners), device=owners.device), len(owners)
        lengths_a = batch.answers.by_answer(torch.ones_like(owners))
        return 1 / lengths_a[owners], len(lengths_a)
