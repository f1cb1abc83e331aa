"""Tuning with the rounding of a device: what is told, and that what is left lies on the grid."""

from pathlib import Path
from typing import Any

import pytest
from small_models import chats_file, killed_in_step, small_model

from puna.alignment.qat import round_weight
from puna.core.errors import UsageError
from puna.core.events import EventLog
from puna.formats import load_model, save_model
from puna.workflow.stages.corpus import exercises
from puna.workflow.stages.qat import QATStage, run_qat
from puna.workflow.stages.training import Given

LOOP = {"steps": 40, "batch_rows": 4, "learning_rate": 5e-3, "checkpoint_every": 9, "log_every": 1}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    save_model(folder, *small_model(2))
    return folder


def train(base: Path, data: Path, folder: Path, **fields: Any) -> dict[str, Any]:
    config = QATStage.parse({"row_length": 96, "loop": LOOP, "files": [data]} | fields, where="t")
    folder.mkdir(parents=True, exist_ok=True)
    given = Given(base, 3, exercises({"addition": 1.0}), EventLog(), {})
    return run_qat(config, given, folder)


def test_a_model_tuned_with_the_rounding_is_told_beside_one_without(
    base: Path, tmp_path: Path
) -> None:
    # which of the two is better so small a model cannot show: see tests/alignment/test_qat.py
    loop = LOOP | {"steps": 60, "learning_rate": 1e-2}
    facts = train(base, chats_file(tmp_path), tmp_path / "qat", compare=True, loop=loop)
    before = facts["held_out_loss_before"]
    assert facts["held_out_loss"] < before - 0.5
    assert facts["held_out_loss_without"] < before - 0.5
    assert facts["held_out_loss_without"] != facts["held_out_loss"]
    assert facts["held_out_loss_exact"] == pytest.approx(before, abs=0.01)
    model, _ = load_model(tmp_path / "qat" / "model")
    for layer in model.model.layers:
        weight = layer.mlp.down_proj.weight.detach()
        assert (round_weight(weight) - weight).abs().max() < 1e-6


def test_a_stopped_run_goes_on_to_the_same_rounded_weights(base: Path, tmp_path: Path) -> None:
    data = chats_file(tmp_path)
    short = {"loop": LOOP | {"steps": 12, "checkpoint_every": 5}}
    straight = train(base, data, tmp_path / "a", **short)

    with killed_in_step(7):
        train(base, data, tmp_path / "b", **short)
    resumed = train(base, data, tmp_path / "b", **short)
    assert resumed["held_out_losses"] == straight["held_out_losses"]
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


def test_a_width_that_no_group_fits_is_one_line(tmp_path: Path) -> None:
    save_model(tmp_path / "odd", *small_model(2, ffn_dim=40))
    with pytest.raises(UsageError, match="down_proj has 40 inputs, no multiple of 32"):
        train(tmp_path / "odd", chats_file(tmp_path), tmp_path / "qat")
