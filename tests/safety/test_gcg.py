"""Greedy coordinate gradient on a tiny model: its gradient is right, and it gets what it wants."""

import asyncio
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from redteam_parts import Scripted, arena_of, attack_of
from torch import Tensor

from puna.core.errors import PunaError
from puna.model import Llama, LlamaConfig
from puna.safety.redteam.arena import Cast
from puna.safety.redteam.attacks import GradientAttack
from puna.safety.redteam.gcg import (
    Slots,
    allowed_tokens,
    coordinate_gradient,
    matches,
    run,
    search,
    suffix_losses,
)
from puna.safety.redteam.white_box import WhiteBox
from puna.tokenizer import Tokenizer

TEXTS = ["The llama grazes on the high grassland!", "Sure, here is a message that will help."]
SLOTS = Slots((1, 2, 3, 4), (5, 6), (7, 8, 9))
SUFFIX = (10, 11, 12)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS * 4, vocab_size=300, n_special=16)


@pytest.fixture(scope="module")
def model(tokenizer: Tokenizer) -> Llama:
    config = LlamaConfig(
        vocab_size=tokenizer.vocab_size,
        dim=32,
        n_layers=2,
        n_heads=4,
        n_kv_heads=2,
        ffn_dim=48,
        context=512,
    )
    model = Llama(config)
    model.init_weights(1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.15 * torch.randn(parameter.shape, generator=generator))
    return model.eval().requires_grad_(False)


def attack(**changes: object) -> GradientAttack:
    found = attack_of("gcg", **changes)
    assert isinstance(found, GradientAttack)
    return found


def free(model: Llama) -> Tensor:
    return torch.ones(model.config.vocab_size, dtype=torch.bool)


def test_the_loss_is_the_mean_negative_log_likelihood_of_the_target(model: Llama) -> None:
    ids = torch.tensor([[*SLOTS.before, *SUFFIX, *SLOTS.after, *SLOTS.target]])
    logprobs = F.log_softmax(model(ids)[0].double(), -1)
    first = ids.shape[1] - len(SLOTS.target)
    expected = -sum(float(logprobs[first + n - 1, t]) for n, t in enumerate(SLOTS.target)) / 3
    losses = suffix_losses(model, SLOTS, [SUFFIX, (13, 14, 15)])
    assert float(losses[0]) == pytest.approx(expected, abs=1e-5)  # fp32
    assert float(losses[0]) != pytest.approx(float(losses[1]))


def test_the_gradient_at_one_hot_rows_is_the_numeric_one(model: Llama) -> None:
    """Central differences of L along one-hot coordinates, in fp64."""
    exact = model.double()
    try:
        gradient = coordinate_gradient(exact, SLOTS, SUFFIX)
        assert gradient.shape == (len(SUFFIX), model.config.vocab_size)
        table, step = exact.model.embed_tokens.weight, 5e-3
        for place, token in ((0, 20), (1, 11), (2, 250)):
            sides = []
            for sign in (1, -1):
                moved = sign * step * table[token]

                def shift(_m: object, _i: object, out: Tensor, moved: Tensor = moved) -> Tensor:
                    shifted = out.clone()
                    shifted[:, len(SLOTS.before) + place] += moved  # noqa: B023
                    return shifted

                hook = exact.model.embed_tokens.register_forward_hook(shift)
                sides.append(float(suffix_losses(exact, SLOTS, [SUFFIX])[0]))
                hook.remove()
            numeric = (sides[0] - sides[1]) / (2 * step)
            # norms compute in fp32: rounding of the loss, 5e-7, over twice the step
            assert float(gradient[place, token]) == pytest.approx(numeric, rel=1e-2, abs=2e-4)
    finally:
        model.float()


def test_the_gradient_ranks_changes_better_than_chance(model: Llama) -> None:
    gradient = coordinate_gradient(model, SLOTS, SUFFIX)[1]
    real = suffix_losses(model, SLOTS, [(SUFFIX[0], token, SUFFIX[2]) for token in range(250)])
    ranks = [values.argsort().argsort().double() for values in (gradient[:250], real)]
    assert float(torch.corrcoef(torch.stack(ranks))[0, 1]) > 0.2


def test_a_search_lowers_its_loss_and_never_raises_it(model: Llama) -> None:
    found = search(
        model,
        SLOTS,
        SUFFIX,
        attack(steps=12, candidates=48, top_k=64),
        allowed=free(model),
        keeps=lambda _: True,
        seed=1,
    )
    assert found.losses[0] == pytest.approx(float(suffix_losses(model, SLOTS, [SUFFIX])[0]))
    assert all(later <= before for before, later in pairwise(found.losses))
    assert found.loss == found.losses[-1] < found.losses[0] - 0.5
    assert float(suffix_losses(model, SLOTS, [found.suffix])[0]) == pytest.approx(found.loss)


def test_it_ends_where_the_model_would_say_the_target(model: Llama) -> None:
    ids = [*SLOTS.before, *SUFFIX, *SLOTS.after]
    said: list[int] = []
    for _ in range(2):
        said.append(int(model(torch.tensor([ids + said]))[0, -1].argmax()))
    slots = Slots(SLOTS.before, SLOTS.after, tuple(said))
    assert matches(model, slots, SUFFIX)
    found = search(
        model, slots, SUFFIX, attack(), allowed=free(model), keeps=lambda _: True, seed=1
    )
    assert (found.suffix, len(found.losses), found.matched) == (SUFFIX, 1, True)


def test_only_allowed_tokens_and_suffixes_that_are_read_back_are_taken(model: Llama) -> None:
    allowed = torch.zeros(model.config.vocab_size, dtype=torch.bool)
    allowed[40:60] = True
    seen = []

    def keeps(suffix: object) -> bool:
        seen.append(suffix)
        return False

    found = search(model, SLOTS, SUFFIX, attack(steps=3), allowed=allowed, keeps=keeps, seed=1)
    assert found.suffix == SUFFIX
    changed = {token for suffix in seen for token in suffix if token not in SUFFIX}  # type: ignore
    assert changed
    assert all(40 <= token < 60 for token in changed)


def test_time_is_a_budget_too(model: Llama) -> None:
    found = search(
        model,
        SLOTS,
        SUFFIX,
        attack(seconds=1e-9),
        allowed=free(model),
        keeps=lambda _: True,
        seed=1,
    )
    assert len(found.losses) == 1


def test_tokens_of_a_suffix_are_printable_and_not_special(tokenizer: Tokenizer) -> None:
    allowed = allowed_tokens(tokenizer, tokenizer.vocab_size + 5)
    assert len(allowed) == tokenizer.vocab_size + 5
    assert not allowed[-5:].any()
    for token in allowed.nonzero().flatten().tolist():
        text = tokenizer.decode([token])
        assert text.isascii()
        assert text.isprintable()
        assert token not in tokenizer.special_ids
    assert not allowed[list(tokenizer.special_ids)].any()


def test_the_attack_sends_the_request_with_a_suffix_that_is_better(
    model: Llama, tokenizer: Tokenizer
) -> None:
    target = Scripted(lambda _: "no")
    quick = attack(steps=2, candidates=8, suffix_tokens=4)
    arena = arena_of(Cast(target, white_box=WhiteBox(lambda: (model, tokenizer))), quick)
    asyncio.run(run(quick, arena))
    sent = target.asked[0][-1].content
    assert sent.startswith(arena.aim.request)
    assert len(sent) > len(arena.aim.request)


def test_a_suffix_that_cannot_be_is_an_error(model: Llama, tokenizer: Tokenizer) -> None:
    class Odd(Tokenizer):
        def decode(self, ids, *, skip_special=False):  # type: ignore[no-untyped-def]
            return "?"

    odd = Odd(*tokenizer.__reduce__()[1])
    quick = attack(steps=1, suffix_tokens=4)
    arena = arena_of(Cast(Scripted(lambda _: ""), white_box=WhiteBox(lambda: (model, odd))), quick)
    with pytest.raises(PunaError, match="no suffix of this length"):
        asyncio.run(run(quick, arena))
