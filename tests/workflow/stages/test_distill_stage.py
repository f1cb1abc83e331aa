"""A student that learns from a teacher: what is measured, kept, refused."""

from pathlib import Path
from typing import Any

import pytest
from small_models import chats_file, killed_in_step, small_model

from puna.core.errors import UsageError
from puna.core.events import EventLog
from puna.formats import load_model, save_model
from puna.workflow.stages.corpus import exercises
from puna.workflow.stages.distill import DistillStage, run_distill
from puna.workflow.stages.training import Given

LOOP = {"steps": 16, "batch_rows": 4, "learning_rate": 5e-3, "checkpoint_every": 5, "log_every": 1}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A teacher of three blocks, sharp in what it says, and a fresh student of two."""
    root = tmp_path_factory.mktemp("models")
    for name, n_layers, seed, scale in (("teacher", 3, 1, 12.0), ("student", 2, 2, 1.0)):
        model, tokenizer = small_model(seed, n_layers=n_layers)
        model.head_weight().data.mul_(scale)
        save_model(root / name, model, tokenizer)
    return {"teacher": root / "teacher", "student": root / "student"}


def distil(base: Path, teacher: Path, data: Path, folder: Path, **fields: Any) -> dict[str, Any]:
    fields = {"row_length": 96, "loop": LOOP, "files": [data], "teacher": str(teacher)} | fields
    config = DistillStage.parse(fields, where="test")
    folder.mkdir(parents=True, exist_ok=True)
    given = Given(base, 3, exercises({"addition": 1.0}), EventLog(), {})
    return run_distill(config, given, folder)


def test_the_student_comes_closer_to_its_teacher_on_chats_it_never_saw(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    data = chats_file(tmp_path)
    facts = distil(folders["student"], folders["teacher"], data, tmp_path / "distill")
    assert facts["divergence"] < 0.8 * facts["divergence_before"]
    assert facts["held_out_chats"] == 3
    assert {"teacher_loss", "held_out_loss_before", "held_out_loss"} <= set(facts)
    student, _ = load_model(tmp_path / "distill" / "model")
    assert student.config.n_layers == 2


def test_a_stopped_distillation_goes_on_to_the_same_weights(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    data = chats_file(tmp_path)
    straight = distil(folders["student"], folders["teacher"], data, tmp_path / "a")

    with killed_in_step(7):
        distil(folders["student"], folders["teacher"], data, tmp_path / "b")
    resumed = distil(folders["student"], folders["teacher"], data, tmp_path / "b")
    measured = ("divergence_before", "divergence", "held_out_losses")
    assert {k: resumed[k] for k in measured} == {k: straight[k] for k in measured}
    weights = [(tmp_path / name / "model" / "model.safetensors").read_bytes() for name in "ab"]
    assert weights[0] == weights[1]


def test_a_teacher_can_have_a_student_of_its_own_first_and_last_blocks(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    data = chats_file(tmp_path)
    teacher = folders["teacher"]
    loop = LOOP | {"steps": 1, "learning_rate": 1e-12}
    facts = distil(teacher, teacher, data, tmp_path / "distill", layers=2, loop=loop)
    assert facts["divergence_before"] > 0
    whole, _ = load_model(teacher)
    student, _ = load_model(tmp_path / "distill" / "model")
    kept = [layer.mlp.up_proj.weight for layer in student.model.layers]
    for ours, number in zip(kept, (0, 2), strict=True):
        assert (ours - whole.model.layers[number].mlp.up_proj.weight).abs().max() < 1e-6


def test_more_blocks_than_there_are_cannot_be_kept(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="layers is 5, and the student has 2"):
        distil(
            folders["student"], folders["teacher"], chats_file(tmp_path), tmp_path / "d", layers=5
        )


def test_a_teacher_that_splits_text_otherwise_is_refused(
    folders: dict[str, Path], tmp_path: Path
) -> None:
    model, tokenizer = small_model(1, text="llamas shear wool in def return numbers of 1234")
    save_model(tmp_path / "foreign", model, tokenizer)
    with pytest.raises(UsageError, match="another tokenizer than the student"):
        distil(folders["student"], tmp_path / "foreign", chats_file(tmp_path), tmp_path / "d")
