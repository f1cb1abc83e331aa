"""Distillation beside the plain computation it replaces, and what it teaches."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from puna.alignment import distill
from puna.alignment.distill import DistillConfig, DistillObjective
from puna.core.errors import UsageError
from puna.core.events import EventLog
from puna.data import Batch
from puna.model import IGNORED, Llama, LlamaConfig
from puna.training import LoopConfig, Source, train

VOCAB = 41


def model(seed: int, **changes: Any) -> Llama:
    fields = {"dim": 32, "n_layers": 1, "n_heads": 2, "n_kv_heads": 1, "ffn_dim": 48}
    built = Llama(LlamaConfig(**fields | {"vocab_size": VOCAB, "context": 32} | changes))
    built.init_weights(seed)
    with torch.no_grad():  # sharp enough that directions of the divergence differ
        built.head_weight().mul_(30)
    return built


@pytest.fixture
def batch() -> Batch:
    ids = torch.randint(0, VOCAB, (2, 12), generator=torch.Generator().manual_seed(1))
    labels = ids.roll(-1, 1)
    labels[:, -1] = IGNORED
    labels[0, :4] = IGNORED
    return Batch(ids, labels, torch.zeros_like(ids), torch.arange(12).expand(2, 12))


def plain(student: torch.Tensor, teacher: torch.Tensor, kind: str) -> torch.Tensor:
    """By definition: the sum over the vocabulary of p (ln p - ln q)."""
    p, q = teacher.softmax(-1), student.softmax(-1)
    forward, reverse = (p * (p / q).log()).sum(-1), (q * (q / p).log()).sum(-1)
    return {"forward": forward, "reverse": reverse, "symmetric": (forward + reverse) / 2}[kind]


@pytest.mark.parametrize("kind", ["forward", "reverse", "symmetric"])
@pytest.mark.parametrize("heat", [1.0, 2.5])
@pytest.mark.parametrize("tokens_at_once", [3, 1000])
def test_the_sum_and_its_gradients_are_the_plain_ones(
    batch: Batch, monkeypatch: pytest.MonkeyPatch, kind: str, heat: float, tokens_at_once: int
) -> None:
    monkeypatch.setattr(distill, "CHUNK_BYTES", 4 * VOCAB * tokens_at_once)
    student, teacher = model(1), model(2, dim=48, ffn_dim=64)
    config = DistillConfig.parse({"divergence": kind, "temperature": heat}, where="test")
    outcome = DistillObjective(config, teacher)(student, batch)
    kept = batch.labels != IGNORED
    expected = plain(student(batch.ids)[kept] / heat, teacher(batch.ids)[kept] / heat, kind)
    assert outcome.count == int(kept.sum())
    torch.testing.assert_close(outcome.loss_sum, expected.sum() * heat**2, atol=1e-4, rtol=1e-5)
    ours = torch.autograd.grad(outcome.loss_sum, list(student.parameters()))
    theirs = torch.autograd.grad(expected.sum() * heat**2, list(student.parameters()))
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


def test_a_student_equal_to_its_teacher_has_nothing_to_learn(batch: Batch) -> None:
    outcome = DistillObjective(DistillConfig(), model(1))(model(1), batch)
    assert float(outcome.loss_sum.detach()) == pytest.approx(0, abs=1e-4)


def test_labels_take_their_share(batch: Batch) -> None:
    student, teacher = model(1), model(2)
    outcome = DistillObjective(DistillConfig(label_weight=0.25), teacher)(student, batch)
    kept = batch.labels != IGNORED
    nll = torch.nn.functional.cross_entropy(
        student(batch.ids)[kept], batch.labels[kept], reduction="sum"
    )
    assert outcome.metrics["nll"] == pytest.approx(float(nll.detach()), rel=1e-5)
    expected = 0.75 * outcome.metrics["divergence"] + 0.25 * outcome.metrics["nll"]
    assert float(outcome.loss_sum.detach()) == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("kind", ["forward", "reverse", "symmetric"])
def test_a_student_comes_to_agree_with_its_teacher(batch: Batch, tmp_path: Path, kind: str) -> None:
    student, teacher = model(1), model(2)
    loop = LoopConfig(steps=60, batch_rows=2, learning_rate=1e-2, precision="fp32", log_every=1)
    told: list[dict[str, Any]] = []
    config = DistillConfig.parse({"divergence": kind}, where="test")
    source: Source = lambda step, share: [batch]  # noqa: E731
    events = EventLog(readers=(told.append,))
    train(student, DistillObjective(config, teacher), source, loop, tmp_path, events)
    losses = np.array([event["divergence"] for event in told if event["kind"] == "train_step"])
    assert losses[-1] < 0.25 * losses[0]


def test_two_vocabularies_are_refused(batch: Batch) -> None:
    with pytest.raises(UsageError, match="the teacher has 50 tokens, the student 41"):
        DistillObjective(DistillConfig(), model(1, vocab_size=50))(model(1), batch)
