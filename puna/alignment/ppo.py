"""Proximal policy optimisation of answers (arXiv 1707.06347), as RLHF has it (arXiv 2203.02155).

An answer is an episode and a token an action. Its score comes with the last token; each token pays
for straying from the reference; a value model foretells the rest, and generalised advantage
estimation says which tokens did better than foretold.
"""

import math

from pydantic import Field
from torch import Tensor

from puna.alignment.advantages import explained_variance, gae, token_rewards, whiten
from puna.alignment.experience import CLIPPED, MOVED, Seen, TokenBatch, token_entropies
from puna.alignment.kl import KLConfig, KLController, answer_logprobs
from puna.alignment.losses import clipped_value_loss, kl_k3, ppo_policy_loss
from puna.alignment.rollouts import RolloutConfig
from puna.alignment.value import ValueModel
from puna.core.config import Config
from puna.model import Llama
from puna.training import Outcome


class PPOConfig(Config):
    """The knobs of PPO itself."""

    rollouts: RolloutConfig = RolloutConfig(epochs=4)
    """How answers are sampled, and how long they are learned from."""
    kl: KLConfig = KLConfig()
    """The price of straying from the reference, paid token by token in the reward."""
    clip: float = Field(default=0.2, gt=0, lt=1)
    """How far from 1 the ratio of probabilities may be pushed."""
    discount: float = Field(default=1.0, gt=0, le=1)
    """Factor on rewards a token later; 1 since an answer's score is for all of it."""
    gae_lambda: float = Field(default=0.95, ge=0, le=1)
    """How far surprises at later tokens count; 1 trusts rewards only, 0 the next value only."""
    bootstrap: bool = False
    """Let an answer that was cut off go on in the value model's eyes; else it ends there."""
    whiten_advantages: bool = True
    """Give the advantages of a rollout mean 0 and variance 1."""
    shared_trunk: bool = False
    """Read values off the policy's own states instead of a second model."""
    value_weight: float = Field(default=0.5, gt=0)
    """Weight of the value model's loss."""
    value_clip: float | None = Field(default=0.2, gt=0)
    """How far a value may move from its old one before it counts as moved too far; None is any."""
    entropy_weight: float = Field(default=0.0, ge=0)
    """Reward for spread-out next tokens; 0 saves their computation."""


class PPO:
    """PPO's credit and loss, and its value model.

    Args:
        config: its knobs.
        policy: the model to be trained, as it is at the start; the value model begins as its copy.
    """

    def __init__(self, config: PPOConfig, policy: Llama) -> None:
        self.config = config
        self.rollouts = config.rollouts
        self.kl = KLController(config.kl)
        self.critic: ValueModel = ValueModel(policy, shared_trunk=config.shared_trunk)

    def credit(self, seen: Seen, rewards_a: Tensor) -> tuple[dict[str, Tensor], dict[str, float]]:
        """Advantages and targets of the values for each token of a rollout."""
        config, mask = self.config, seen.mask_at
        kl = self.kl.estimate(seen.logprobs_at, seen.reference_at)
        rewards = token_rewards(rewards_a, kl, mask, self.kl.coefficient)
        beyond = seen.last_values_a if config.bootstrap else None
        advantages = gae(rewards, seen.values_at, mask, config.discount, config.gae_lambda, beyond)
        returns = advantages + seen.values_at
        columns = {
            "logprobs": seen.logprobs_at,
            "advantages": whiten(advantages, mask) if config.whiten_advantages else advantages,
            "values": seen.values_at,
            "returns": returns,
        }
        return columns, {"explained_variance": explained_variance(seen.values_at, returns, mask)}

    def __call__(self, model: Llama, batch: TokenBatch) -> Outcome:
        """Clipped policy and value losses less the entropy's reward, summed over tokens."""
        config, old = self.config, batch.columns
        logprobs, states, hidden = answer_logprobs(model, batch.answers, self.rollouts.temperature)
        policy_loss, clipped = ppo_policy_loss(
            logprobs, old["logprobs"], old["advantages"], config.clip, config.clip
        )
        values = self.critic(batch.answers, hidden)[batch.answers.places]
        reach = math.inf if config.value_clip is None else config.value_clip
        value_loss, _ = clipped_value_loss(values, old["values"], old["returns"], reach)
        loss = policy_loss + config.value_weight * value_loss
        entropies = -logprobs.detach()  # an estimate that costs nothing
        if config.entropy_weight:
            entropies = token_entropies(states, model.head_weight())
            loss = loss - config.entropy_weight * entropies
        metrics = {
            "policy_loss": policy_loss,
            "value_loss": value_loss,
            "entropy": entropies,
            CLIPPED: clipped,
            MOVED: kl_k3(old["logprobs"], logprobs),
        }
        sums = {name: float(values.detach().sum()) for name, values in metrics.items()}
        return Outcome(loss.sum(), len(logprobs), sums)
