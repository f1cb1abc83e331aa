"""Learning when to refuse, beside the plain computation, one request at a time."""

import copy
from pathlib import Path

import numpy as np
import pytest
import torch

from puna.alignment import (
    RefusalConfig,
    RefusalObjective,
    RefusalRows,
    prompt_ids,
    refusing,
)
from puna.core.errors import UsageError
from puna.core.events import EventLog
from puna.model import Llama, LlamaConfig, LoraConfig, adapter_disabled, add_lora
from puna.safety.requests import SafetyRequest, asked, harmful, harmless
from puna.tokenizer import FORMATS, Tokenizer
from puna.training import LoopConfig, RowSource, train
from puna.workflow.recipe import Recipe
from puna.workflow.stages.corpus import exercises
from puna.workflow.stages.refusal import RefusalStage, refusal_rows, run_refusal
from puna.workflow.stages.training import Given

VOCAB, REFUSE = 47, 40
HEAD = [1, 2, 3]  # what all prompts begin with
LOOP = {"steps": 60, "batch_rows": 6, "learning_rate": 0.01, "warmup_steps": 2, "precision": "fp32"}


@pytest.fixture
def model() -> Llama:
    fields = {"dim": 32, "n_layers": 2, "n_heads": 2, "n_kv_heads": 1, "ffn_dim": 48}
    built = Llama(LlamaConfig.parse(fields | {"vocab_size": VOCAB, "context": 64}, where="test"))
    built.init_weights(1)
    with torch.no_grad():
        built.head_weight().mul_(20)  # sharp enough to have something to lose
    add_lora(built, LoraConfig(rank=4, alpha=8), seed=0)
    return built


def prompts(word: int, count: int, seed: int) -> list[list[int]]:
    """Prompts of 5 to 9 tokens that hold ``word`` somewhere."""
    rng = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        tail = rng.integers(10, 30, int(rng.integers(2, 7))).tolist()
        tail[int(rng.integers(len(tail)))] = word
        made.append([*HEAD, *tail])
    return made


def rows(count: int = 4, seed: int = 0) -> RefusalRows:
    bad, fine = prompts(30, count, seed), prompts(31, 2 * count, seed + 1)
    said = [[REFUSE, 41, 42], [REFUSE, 43], [REFUSE], [REFUSE, 44, 45, 46]]
    return RefusalRows(
        bad,
        [said[n % len(said)] for n in range(count)],
        [fine[2 * n : 2 * n + 2] for n in range(count)],
    )


def moved(model: Llama) -> Llama:
    """With an adapter that changes something."""
    generator = torch.Generator().manual_seed(3)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            with torch.no_grad():
                parameter.normal_(0, 0.1, generator=generator)
    return model


def test_the_loss_and_its_gradients_are_those_of_requests_one_by_one(model: Llama) -> None:
    moved(model)
    given, config = rows(), RefusalConfig(later_weight=0.3, benign_weight=2.0)
    outcome = RefusalObjective(config)(model, given.rows(np.array([2, 0, 3, 1])))
    first = later = kept = torch.zeros(())
    for prompt, said, benign in zip(given.harmful, given.refusals, given.benign, strict=True):
        logprobs = model(torch.tensor([[*prompt, *said]]))[0].log_softmax(-1)
        each = [logprobs[len(prompt) - 1 + n, token] for n, token in enumerate(said)]
        first = first - each[0]
        if len(each) > 1:
            later = later - torch.stack(each[1:]).mean()
        for request in benign:
            ids = torch.tensor([request])
            with torch.no_grad(), adapter_disabled(model):
                before = model(ids)[0, -1].softmax(-1)
            now = model(ids)[0, -1].log_softmax(-1)
            kept = kept + (before * (before.log() - now)).sum() / len(benign)
    assert outcome.count == 4
    assert outcome.metrics["first_token"] == pytest.approx(float(first.detach()), rel=1e-4)
    assert outcome.metrics["later_tokens"] == pytest.approx(float(later.detach()), rel=1e-4)
    assert outcome.metrics["divergence"] == pytest.approx(float(kept.detach()), rel=1e-4)
    expected = first + 0.3 * later + 2.0 * kept
    torch.testing.assert_close(outcome.loss_sum, expected, rtol=1e-4, atol=1e-4)
    trained = [p for p in model.parameters() if p.requires_grad]
    found = torch.autograd.grad(outcome.loss_sum, trained)
    plain = torch.autograd.grad(expected, trained)
    for ours, theirs in zip(found, plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-5)


def test_a_fresh_adapter_has_moved_nothing(model: Llama) -> None:
    outcome = RefusalObjective(RefusalConfig())(model, rows().rows(np.arange(4)))
    assert outcome.metrics["divergence"] == pytest.approx(0, abs=1e-5)


def test_only_harmful_requests_come_to_be_refused_and_the_others_keep_what_follows(
    model: Llama, tmp_path: Path
) -> None:
    given, untouched = rows(64), copy.deepcopy(model)
    bad, fine = prompts(30, 40, seed=8), prompts(31, 40, seed=9)
    assert refusing(model, bad, REFUSE) < 0.2
    loop = LoopConfig.parse(LOOP, where="test")
    train(
        model, RefusalObjective(RefusalConfig(benign_weight=2.0)), RowSource(given, 0, loop), loop,
        tmp_path, EventLog(),
    )  # fmt: skip
    assert refusing(model, bad, REFUSE) > 0.9
    assert refusing(model, fine, REFUSE) < 0.1
    with torch.inference_mode():
        rows_of = [torch.tensor([prompt]) for prompt in fine]
        now = [int(model(row)[0, -1].argmax()) for row in rows_of]
        before = [int(untouched(row)[0, -1].argmax()) for row in rows_of]
    assert sum(a != b for a, b in zip(now, before, strict=True)) < 0.3 * len(fine)


def test_both_sides_have_acts_in_frames_and_questions_in_the_share_asked_for() -> None:
    tokenizer = Tokenizer.train(["tell me how do I"] * 9, 280, n_special=16)
    tokenizer = tokenizer.with_chat(FORMATS["llama3"])
    loop = {"steps": 1, "batch_rows": 1, "learning_rate": 1e-3}
    config = RefusalStage.parse({"benign": 2, "questions": 0.25, "loop": loop}, where="test")
    made = refusal_rows(config, tokenizer, 5)

    def found(requests: list[SafetyRequest]) -> set[tuple[int, ...]]:
        return {tuple(prompt_ids(tokenizer, request.text)) for request in requests}

    acts, questions = found(harmful("train")), found(asked("harmful"))
    learned = [tuple(prompt) for prompt in made.harmful]
    assert len(learned) == len(harmful("train"))
    assert set(learned) <= acts | questions
    assert questions <= set(learned)
    assert sum(prompt in acts for prompt in learned) / len(learned) == pytest.approx(0.75, abs=1e-3)
    assert all(len(beside) == 2 for beside in made.benign)
    beside = [tuple(prompt) for some in made.benign for prompt in some]
    framed = found(harmless("train"))
    share = sum(prompt in framed for prompt in beside) / len(beside)
    assert share == pytest.approx(0.75, abs=1e-3)
    assert found(asked("harmless")) <= set(beside)
    assert not (acts | questions) & set(beside)
    assert all(len(refusal) == config.refusal.tokens for refusal in made.refusals)


def test_a_model_that_is_spread_is_refused_in_one_line(tmp_path: Path) -> None:
    loop = {"steps": 1, "batch_rows": 1, "learning_rate": 1e-3, "layout": {"tp": 2}}
    stage = {"base": "smollm2", "loop": loop}
    recipe = Recipe.parse({"name": "x", "stages": {"refusal": stage}}, where="test")
    assert recipe.stages.refusal is not None
    given = Given("smollm2", 0, exercises(recipe.kinds), EventLog(), {})
    with pytest.raises(UsageError, match=r"leave out loop\.layout"):
        run_refusal(recipe.stages.refusal, given, tmp_path)


def test_a_strength_is_for_adapters_that_are_a_sum() -> None:
    loop = {"steps": 1, "batch_rows": 1, "learning_rate": 1e-3}
    given = {"refusal": {"strength": 0.5}, "lora": {"dora": True}, "loop": loop}
    with pytest.raises(UsageError, match=r"needs lora\.dora: false"):
        RefusalStage.parse(given, where="test")
    RefusalStage.parse(given | {"refusal": {}}, where="test")
