"""Continued pretraining: a model reads on, whole, by an adapter, or to a longer context."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from small_models import killed_in_step, small_model

from puna.core.errors import UsageError
from puna.formats import load_model, save_model
from puna.workflow.recipe import Recipe
from puna.workflow.run import run_recipe

LOOP = {"steps": 40, "batch_rows": 4, "learning_rate": 5e-3, "checkpoint_every": 50}
NOTHING = {"exercises": 0, "geography": 0, "stories": 0}


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models") / "base"
    save_model(folder, *small_model(2))
    return folder


def recipe_of(base: Path, folder: Path, **fields: Any) -> Recipe:
    """A field's notes, a tenth of them held out, and a stage that reads them."""
    texts = folder / "notes.jsonl"
    lines = (f"Note {n} of the field: llamas graze at {n} near the lake." for n in range(99))
    texts.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    corpus = {"sources": {"files": {"path": texts}}, "validation_fraction": 0.1}
    corpus |= {"duplicate_similarity": 1.0, "min_chars": 10}
    stage = {"base": str(base), "row_length": 64, "loop": LOOP} | fields
    stages = {"data": {"corpus": corpus, "generated": NOTHING}, "cpt": stage}
    return Recipe.parse({"name": "field", "stages": stages}, where="test")


def carried_out(base: Path, folder: Path, **fields: Any) -> dict[str, Any]:
    recipe = recipe_of(base, folder, **fields)
    summary = run_recipe(recipe, folder / "runs", Console(quiet=True))
    found: dict[str, Any] = summary["stages"]["cpt"]
    return found


def test_held_out_texts_of_the_field_become_likelier(base: Path, tmp_path: Path) -> None:
    facts = carried_out(base, tmp_path)
    assert facts["held_out_documents"] > 3
    assert facts["held_out_loss"] < 0.5 * facts["held_out_loss_before"]
    assert facts["tokens_by_source"].keys() == {"files"}
    model, tokenizer = load_model(tmp_path / "runs/field/cpt/model")
    assert tokenizer.vocab_size == load_model(base)[1].vocab_size
    assert model.config == load_model(base)[0].config


def test_an_adapter_is_left_beside_the_merged_model(base: Path, tmp_path: Path) -> None:
    facts = carried_out(base, tmp_path, lora={"rank": 8})
    assert facts["held_out_loss"] < facts["held_out_loss_before"]
    assert (tmp_path / "runs/field/cpt/adapter/adapter_config.json").exists()
    assert "merge_error" in facts


def test_a_curriculum_leaves_a_longer_context(base: Path, tmp_path: Path) -> None:
    rope = {"factor": 2, "original_context": 256}
    long = {"rope": rope, "stages": [{"row_length": 512, "batch_rows": 2, "steps": 3}]}
    long["gate"] = {"attempts": 1, "needles": 2, "rows": 2, "give_up": False}
    phase = {"name": "field", "steps": 5, "row_length": 64, "batch_rows": 4}
    facts = carried_out(base, tmp_path, curriculum={"phases": [phase], "long_context": long})
    assert [segment["row_length"] for segment in facts["segments"]] == [64, 512]
    model, _ = load_model(tmp_path / "runs/field/cpt/model")
    assert model.config.context == 512
    assert model.config.rope_scaling is not None
    with torch.no_grad():
        assert model(torch.zeros(1, 512, dtype=torch.long)).isfinite().all()


def test_a_curriculum_without_stages_leaves_context_and_scaling_as_they_were(
    tmp_path: Path,
) -> None:
    scaling = {"factor": 4.0, "original_context": 64}
    model, tokenizer = small_model(2, rope_scaling=scaling)
    save_model(tmp_path / "scaled", model, tokenizer)
    phase = {"name": "field", "steps": 3, "row_length": 32, "batch_rows": 4}
    curriculum = {"phases": [phase], "anneal": phase | {"average": 2}}
    del curriculum["anneal"]["name"]
    facts = carried_out(tmp_path / "scaled", tmp_path, row_length=128, curriculum=curriculum)
    left, _ = load_model(tmp_path / "runs/field/cpt/model")
    assert left.config == model.config
    assert facts["averaged"] == 2
    assert "held_out_loss" not in facts  # the average is not the model that was trained


def test_a_stopped_run_goes_on_to_the_same_model(base: Path, tmp_path: Path) -> None:
    loop = LOOP | {"steps": 12, "checkpoint_every": 5}
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    straight = carried_out(base, tmp_path / "a", loop=loop)

    with killed_in_step(7):
        carried_out(base, tmp_path / "b", loop=loop)
    resumed = carried_out(base, tmp_path / "b", loop=loop)
    for figure in ("held_out_loss_before", "held_out_loss"):
        assert resumed[figure] == straight[figure]


def test_a_row_longer_than_the_context_is_said_before_a_step(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"stages\.cpt\.row_length 512 exceeds .* context of 256"):
        carried_out(base, tmp_path, row_length=512)


def test_without_held_out_texts_nothing_is_told_of_them(base: Path, tmp_path: Path) -> None:
    recipe = recipe_of(base, tmp_path).model_dump(mode="json")
    recipe["stages"]["data"]["corpus"]["validation_fraction"] = 0
    summary = run_recipe(Recipe.parse(recipe, where="test"), tmp_path, Console(quiet=True))
    assert not [name for name in summary["stages"]["cpt"] if name.startswith("held_out")]


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"stages.data": None}, "stages.cpt reads the corpus: add stages.data"),
        ({"stages.cpt.base": ""}, "stages.cpt has no model: set stages.cpt.base"),
        (
            {"stages.cpt.lora": {}, "stages.cpt.curriculum": {"phases": [
                {"name": "a", "steps": 1, "row_length": 64, "batch_rows": 1}]}},
            "a curriculum trains all weights: leave out lora",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_is_said_before_anything_is_read(
    base: Path, tmp_path: Path, fields: dict[str, Any], said: str
) -> None:
    recipe = recipe_of(base, tmp_path).model_dump(mode="json")
    for name, value in fields.items():
        *way, last = name.split(".")
        node = recipe
        for each in way:
            node = node[each]
        node[last] = value
    with pytest.raises(UsageError, match=said.replace(".", r"\.")):
        Recipe.parse(recipe, where="test")
