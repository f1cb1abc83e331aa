import math
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from puna.alignment.advantages import (
    gae,
    group_advantages,
    leave_one_out_advantages,
    whiten,
)
from puna.alignment.losses import (
    bradley_terry_loss,
    clipped_value_loss,
    dpo_loss,
    entropy,
    forward_kl,
    hinge_loss,
    ipo_loss,
    kl_k1,
    kl_k3,
    ppo_policy_loss,
    reverse_kl,
    symmetric_kl,
)

# Closed forms are compared in float64, where rounding is far below the tolerance of assert_close.
F64 = torch.float64
few = settings(max_examples=30, deadline=None)  # the first call of torch is slow
seeds = st.integers(0, 2**31)
lengths = st.integers(1, 9)


def returns_to_go(
    rewards_bt: Tensor, mask_bt: Tensor, discount: float = 1.0, bootstrap_b: Tensor | None = None
) -> Tensor:
    """Discounted sum of the rewards from each token on: what advantages are held to."""
    returns = torch.zeros_like(rewards_bt)
    later = torch.zeros(len(rewards_bt)) if bootstrap_b is None else bootstrap_b
    for t in reversed(range(rewards_bt.shape[1])):
        here = rewards_bt[:, t] + discount * later
        later = torch.where(mask_bt[:, t], here, later)
        returns[:, t] = here * mask_bt[:, t]
    return returns


def drawn(seed: int, *shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=F64)


def drawn_mask(seed: int, *shape: int) -> Tensor:
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.6
    mask[:, 0] = True
    return mask


def gap_tensors(gap: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Log-probabilities whose log-ratio gap is ``gap``."""
    return -3 + gap, torch.full_like(gap, -2), torch.full_like(gap, -4), torch.full_like(gap, -3)


def best_gap(loss: Callable[[Tensor], Tensor]) -> float:
    """The gap at which a convex loss is least, by Newton's method."""
    gap = torch.zeros(1, dtype=F64, requires_grad=True)
    for _ in range(50):
        (slope,) = torch.autograd.grad(loss(gap).sum(), gap, create_graph=True)
        (curve,) = torch.autograd.grad(slope.sum(), gap)
        gap = (gap - slope / curve).detach().requires_grad_()
    return float(gap.detach())


# --- preferences


@pytest.mark.parametrize("loss", [dpo_loss, hinge_loss, ipo_loss])
@few
@given(seeds, st.floats(0.01, 2))
def test_the_margin_is_beta_times_the_gap_of_log_ratios(
    loss: Callable[..., tuple[Tensor, Tensor]], seed: int, beta: float
) -> None:
    chosen, rejected, ref_chosen, ref_rejected = drawn(seed, 4, 3)
    _, margin = loss(chosen, rejected, ref_chosen, ref_rejected, beta)
    torch.testing.assert_close(margin, beta * (chosen - ref_chosen - rejected + ref_rejected))


@few
@given(st.floats(0, 0.49), st.floats(0.01, 2))
def test_the_first_dpo_loss_is_log_two_whatever_the_smoothing(share: float, beta: float) -> None:
    start = gap_tensors(torch.zeros(2, dtype=F64))
    loss, _ = dpo_loss(*start, beta, label_smoothing=share)
    torch.testing.assert_close(loss, torch.full((2,), math.log(2), dtype=F64))


@few
@given(st.floats(0.01, 0.45), st.floats(0.05, 2))
def test_conservative_dpo_is_content_at_the_logit_of_the_trusted_share(
    share: float, beta: float
) -> None:
    best = best_gap(lambda gap: dpo_loss(*gap_tensors(gap), beta, label_smoothing=share)[0])
    assert beta * best == pytest.approx(math.log((1 - share) / share), rel=1e-6)


@few
@given(st.floats(0.05, 2))
def test_ipo_is_content_at_half_the_inverse_of_beta(beta: float) -> None:
    best = best_gap(lambda gap: ipo_loss(*gap_tensors(gap), beta)[0])
    assert best == pytest.approx(1 / (2 * beta), rel=1e-9)


def test_the_hinge_is_flat_beyond_a_margin_of_one() -> None:
    gap = torch.tensor([-1.0, 0.0, 4.0, 10.0, 99.0], requires_grad=True)
    loss, _ = hinge_loss(*gap_tensors(gap), 0.1)
    torch.testing.assert_close(loss.detach(), torch.tensor([1.1, 1.0, 0.6, 0.0, 0.0]))
    loss.sum().backward()
    assert gap.grad is not None
    torch.testing.assert_close(gap.grad, torch.tensor([-0.1, -0.1, -0.1, 0.0, 0.0]))


# --- reward model


def test_equal_scores_lose_log_two_and_a_margin_demands_more() -> None:
    better, worse = torch.tensor([1.0, 3.0]), torch.tensor([1.0, 1.0])
    loss = bradley_terry_loss(better, worse)
    assert loss.tolist() == pytest.approx([math.log(2), math.log1p(math.exp(-2))])
    demanding = bradley_terry_loss(better, worse, torch.tensor([2.0, 2.0]))
    assert demanding.tolist() == pytest.approx([math.log1p(math.exp(2)), math.log(2)])


def test_bradley_terry_finds_the_log_odds_of_the_wins() -> None:
    wins = torch.tensor([True] * 3 + [False])
    best = best_gap(
        lambda gap: bradley_terry_loss(torch.where(wins, gap, -gap), torch.zeros(4, dtype=F64))
    )
    assert best == pytest.approx(math.log(3))


# --- ratio and clip


@few
@given(seeds)
def test_the_first_ratio_is_one_so_the_loss_is_minus_the_advantage(seed: int) -> None:
    logprobs = drawn(seed, 2, 5).requires_grad_()
    advantages = drawn(seed + 1, 2, 5)
    loss, clipped = ppo_policy_loss(logprobs, logprobs.detach(), advantages, 0.2, 0.2)
    torch.testing.assert_close(loss.detach(), -advantages)
    assert not clipped.any()
    loss.sum().backward()
    torch.testing.assert_close(logprobs.grad, -advantages)  # REINFORCE's gradient


@pytest.mark.parametrize(
    ("ratio", "advantage", "expected", "moves"),
    [
        (1.5, 1.0, -1.2, False),  # far enough: no further out
        (0.5, -1.0, 0.7, False),
        (1.5, -1.0, 1.5, True),  # wrong way: always back
        (0.5, 1.0, -0.5, True),
        (1.1, 1.0, -1.1, True),
    ],
)
def test_the_smaller_objective_counts(
    ratio: float, advantage: float, expected: float, moves: bool
) -> None:
    logprob = torch.tensor([math.log(ratio)], requires_grad=True)
    loss, clipped = ppo_policy_loss(logprob, torch.zeros(1), torch.tensor([advantage]), 0.3, 0.2)
    loss.sum().backward()
    assert float(loss.detach()) == pytest.approx(expected)
    assert logprob.grad is not None
    assert bool(logprob.grad != 0) == moves
    assert bool(clipped) == (not moves)


def test_a_value_far_from_the_old_one_is_judged_pessimistically() -> None:
    values = torch.tensor([0.1, 1.0, -1.0], requires_grad=True)
    loss, clipped = clipped_value_loss(values, torch.zeros(3), torch.ones(3), 0.2)
    torch.testing.assert_close(loss.detach(), 0.5 * torch.tensor([0.9**2, 0.8**2, 4.0]))
    assert clipped.tolist() == [False, True, False]
    loss.sum().backward()
    assert values.grad is not None
    torch.testing.assert_close(values.grad, torch.tensor([-0.9, 0.0, -2.0]))


@few
@given(st.integers(2, 40))
def test_entropy_of_equal_chances_is_the_log_of_their_number(vocab: int) -> None:
    found = entropy(torch.full((3, vocab), 2.5, dtype=F64))
    torch.testing.assert_close(found, torch.full((3,), math.log(vocab), dtype=F64))


# --- divergences


@few
@given(seeds)
def test_both_estimators_have_the_divergence_as_their_mean(seed: int) -> None:
    logp, logq = drawn(seed, 2, 6).log_softmax(-1)
    exact = (logp.exp() * (logp - logq)).sum()
    torch.testing.assert_close((logp.exp() * kl_k1(logp, logq)).sum(), exact)
    torch.testing.assert_close((logp.exp() * kl_k3(logp, logq)).sum(), exact)


@few
@given(st.floats(-30, 0), st.floats(-30, 0))
def test_k3_is_never_negative_and_zero_where_both_agree(policy: float, reference: float) -> None:
    a, b = torch.tensor(policy, dtype=F64), torch.tensor(reference, dtype=F64)
    assert float(kl_k3(a, b)) >= 0
    assert float(kl_k3(a, a)) == 0
    assert float(kl_k1(a, b)) == pytest.approx(policy - reference)


@few
@given(seeds)
def test_divergences_of_distillation_equal_torchs(seed: int) -> None:
    student, teacher = drawn(seed, 2, 4, 6)
    log_student, log_teacher = student.log_softmax(-1), teacher.log_softmax(-1)
    forward = F.kl_div(log_student, log_teacher, reduction="none", log_target=True).sum(-1)
    reverse = F.kl_div(log_teacher, log_student, reduction="none", log_target=True).sum(-1)
    torch.testing.assert_close(forward_kl(student, teacher), forward)
    torch.testing.assert_close(reverse_kl(student, teacher), reverse)
    torch.testing.assert_close(symmetric_kl(student, teacher), (forward + reverse) / 2)
    torch.testing.assert_close(symmetric_kl(teacher, student), symmetric_kl(student, teacher))


# --- advantages


@few
@given(seeds, lengths, st.floats(0.5, 1))
def test_returns_are_the_discounted_sums(seed: int, time: int, discount: float) -> None:
    rewards = drawn(seed, 2, time)
    last = drawn(seed + 1, 2)
    found = returns_to_go(rewards, torch.ones(2, time, dtype=torch.bool), discount, last)
    powers = discount ** torch.arange(time + 1, dtype=F64)
    for t in range(time):
        ahead = torch.cat((rewards[:, t:], last[:, None]), 1)
        torch.testing.assert_close(found[:, t], ahead @ powers[: time + 1 - t])


@few
@given(seeds, lengths, st.floats(0.5, 1))
def test_gae_with_lambda_zero_is_the_error_of_one_step(
    seed: int, time: int, discount: float
) -> None:
    rewards, values, last = drawn(seed, 2, time), drawn(seed + 1, 2, time), drawn(seed + 2, 2)
    mask = torch.ones(2, time, dtype=torch.bool)
    following = torch.cat((values[:, 1:], last[:, None]), 1)
    found = gae(rewards, values, mask, discount, 0.0, last)
    torch.testing.assert_close(found, rewards + discount * following - values)


@few
@given(seeds, lengths, st.floats(0.5, 1))
def test_gae_with_lambda_one_is_the_return_less_the_value(
    seed: int, time: int, discount: float
) -> None:
    rewards, values, last = drawn(seed, 2, time), drawn(seed + 1, 2, time), drawn(seed + 2, 2)
    mask = drawn_mask(seed + 3, 2, time)
    found = gae(rewards, values, mask, discount, 1.0, last)
    expected = returns_to_go(rewards, mask, discount, last) - values * mask
    torch.testing.assert_close(found, expected)


@few
@given(seeds, lengths, st.floats(0.5, 1), st.floats(0, 1))
def test_masked_positions_are_passed_over_as_if_absent(
    seed: int, time: int, discount: float, decay: float
) -> None:
    rewards, values, last = drawn(seed, 1, time), drawn(seed + 1, 1, time), drawn(seed + 2, 1)
    mask = drawn_mask(seed + 3, 1, time)
    found = gae(rewards, values, mask, discount, decay, last)
    kept = mask[0].nonzero().squeeze(1)
    alone = torch.ones(1, len(kept), dtype=torch.bool)
    expected = gae(rewards[:, kept], values[:, kept], alone, discount, decay, last)
    torch.testing.assert_close(found[:, kept], expected)
    assert (found[~mask] == 0).all()


@few
@given(seeds, lengths)
def test_right_values_leave_no_advantage_with_or_without_a_bootstrap(seed: int, time: int) -> None:
    # An off-by-one bootstrap (the value of the last token for that after it) fails here.
    rewards, last, mask = drawn(seed, 2, time), drawn(seed + 1, 2), drawn_mask(seed + 2, 2, time)
    for bootstrap in (last, None):
        values = returns_to_go(rewards, mask, 0.9, bootstrap)
        found = gae(rewards, values, mask, 0.9, 0.7, bootstrap)
        torch.testing.assert_close(found, torch.zeros_like(found), atol=1e-12, rtol=0)


@few
@given(seeds, st.integers(2, 9), st.floats(-100, 100))
def test_whitening_leaves_mean_zero_and_variance_one(seed: int, time: int, shift: float) -> None:
    mask = drawn_mask(seed, 3, time)
    found = whiten(5 * drawn(seed + 1, 3, time) + shift, mask)
    assert float(found[mask].mean()) == pytest.approx(0, abs=1e-9)
    # exact up to the floor under the variance, 1e-8 of 25
    assert float(found[mask].square().mean()) == pytest.approx(1, abs=1e-6)
    assert (found[~mask] == 0).all()


def test_whitening_equal_values_gives_zeros() -> None:
    mask = torch.tensor([[True, True, False]])
    assert whiten(torch.full((1, 3), 7.0), mask).tolist() == [[0, 0, 0]]


@few
@given(seeds, st.integers(2, 8))
def test_advantages_of_a_group_sum_to_zero(seed: int, n_answers: int) -> None:
    rewards = drawn(seed, 3, n_answers)
    zeros = torch.zeros(3, dtype=F64)
    for found in (
        group_advantages(rewards),
        group_advantages(rewards, scale=False),
        leave_one_out_advantages(rewards),
    ):
        torch.testing.assert_close(found.sum(1), zeros, atol=1e-9, rtol=0)


@few
@given(seeds, st.integers(2, 8))
def test_leaving_one_out_compares_with_the_mean_of_the_others(seed: int, n_answers: int) -> None:
    rewards = drawn(seed, 1, n_answers)
    found = leave_one_out_advantages(rewards)
    for i in range(n_answers):
        others = torch.cat((rewards[0, :i], rewards[0, i + 1 :]))
        torch.testing.assert_close(found[0, i], rewards[0, i] - others.mean())


def test_a_group_is_scaled_to_unit_spread_and_equal_answers_teach_nothing() -> None:
    found = group_advantages(torch.tensor([[0.0, 1.0, 0.0, 1.0], [0.3, 0.3, 0.3, 0.3]]))
    # the floor of 1e-4 under a spread of 0.5 takes 2e-4 of it
    torch.testing.assert_close(found[0], torch.tensor([-1.0, 1, -1, 1]), rtol=3e-4, atol=0)
    torch.testing.assert_close(found[1], torch.zeros(4), atol=1e-3, rtol=0)
