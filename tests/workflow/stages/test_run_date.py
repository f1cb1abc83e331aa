"""A run whose chats name the day keeps that of its first start."""

import datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console
from small_models import chats_file, killed_in_step, small_model

from puna.core.config import load_yaml
from puna.core.errors import UsageError
from puna.formats import load_model, save_model
from puna.tokenizer import Message, llama31
from puna.workflow.recipe import Recipe
from puna.workflow.run import run_recipe

LOOP = {"steps": 6, "batch_rows": 4, "learning_rate": 3e-3, "checkpoint_every": 2}
DAY, NEXT_DAY = datetime.date(2026, 11, 26), datetime.date(2026, 11, 27)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    save_model(tmp_path / "base", *small_model(2, ffn_dim=48))
    stage = {
        "base": str(tmp_path / "base"), "files": [str(chats_file(tmp_path))], "row_length": 192,
        "chat_format": "llama3.2", "loop": LOOP,
    }  # fmt: skip
    return Recipe.parse({"name": "dated", "stages": {"sft": stage}}, where="test")


def it_is(day: datetime.date, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = SimpleNamespace(date=SimpleNamespace(today=lambda: day))
    monkeypatch.setattr(llama31, "datetime", clock)


def weights(recipe: Recipe, root: Path) -> bytes:
    run_recipe(recipe, root, Console(quiet=True))
    return (root / "dated" / "sft" / "model" / "model.safetensors").read_bytes()


def test_a_run_resumed_after_midnight_ends_with_the_weights_of_one_that_was_not(
    recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    it_is(DAY, monkeypatch)
    calm = weights(recipe, tmp_path / "calm")
    with killed_in_step(4):
        weights(recipe, tmp_path / "late")
    it_is(NEXT_DAY, monkeypatch)
    assert weights(recipe, tmp_path / "late") == calm
    assert load_yaml(tmp_path / "late" / "dated" / "recipe.yaml")["date"] == "26 Nov 2026"
    assert weights(recipe, tmp_path / "new") != calm, "the day is in what is learned from"
    _, tokenizer = load_model(tmp_path / "late" / "dated" / "sft" / "model")
    ids = tokenizer.chat.encode(tokenizer, [Message("user", "Hi")]).ids
    assert "Today Date: 27 Nov 2026" in tokenizer.decode(ids), "the model is told the day it is"


def test_a_date_can_be_given_and_is_not_changed_under_way(recipe: Recipe, tmp_path: Path) -> None:
    dated = recipe.model_copy(update={"date": "01 Feb 2024"})
    assert weights(dated, tmp_path) == weights(recipe, tmp_path), "it goes on with what it has"
    other = recipe.model_copy(update={"date": "02 Feb 2024"})
    with pytest.raises(UsageError, match="begun with the date 01 Feb 2024: give the run another"):
        run_recipe(other, tmp_path, Console(quiet=True))
