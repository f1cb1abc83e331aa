"""Training an adapter: equal however rows are cut or packed; at full rank it is full tuning."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from puna.core.events import EventLog
from puna.data import Batch, PackedRows, Share
from puna.model import Llama, LoraConfig, add_lora, merge
from puna.model.lora import LoRALinear, lora_layers
from puna.training import LoopConfig, RowSource, Source, next_token, train

New = Callable[[], Llama]
KINDS = [{}, {"dora": True, "rslora": True}, {"base": "nf4"}]


def adapted(new_model: New, **changes: Any) -> Llama:
    model = new_model()
    add_lora(model, LoraConfig.parse({"rank": 4} | changes, where="test"), seed=1)
    return model


def run(model: Llama, source: Any, loop: LoopConfig, folder: Path) -> np.ndarray:
    """Loss and gradient norm of each step, (steps, 2)."""
    events: list[dict[str, Any]] = []
    train(model, next_token, source, loop, folder, EventLog(readers=(events.append,)))
    told = [event for event in events if event["kind"] == "train_step"]
    return np.array([(event["loss"], event["grad_norm"]) for event in told])


def unpacked(source: RowSource[Batch]) -> Source:
    """The same documents, one to a row and a row to a pass."""

    def batches(step: int, share: Share) -> list[Batch]:
        found = []
        for batch in source(step, share):
            for row in range(len(batch.ids)):
                for number in range(int(batch.documents[row].max()) + 1):
                    inside = batch.documents[row] == number
                    parts = (batch.ids, batch.labels, batch.documents, batch.positions)
                    found.append(Batch(*(part[row, inside][None] for part in parts)))
        return found

    return batches


@pytest.mark.parametrize("kind", KINDS, ids=["lora", "dora", "qlora"])
@pytest.mark.parametrize("route", ["accumulated", "unpacked"])
def test_how_rows_are_cut_does_not_matter(
    rows: PackedRows, new_model: New, loop: LoopConfig, tmp_path: Path, kind: dict[str, Any],
    route: str,
) -> None:  # fmt: skip
    loop = loop.model_copy(update={"log_every": 1, "batch_rows": 8, "learning_rate": 1e-3})
    whole = RowSource(rows, seed=5, config=loop)
    single = RowSource(rows, seed=5, config=loop.model_copy(update={"micro_rows": 1}))
    other = single if route == "accumulated" else unpacked(whole)
    expected = run(adapted(new_model, **kind), whole, loop, tmp_path / "whole")
    found = run(adapted(new_model, **kind), other, loop, tmp_path / "parts")
    residuals = found / expected - 1
    assert np.abs(residuals).max() <= 1e-5
    assert abs(residuals.mean()) <= 1e-6  # rounding, not bias


def at_full_rank(model: Llama) -> None:
    """Adapters of full rank whose A is the unit matrix, frozen, and whose scale is 1.

    Then the merged weight is W + B and the gradient in B is that in W; with no decay an optimizer
    that reads gradients only moves B as it would move W. So every step is one of full tuning.
    """
    add_lora(model, LoraConfig(rank=1, alpha=1))
    for _, layer in lora_layers(model):
        outputs, inputs = layer.base.weight.shape
        layer.lora_A = torch.nn.Parameter(torch.eye(inputs), requires_grad=False)
        layer.lora_B = torch.nn.Parameter(torch.zeros(outputs, inputs))
        assert isinstance(layer, LoRALinear)
        assert layer.scale == 1


def test_at_full_rank_each_step_is_one_of_full_tuning(
    rows: PackedRows, new_model: New, loop: LoopConfig, tmp_path: Path
) -> None:
    loop = loop.model_copy(update={"log_every": 1, "weight_decay": 0.0, "learning_rate": 1e-3})
    source = RowSource(rows, seed=5, config=loop)
    full, adapter = new_model(), new_model()
    full.requires_grad_(False)
    for name, parameter in full.named_parameters():
        parameter.requires_grad_("_proj" in name)
    at_full_rank(adapter)
    expected = run(full, source, loop, tmp_path / "full")
    found = run(adapter, source, loop, tmp_path / "adapter")
    residuals = found / expected - 1
    assert np.abs(residuals).max() <= 1e-5
    assert abs(residuals.mean()) <= 1e-5
    merge(adapter)
    before = dict(new_model().named_parameters())
    for (name, a), (_, b) in zip(adapter.named_parameters(), full.named_parameters(), strict=True):
        # W + B rounds once more than W; Adam magnifies rounding where second moments are tiny
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)
        moved = (b.detach() - before[name]).abs().max()
        assert (moved > 1e-3) == ("_proj" in name)


@pytest.mark.parametrize("kind", KINDS, ids=["lora", "dora", "qlora"])
def test_an_adapter_learns_and_its_checkpoint_holds_nothing_frozen(
    rows: PackedRows, new_model: New, loop: LoopConfig, tmp_path: Path, kind: dict[str, Any]
) -> None:
    base = new_model()
    pretrain = loop.model_copy(update={"steps": 20, "learning_rate": 1e-2})
    run(base, RowSource(rows, seed=5, config=pretrain), pretrain, tmp_path / "base")
    loop = loop.model_copy(update={"steps": 60, "log_every": 1, "learning_rate": 2e-2})
    source = RowSource(rows, seed=6, config=loop)
    model = adapted(lambda: base, rank=8, **kind)
    steps = run(model, source, loop, tmp_path / "tuned")
    assert steps[-5:, 0].mean() < 0.95 * steps[:5, 0].mean()
    newest = max((tmp_path / "tuned").glob("step-*")) / "state.safetensors"
    names = {name for name in load_file(newest) if name.startswith("model.")}
    trained = {f"model.{name}" for name, p in model.named_parameters() if p.requires_grad}
    assert names == trained
