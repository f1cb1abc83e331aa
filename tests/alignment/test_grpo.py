from typing import Any

import pytest
import torch

from puna.alignment.experience import Experience, Seen, TokenBatch, mask_of
from puna.alignment.grpo import GRPO, GRPOConfig
from puna.alignment.kl import KLConfig
from puna.alignment.losses import kl_k3
from puna.alignment.pairs import AnswerTokens, Comparison
from puna.alignment.rollouts import RolloutConfig
from puna.core.errors import UsageError
from puna.model import Llama, LlamaConfig

SHAPE = {"dim": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "ffn_dim": 24, "vocab_size": 20}
LENGTHS = [3, 1, 2, 4]
REWARDS = torch.tensor([1.0, 0.0, 5.0, 5.0])


def method(**fields: Any) -> GRPO:
    return GRPO(GRPOConfig(rollouts=RolloutConfig(prompts=2, answers=2), **fields))


def seen() -> Seen:
    mask = mask_of(LENGTHS)
    generator = torch.Generator().manual_seed(0)
    logprobs, reference = -torch.rand((2, *mask.shape), generator=generator)
    nothing = torch.zeros(4)
    return Seen(mask, logprobs * mask, reference * mask, 0.0 * mask, nothing)


@pytest.fixture(scope="module")
def model() -> Llama:
    built = Llama(LlamaConfig.parse(SHAPE, where="test"))
    built.init_weights(2)
    return built


def batch(columns: dict[str, torch.Tensor], *, share_prompt: bool = True) -> TokenBatch:
    def answer(*ids: int) -> AnswerTokens:
        return AnswerTokens(list(ids), [True] * len(ids))

    groups = [
        Comparison([5, 6, 7], (answer(1, 2, 3), answer(4))),
        Comparison([8, 9], (answer(10, 11), answer(12, 13, 14, 15))),
    ]
    experience = Experience(groups, mask_of(LENGTHS), columns)
    return experience.batch([0, 1], share_prompt=share_prompt)


def test_every_token_of_an_answer_gets_the_answers_advantage() -> None:
    columns, figures = method(scale_by_spread=False).credit(seen(), REWARDS)
    expected = torch.tensor([0.5, -0.5, 0.0, 0.0])[:, None] * mask_of(LENGTHS)
    torch.testing.assert_close(columns["advantages"], expected)
    assert figures["undecided"] == 0.5  # the second prompt's answers are equal
    scaled, _ = method().credit(seen(), REWARDS)
    # the floor of 1e-4 under a spread of 0.5
    torch.testing.assert_close(scaled["advantages"], 2 * expected, rtol=3e-4, atol=0)


def test_rloo_takes_the_divergence_of_an_answer_from_its_reward() -> None:
    given = seen()
    columns, _ = method(method="rloo", kl=KLConfig(coefficient=0.3)).credit(given, REWARDS)
    total = REWARDS - 0.3 * (given.logprobs_at - given.reference_at).sum(1)
    gaps = torch.stack(
        (total[0] - total[1], total[1] - total[0], total[2] - total[3], -total[2] + total[3])
    )
    torch.testing.assert_close(columns["advantages"], gaps[:, None] * given.mask_at)


@pytest.mark.parametrize("mean_over", ["tokens", "answers"])
def test_the_first_loss_is_the_advantage_and_the_penalty(model: Llama, mean_over: str) -> None:
    given = seen()
    plain = batch({}).answers.logprobs(model).detach()
    own = torch.zeros(given.mask_at.shape).masked_scatter(given.mask_at, plain)
    columns = {"logprobs": own, "reference": given.reference_at, "advantages": own.sin()}
    outcome = method(mean_over=mean_over, kl=KLConfig(coefficient=0.3, estimator="k3"))(
        model, batch(columns)
    )
    each = -own.sin() + 0.3 * kl_k3(own, given.reference_at)  # every ratio is 1
    if mean_over == "tokens":
        expected, count = each[given.mask_at].sum(), 10
    else:
        expected, count = ((each * given.mask_at).sum(1) / torch.tensor(LENGTHS)).sum(), 4
    torch.testing.assert_close(outcome.loss_sum.detach(), expected)
    assert outcome.count == count
    assert outcome.metrics["clip_fraction"] == 0
    assert outcome.metrics["policy_kl"] == pytest.approx(0, abs=1e-6)


def test_rloo_pays_no_penalty_in_the_loss(model: Llama) -> None:
    columns, _ = method(method="rloo").credit(seen(), REWARDS)
    zero = columns | {"advantages": torch.zeros(4, 4)}
    assert float(method(method="rloo")(model, batch(zero)).loss_sum.detach()) == 0


def test_shared_prompts_give_the_loss_and_gradient_of_plain_rows(model: Llama) -> None:
    columns, _ = method().credit(seen(), REWARDS)
    found = []
    for share in (True, False):
        outcome = method(entropy_weight=0.1)(model, batch(columns, share_prompt=share))
        model.zero_grad()
        outcome.loss_sum.backward()
        norm = torch.nn.utils.get_total_norm([p.grad for p in model.parameters()])
        found.append((float(outcome.loss_sum.detach()), float(norm)))
    assert found[0] == pytest.approx(found[1], rel=1e-5)


def test_a_single_answer_to_a_prompt_is_refused() -> None:
    fields = {"rollouts": {"answers": 1}}
    with pytest.raises(UsageError, match=r"rollouts\.answers is 1: .* ask for at least 2"):
        GRPOConfig.parse(fields, where="recipe")
