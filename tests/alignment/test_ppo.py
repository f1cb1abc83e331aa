import math
import os
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from puna.alignment.advantages import explained_variance, token_rewards
from puna.alignment.experience import (
    Experience,
    Seen,
    TokenBatch,
    look_at,
    mask_of,
    token_entropies,
)
from puna.alignment.kl import KLConfig, KLController, Reference
from puna.alignment.losses import entropy
from puna.alignment.online import Online, train_online
from puna.alignment.pairs import AnswerTokens, Comparison
from puna.alignment.ppo import PPO, PPOConfig
from puna.alignment.rollouts import Answer, RolloutConfig, Task
from puna.core.errors import UsageError
from puna.core.events import EventLog
from puna.model import Llama, LlamaConfig, LoraConfig, add_lora
from puna.model.lora import lora_layers
from puna.tokenizer import Tokenizer
from puna.training import LoopConfig
from puna.training.interrupt import Interrupted

SHAPE = {"dim": 16, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "ffn_dim": 24, "context": 64}
TASKS = [Task([5, 6 + n, 7], {"n": n}) for n in range(5)]
LOOP = LoopConfig(
    steps=7, batch_rows=2, learning_rate=1e-2, precision="fp32", checkpoint_every=2, log_every=1
)


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(["a b"] * 4, 268, n_special=12)


def fresh(vocab_size: int = 268, seed: int = 2) -> Llama:
    built = Llama(LlamaConfig.parse(SHAPE | {"vocab_size": vocab_size}, where="test"))
    built.init_weights(seed)
    with torch.no_grad():  # large enough that answers differ
        for parameter in built.parameters():
            parameter.mul_(4)
    return built


def count_low(answers: Sequence[Answer]) -> list[float]:
    """The share of small token ids."""
    return [sum(token < 128 for token in answer.ids) / len(answer.ids) for answer in answers]


def run(
    model: Llama, config: PPOConfig, tokenizer: Tokenizer, folder: Path, loop: LoopConfig = LOOP
) -> list[dict[str, Any]]:
    """Events of a run of PPO; one that is cut goes on in the same folder."""
    events: list[dict[str, Any]] = []
    log = EventLog(readers=(events.append,))
    train_online(
        model, tokenizer, PPO(config, model), TASKS, count_low, loop, folder, log,
        seed=1, stage="ppo",
    )  # fmt: skip
    return events


def rollouts(**changes: Any) -> RolloutConfig:
    return RolloutConfig(**{"prompts": 4, "answers": 2, "max_new_tokens": 5, "epochs": 2} | changes)


# --- the run


def killed() -> None:
    raise KeyboardInterrupt


def asked_to_stop() -> None:
    os.kill(os.getpid(), signal.SIGINT)  # the loop ends the step and saves


@pytest.mark.parametrize(
    ("end", "shared_trunk", "saved"),
    [(killed, False, 2), (killed, True, 2), (asked_to_stop, False, 4)],
)
def test_a_run_cut_inside_a_rollout_ends_bit_identical(
    tokenizer: Tokenizer,
    tmp_path: Path,
    end: Callable[[], None],
    shared_trunk: bool,
    saved: int,
) -> None:
    config = PPOConfig(
        rollouts=rollouts(normalise_rewards=True),
        kl=KLConfig(target=0.01),
        shared_trunk=shared_trunk,
    )
    straight, resumed = fresh(), fresh()
    whole = run(straight, config, tokenizer, tmp_path / "straight")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(PPO, "__call__", cut_at(4, end))  # in the first rollout's last step
        with pytest.raises((KeyboardInterrupt, Interrupted)):
            run(fresh(), config, tokenizer, tmp_path / "cut")
    rest = run(resumed, config, tokenizer, tmp_path / "cut")
    assert all(map(torch.equal, resumed.parameters(), straight.parameters()))
    first, second = (
        [without_times(e) for e in events if e["kind"] == "rollout"] for events in (whole, rest)
    )
    assert [row["step"] for row in first] == [4]
    assert second == first
    assert rest[0]["step"] == saved


def cut_at(step: int, end: Callable[[], None]) -> Any:
    original, calls = PPO.__call__, iter(range(1, 100))

    def call(self: PPO, model: Llama, batch: TokenBatch) -> Any:
        if next(calls) == step:
            end()
        return original(self, model, batch)

    return call


def without_times(event: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in event.items() if name not in ("time", "sampling_s")}


def test_the_table_has_a_row_for_each_rollout(tokenizer: Tokenizer, tmp_path: Path) -> None:
    loop = LOOP.model_copy(update={"steps": 8})
    events = run(fresh(), PPOConfig(rollouts=rollouts()), tokenizer, tmp_path, loop)
    rows = [event for event in events if event["kind"] == "rollout"]
    assert [(row["rollout"], row["step"], row["updates"]) for row in rows] == [(1, 4, 4), (2, 8, 4)]
    columns = {"reward", "kl", "entropy", "clip_fraction", "explained_variance", "length"}
    assert all(columns <= row.keys() for row in rows)
    assert all(math.isfinite(row[name]) for row in rows for name in columns)
    assert rows[0]["kl"] == pytest.approx(0, abs=1e-4)  # sampled from the reference itself
    assert rows[1]["kl"] != pytest.approx(0, abs=1e-4)
    steps = [event for event in events if event["kind"] == "train_step"]
    # the first step sees the very policy that sampled: every ratio is 1
    assert steps[0]["policy_kl"] == pytest.approx(0, abs=1e-6)
    assert steps[0]["clip_fraction"] == 0


def test_micro_batches_do_not_change_the_steps(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = PPOConfig(rollouts=rollouts(prompts=8), entropy_weight=0.01)
    loop = LOOP.model_copy(update={"batch_rows": 8, "steps": 4, "log_every": 1})
    losses = []
    for size in (0, 1, 4):
        changed = loop.model_copy(update={"micro_rows": size})
        events = run(fresh(), config, tokenizer, tmp_path / str(size), changed)
        losses.append([e["loss"] for e in events if e["kind"] == "train_step"])
    for other in losses[1:]:
        assert other == pytest.approx(losses[0], rel=1e-4)  # rounding grows over the steps


def test_a_policy_that_moved_too_far_is_sampled_anew(tokenizer: Tokenizer, tmp_path: Path) -> None:
    config = PPOConfig(rollouts=rollouts(epochs=50, stop_kl=1e-3))
    loop = LOOP.model_copy(update={"steps": 20})
    rows = [e for e in run(fresh(), config, tokenizer, tmp_path, loop) if e["kind"] == "rollout"]
    assert len(rows) >= 2
    assert all(row["updates"] < 100 for row in rows)
    assert all(row["policy_kl"] > 0 for row in rows)


def test_minibatches_that_do_not_divide_a_rollout_are_refused(tokenizer: Tokenizer) -> None:
    config = PPOConfig(rollouts=rollouts(prompts=5))
    with pytest.raises(UsageError, match=r"prompts 5 is not a multiple of .* batch_rows 2"):
        run(fresh(), config, tokenizer, Path("never"))


def test_no_prompts_are_refused() -> None:
    model = fresh()
    method = PPO(PPOConfig(rollouts=rollouts()), model)
    with pytest.raises(UsageError, match="no prompts to answer: give at least one"):
        Online(model, method, [], list, count_low, LOOP, EventLog(), seed=1, stage="ppo")


def test_answers_that_are_cut_off_cost_a_penalty(tokenizer: Tokenizer) -> None:
    taken: list[Tensor] = []

    class Watched(PPO):
        def credit(self, seen: Seen, rewards_a: Tensor) -> Any:
            taken.append(rewards_a)
            return super().credit(seen, rewards_a)

    def sample(_model: Llama, tasks: Sequence[Task], _seed: int) -> list[Answer]:
        return [Answer(task, [1, 2], "", ended=n % 2 == 0) for n, task in enumerate(tasks)]

    model = fresh()
    method = Watched(PPOConfig(rollouts=rollouts(answers=1, missing_end_penalty=0.5)), model)
    score = count_low
    online = Online(model, method, TASKS, sample, score, LOOP, EventLog(), seed=1, stage="ppo")
    online(0)
    assert taken[0].tolist() == [1.0, 0.5, 1.0, 0.5]


# --- what is learned from


def seen(values: list[list[float]], last: list[float]) -> Seen:
    mask = mask_of([3, 2])
    logprobs, reference = torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-1.5, -2.0, -2.0])
    return Seen(
        mask,
        logprobs * mask,
        reference * mask,
        torch.tensor(values) * mask,
        torch.tensor(last),
    )


def test_each_token_pays_for_straying_and_the_last_brings_the_score() -> None:
    mask = mask_of([3, 2])
    kl = torch.tensor([[0.5, 0.0, -1.0], [0.5, 0.1, 0.0]])
    found = token_rewards(torch.tensor([10.0, 20.0]), kl, mask, 0.2)
    torch.testing.assert_close(found, torch.tensor([[-0.1, 0.0, 10.2], [-0.1, 19.98, 0.0]]))


def test_credit_is_the_surprise_of_each_token() -> None:
    config = PPOConfig(kl=KLConfig(coefficient=0.1), gae_lambda=0.0, whiten_advantages=False)
    given = seen([[1.0, 2.0, 3.0], [4.0, 5.0, 0.0]], [0.0, 7.0])
    columns, figures = PPO(config, fresh()).credit(given, torch.tensor([10.0, 20.0]))
    expected = torch.tensor([[2 - 1 - 0.05, 3 - 2, 10 - 3 + 0.1], [5 - 4 - 0.05, 20 - 5, 0]])
    torch.testing.assert_close(columns["advantages"], expected)
    torch.testing.assert_close(columns["returns"], expected + given.values_at)
    assert figures["explained_variance"] == pytest.approx(
        explained_variance(given.values_at, columns["returns"], given.mask_at)
    )


def test_an_answer_cut_off_may_go_on_in_the_value_models_eyes() -> None:
    config = PPOConfig(
        kl=KLConfig(coefficient=0.0), gae_lambda=1.0, bootstrap=True, whiten_advantages=False
    )
    given = seen([[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], [0.0, 7.0])
    columns, _ = PPO(config, fresh()).credit(given, torch.tensor([10.0, 20.0]))
    expected = torch.tensor([[10.0, 10.0, 10.0], [27.0, 27.0, 0.0]])
    torch.testing.assert_close(columns["advantages"], expected)


def test_values_are_explained_wholly_not_at_all_or_worse() -> None:
    returns, mask = torch.tensor([[1.0, 2.0, 3.0, 99.0]]), torch.tensor([[True] * 3 + [False]])
    assert explained_variance(returns, returns, mask) == 1
    assert explained_variance(torch.full_like(returns, 7.0), returns, mask) == pytest.approx(0)
    assert explained_variance(-returns, returns, mask) == pytest.approx(-3)
    assert explained_variance(returns, torch.ones_like(returns), mask) == 0


def groups() -> list[Comparison]:
    def answer(*ids: int) -> AnswerTokens:
        return AnswerTokens(list(ids), [True] * len(ids))

    return [
        Comparison([5, 6, 7], (answer(1, 2, 3), answer(4))),
        Comparison([8, 9], (answer(10, 11), answer(12, 13, 14, 15))),
    ]


def looked_at(model: Llama, at_once: int = 2, *, share: bool = True) -> Seen:
    critic = PPO(PPOConfig(), model).critic
    torch.nn.init.normal_(critic.head.weight, generator=torch.Generator().manual_seed(1))
    ended = torch.tensor([True, False, True, False])
    return look_at(
        groups(), model, Reference(fresh(seed=3), torch.float32), critic, ended, 0.7,
        prompts_at_once=at_once, share_prompt=share,
    )  # fmt: skip


def test_a_rollout_is_seen_as_each_answer_alone_would_be() -> None:
    model = fresh()
    found = looked_at(model)
    assert found.mask_at.sum(1).tolist() == [3, 1, 2, 4]
    sides = [(g.prompt, a.ids) for g in groups() for a in g.answers]
    for n, (prompt, ids) in enumerate(sides):
        row = torch.tensor([prompt + ids])
        for policy, column in ((model, found.logprobs_at), (fresh(seed=3), found.reference_at)):
            table = torch.log_softmax(policy(row)[0].detach() / 0.7, -1)
            alone = [float(table[len(prompt) - 1 + t, token]) for t, token in enumerate(ids)]
            assert column[n, : len(ids)].tolist() == pytest.approx(alone, abs=1e-4)
        assert (found.values_at[n, len(ids) :] == 0).all()
    assert found.last_values_a[[0, 2]].tolist() == [0, 0]  # they ended
    assert (found.last_values_a[[1, 3]] != 0).all()


def test_how_many_prompts_are_seen_at_once_does_not_matter() -> None:
    model = fresh()
    together = looked_at(model)
    for other in (looked_at(model, 1), looked_at(model, share=False)):
        for name, column in vars(together).items():
            torch.testing.assert_close(getattr(other, name), column, atol=1e-5, rtol=1e-5)


def test_a_batch_holds_the_columns_of_its_prompts() -> None:
    mask = mask_of([3, 1, 2, 4])
    columns = {"credit": torch.arange(16.0).view(4, 4) * mask}
    batch = Experience(groups(), mask, columns).batch([1, 0], share_prompt=True)
    assert batch.answers.labels.tolist() == [10, 11, 12, 13, 14, 15, 1, 2, 3, 4]
    assert batch.columns["credit"].tolist() == [8, 9, 12, 13, 14, 15, 0, 1, 2, 4]


def test_entropies_in_chunks_equal_those_of_all_logits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("puna.alignment.experience.CHUNK_BYTES", 4 * 11 * 3)  # three at a time
    generator = torch.Generator().manual_seed(0)
    states = torch.randn(8, 5, generator=generator, requires_grad=True)
    weight = torch.randn(11, 5, generator=generator, requires_grad=True)
    found = token_entropies(states, weight)
    torch.testing.assert_close(found, entropy(states @ weight.T))
    ours = torch.autograd.grad(found.square().sum(), (states, weight))
    whole = torch.autograd.grad(entropy(states @ weight.T).square().sum(), (states, weight))
    for a, b in zip(ours, whole, strict=True):
        torch.testing.assert_close(a, b)


# --- staying near


def test_the_reference_stays_where_the_policy_began() -> None:
    model = fresh()
    reference = Reference(model, torch.float32)
    batch = Experience(groups(), mask_of([3, 1, 2, 4]), {}).batch([0, 1], share_prompt=True)
    before = reference.logprobs(model, batch.answers, 1.0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(1.5)
    torch.testing.assert_close(reference.logprobs(model, batch.answers, 1.0), before)
    assert not torch.allclose(batch.answers.logprobs(model), before)


def test_under_adapters_the_reference_is_the_model_without_them() -> None:
    model = fresh()
    batch = Experience(groups(), mask_of([3, 1, 2, 4]), {}).batch([0, 1], share_prompt=True)
    plain = batch.answers.logprobs(model).detach()
    add_lora(model, LoraConfig(rank=2))
    with torch.no_grad():
        for _, layer in lora_layers(model):
            layer.lora_B.normal_(generator=torch.Generator().manual_seed(3))
    reference = Reference(model, torch.float32)
    torch.testing.assert_close(reference.logprobs(model, batch.answers, 1.0), plain)
    assert not torch.allclose(batch.answers.logprobs(model), plain)


def test_the_price_of_straying_follows_its_target() -> None:
    controller = KLController(KLConfig(coefficient=0.1, target=5.0))
    controller.update(100.0)
    assert controller.coefficient == pytest.approx(0.1 * 1.02)  # held at a fifth, times a tenth
    controller.update(0.0)
    assert controller.coefficient == pytest.approx(0.1 * 1.02 * 0.98)
    controller.update(5.5)
    assert controller.coefficient == pytest.approx(0.1 * 1.02 * 0.98 * 1.01)
    fixed = KLController(KLConfig(coefficient=0.1))
    fixed.update(100.0)
    assert fixed.coefficient == 0.1


def test_adapters_and_their_value_model_are_trained_and_nothing_else(
    tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = fresh()
    add_lora(model, LoraConfig(rank=2))
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    run(model, PPOConfig(rollouts=rollouts()), tokenizer, tmp_path)
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    assert moved == {name for name in before if "lora_" in name}
