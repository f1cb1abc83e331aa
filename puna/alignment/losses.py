"""Losses of alignment as pure functions of tensors, each value left unreduced for the caller.

Suffixes of names: p is a pair, n an answer or position, v the vocabulary, bt a row and its tokens.
All log-probabilities are in nats. Advantages are in `puna.alignment.advantages`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def dpo_loss(
    chosen_p: Tensor,
    rejected_p: Tensor,
    ref_chosen_p: Tensor,
    ref_rejected_p: Tensor,
    beta: float,
    *,
    label_smoothing: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Direct preference optimisation (Rafailov et al. 2023, arXiv 2305.18290, eq. 7), per pair.

    Args:
        chosen_p, rejected_p: summed log-probabilities of each answer under the policy (pairs,).
        ref_chosen_p, ref_rejected_p: the same under the frozen reference.
        beta: weight of the implicit KL penalty.
        label_smoothing: assumed share of swapped labels, below one half; above 0 this is
            conservative DPO (Mitchell 2023), whose best margin is the logit of 1 - share.

    Returns:
        The loss of each pair and the margin of the implicit rewards, both (pairs,).
    """
    margin = beta * ((chosen_p - ref_chosen_p) - (rejected_p - ref_rejected_p))
    agree, differ = F.logsigmoid(margin), F.logsigmoid(-margin)
    return -(1 - label_smoothing) * agree - label_smoothing * differ, margin


def ipo_loss(
    chosen_p: Tensor, rejected_p: Tensor, ref_chosen_p: Tensor, ref_rejected_p: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """Identity preference optimisation (Azar et al. 2023, arXiv 2310.12036, eq. 17), per pair.

    The squared distance of the log-ratio gap from 1 / (2 beta), so the implicit rewards come to
    rest half a unit apart. Arguments and result as `dpo_loss`; beta is the paper's tau.
    """
    gap = (chosen_p - ref_chosen_p) - (rejected_p - ref_rejected_p)
    return (gap - 1 / (2 * beta)).square(), beta * gap


def hinge_loss(
    chosen_p: Tensor, rejected_p: Tensor, ref_chosen_p: Tensor, ref_rejected_p: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """Hinge on the margin (SLiC, arXiv 2305.10425; with a reference as arXiv 2309.06657, eq. 10).

    Zero once the implicit rewards are one apart. Arguments and result as `dpo_loss`.
    """
    margin = beta * ((chosen_p - ref_chosen_p) - (rejected_p - ref_rejected_p))
    return F.relu(1 - margin), margin


def bradley_terry_loss(better_p: Tensor, worse_p: Tensor, margin_p: Tensor | None = None) -> Tensor:
    """Negative log-likelihood that the better answer wins (Bradley and Terry 1952), per pair.

    Args:
        better_p, worse_p: scores of both answers (pairs,).
        margin_p: by how much the better should win at least, as Llama 2 had it (arXiv 2307.09288,
            eq. 2); Llama 3 leaves it out.
    """
    gap = better_p - worse_p
    return -F.logsigmoid(gap if margin_p is None else gap - margin_p)


def ppo_policy_loss(
    logprobs: Tensor, old_logprobs: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor]:
    """Clipped surrogate (Schulman et al. 2017, arXiv 1707.06347, eq. 7), per token.

    The smaller of the plain and the clipped objective: a bound, so that a ratio is never pushed
    further out, yet always back.

    Args:
        logprobs: of the sampled tokens under the policy being trained, any shape.
        old_logprobs: under the policy that sampled them.
        advantages: of the same shape; no gradient passes through them.
        clip_low, clip_high: the ratio is held in [1 - low, 1 + high] (unequal: arXiv 2503.14476).

    Returns:
        The loss, and where the clipped objective was the smaller: both of that shape.
    """
    ratio = (logprobs - old_logprobs).exp()
    plain = advantages * ratio
    clipped = advantages * ratio.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(plain, clipped), clipped < plain


def clipped_value_loss(
    values: Tensor, old_values: Tensor, returns: Tensor, clip: float
) -> tuple[Tensor, Tensor]:
    """Half the squared error of the values, pessimistic beyond ``clip`` of the old ones, per token.

    As in PPO's reference code (Dhariwal et al. 2017, OpenAI Baselines). Returns the loss, and where
    the clipped error was the larger.
    """
    plain = (values - returns).square()
    held = old_values + (values - old_values).clamp(-clip, clip)
    clipped = (held - returns).square()
    return 0.5 * torch.maximum(plain, clipped), clipped > plain


def entropy(logits_nv: Tensor) -> Tensor:
    """Entropy in nats of each distribution over the vocabulary, (positions,)."""
    logprobs = logits_nv.log_softmax(-1)
    return -(logprobs.exp() * logprobs).sum(-1)


def kl_k1(logprobs: Tensor, reference: Tensor) -> Tensor:
    """Estimate of KL(policy || reference) from one sampled token: the log-ratio itself.

    Unbiased for tokens drawn from the policy, of either sign (Schulman 2020, "Approximating KL
    divergence"). Both arguments are log-probabilities of the sampled tokens, any shape.
    """
    return logprobs - reference


def kl_k3(logprobs: Tensor, reference: Tensor) -> Tensor:
    """As `kl_k1`, never negative and of lower variance: r - 1 - ln r with r = reference / policy.

    Unbiased as a value. Its gradient is that of GRPO's penalty (arXiv 2402.03300, eq. 4).
    """
    log_ratio = reference - logprobs
    return log_ratio.expm1() - log_ratio


def forward_kl(student_nv: Tensor, teacher_nv: Tensor) -> Tensor:
    """KL(teacher || student) of logits, (positions,): covers all the teacher does (Hinton 2015).

    A temperature divides both logits before the call.
    """
    return _kl(teacher_nv.log_softmax(-1), student_nv.log_softmax(-1))


def reverse_kl(student_nv: Tensor, teacher_nv: Tensor) -> Tensor:
    """KL(student || teacher) of logits, (positions,): seeks the teacher's modes (2306.08543)."""
    return _kl(student_nv.log_softmax(-1), teacher_nv.log_softmax(-1))


def symmetric_kl(student_nv: Tensor, teacher_nv: Tensor) -> Tensor:
    """Mean of `forward_kl` and `reverse_kl` (Jeffreys' divergence, halved), (positions,)."""
    student, teacher = student_nv.log_softmax(-1), teacher_nv.log_softmax(-1)
    return 0.5 * (_kl(teacher, student) + _kl(student, teacher))


def _kl(logp_nv: Tensor, logq_nv: Tensor) -> Tensor:
    return (logp_nv.exp() * (logp_nv - logq_nv)).sum(-1)
