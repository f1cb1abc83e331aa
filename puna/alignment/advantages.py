"""From rewards to advantages: how much better an answer or a token did than expected.

Pure functions of tensors. Masks are True at tokens the policy chose; other positions (prompt,
padding, a tool's output) hold 0 and are passed over as if absent.
"""

import torch
from torch import Tensor

_LEAST_VARIANCE = 1e-8  # keeps whitening finite where all values are equal
_LEAST_SPREAD = 1e-4  # so that a group of equal rewards gives 0, not a magnified rounding error


def token_rewards(rewards_a: Tensor, kl_at: Tensor, mask_at: Tensor, coefficient: float) -> Tensor:
    """Reward of each token: what it strays from the reference costs, the last one brings the score.

    "Fine-Tuning Language Models from Human Preferences" (Ziegler et al. 2019, arXiv 1909.08593,
    eq. 2).

    Args:
        rewards_a: score of each answer (answers,).
        kl_at: estimate of KL(policy || reference) at each token (answers, time).
        mask_at: True at the answers' tokens.
        coefficient: price of a nat.
    """
    rewards_at = -coefficient * kl_at * mask_at
    places = torch.arange(mask_at.shape[1], device=mask_at.device)
    last_a = (places * mask_at).amax(1)
    return rewards_at.scatter_add(1, last_a[:, None], rewards_a[:, None])


def explained_variance(values_bt: Tensor, returns_bt: Tensor, mask_bt: Tensor) -> float:
    """Share of the variance of the returns that the values foresee: 1 is all, 0 no better than a
    constant, below 0 worse; 0 where the returns do not vary.
    """
    returns = returns_bt[mask_bt]
    spread = float(returns.var(correction=0))
    missed = float((returns - values_bt[mask_bt]).var(correction=0))
    return 1 - missed / spread if spread > _LEAST_VARIANCE else 0.0


def gae(
    rewards_bt: Tensor,
    values_bt: Tensor,
    mask_bt: Tensor,
    discount: float,
    decay: float,
    bootstrap_b: Tensor | None = None,
) -> Tensor:
    """Generalised advantage estimation (Schulman et al. 2016, arXiv 1506.02438, eq. 16).

    With ``decay`` (lambda) 0 the advantage is the error of one step, r + discount * V' - V; with 1
    it is the discounted sum of the rewards from there on less the values. Added to the values it
    gives their targets.

    Args:
        rewards_bt: reward of each chosen token.
        values_bt: value of the state in which each token was chosen.
        mask_bt: True at chosen tokens.
        discount: factor a token later.
        decay: how far errors of later tokens count.
        bootstrap_b: value of the state after the last token, for answers cut off; 0 by default.
    """
    advantages = torch.zeros_like(rewards_bt)
    next_value = torch.zeros_like(rewards_bt[:, 0]) if bootstrap_b is None else bootstrap_b
    later = torch.zeros_like(next_value)
    for t in reversed(range(rewards_bt.shape[1])):
        chosen = mask_bt[:, t]
        error = rewards_bt[:, t] + discount * next_value - values_bt[:, t]
        later = torch.where(chosen, error + discount * decay * later, later)
        next_value = torch.where(chosen, values_bt[:, t], next_value)
        advantages[:, t] = later * chosen
    return advantages


def whiten(values_bt: Tensor, mask_bt: Tensor) -> Tensor:
    """Values shifted to mean 0 and scaled to variance 1 over the masked positions; 0 elsewhere."""
    count = mask_bt.sum().clamp(min=1)
    centred = (values_bt - (values_bt * mask_bt).sum() / count) * mask_bt
    variance = centred.square().sum() / count
    return centred * torch.rsqrt(variance + _LEAST_VARIANCE)


def group_advantages(rewards_pk: Tensor, *, scale: bool = True) -> Tensor:
    """GRPO: each reward against the mean of its prompt's answers (Shao et al., arXiv 2402.03300).

    Args:
        rewards_pk: (prompts, answers of each).
        scale: whether to divide by the group's standard deviation, as the paper does; without,
            easy and hard prompts weigh no more than others (Liu et al., arXiv 2503.20783).
    """
    centred = rewards_pk - rewards_pk.mean(1, keepdim=True)
    if not scale:
        return centred
    spread = centred.square().mean(1, keepdim=True).sqrt()
    return centred / (spread + _LEAST_SPREAD)


def leave_one_out_advantages(rewards_pk: Tensor) -> Tensor:
    """RLOO: each reward less the mean of the prompt's other answers (arXiv 2402.14740, section 2).

    ``rewards_pk`` is (prompts, answers of each), with two answers or more.
    """
    n_answers = rewards_pk.shape[1]
    return (rewards_pk - rewards_pk.mean(1, keepdim=True)) * (n_answers / (n_answers - 1))
