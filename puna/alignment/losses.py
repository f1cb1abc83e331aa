"""Losses of alignment as pure functions of tensors."""

import torch.nn.functional as F
from torch import Tensor


def dpo_loss(
    chosen_p: Tensor, rejected_p: Tensor, ref_chosen_p: Tensor, ref_rejected_p: Tensor, beta: float
) -> tuple[Tensor, Tensor]:
    """Direct preference optimisation (Rafailov et al. 2023, equation 7), per pair.

    Args:
        chosen_p, rejected_p: summed log-probabilities of each answer under the policy (pairs,).
        ref_chosen_p, ref_rejected_p: the same under the frozen reference.
        beta: weight of the implicit KL penalty.

    Returns:
        The loss of each pair and the margin of the implicit rewards, both (pairs,).
    """
    margin = beta * ((chosen_p - ref_chosen_p) - (rejected_p - ref_rejected_p))
    return -F.logsigmoid(margin), margin
