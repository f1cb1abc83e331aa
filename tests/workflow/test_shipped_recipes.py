"""Every shipped recipe is valid, runs when made tiny, and says what memory it takes."""

import io
import json
import re
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from puna.core.errors import UsageError
from puna.formats import load_config
from puna.model import SIZES, llama_config
from puna.workflow.memory import shape_of, stage_estimate
from puna.workflow.run import run_recipe
from puna.workflow.shipped import RecipeText, find_recipe, shipped_recipes
from puna.workflow.shrink import shrunken, tiny_shape

RUN = [recipe for recipe in shipped_recipes() if recipe.name != "quickstart"]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One folder, so that tiny models and data are made once."""
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize("text", RUN, ids=lambda text: text.name)
def test_each_recipe_takes_two_steps_of_each_stage_when_made_tiny(
    text: RecipeText, root: Path
) -> None:
    tiny = shrunken(text.load([]), root)
    summary = run_recipe(tiny, root, Console(file=io.StringIO()))
    assert tiny.name == f"{text.name}-tiny"
    trained = {n: facts for n, facts in summary["stages"].items() if "steps" in facts}
    assert trained
    for facts in trained.values():
        assert facts["steps"] <= 2 * len(facts.get("segments", [1]))


@pytest.mark.parametrize("size", SIZES)
def test_a_tiny_model_is_of_its_family(size: str) -> None:
    large = llama_config(size)
    small = tiny_shape(large)
    assert small.n_heads / small.n_kv_heads == large.n_heads / large.n_kv_heads
    kept = ("rope_theta", "rope_scaling", "tie_embeddings", "context", "norm_eps")
    assert [getattr(small, name) for name in kept] == [getattr(large, name) for name in kept]
    assert small.n_params() < 5_000_000


def test_published_names_are_known_without_their_files() -> None:
    found = shape_of("meta-llama/Llama-3.2-3B-Instruct")
    assert found == llama_config("llama3.2-3b")
    assert shape_of("meta-llama/Meta-Llama-3-8B") == llama_config("llama3-8b")


def test_own_files_are_kept_and_only_missing_ones_are_made_up(tmp_path: Path) -> None:
    own = tmp_path / "own.jsonl"
    row = {"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}
    own.write_text(json.dumps(row))
    recipe = find_recipe("llama3.1-8b-lora").load([f"stages.sft.files=[{own}, none.jsonl]"])
    sft = shrunken(recipe, tmp_path).stages.sft
    assert sft is not None
    first, second = (file.path for file in sft.files)
    assert first == own
    assert second.read_text().count("\n") == 40
    assert sft.loop.recompute == "full"
    assert load_config(Path(sft.base)).rope_scaling == llama_config("llama3.1-8b").rope_scaling


def test_a_file_of_several_recipes_asks_for_one_of_them(tmp_path: Path) -> None:
    path = tmp_path / "way.yaml"
    path.write_text(
        "# A way.\nstages: {a: {x: 1, y: 2}}\nvariants:\n"
        "  one: {needs: little, stages.a.x: 3}\n  two: {needs: much}\n"
    )
    with pytest.raises(UsageError, match=r"holds 2 recipes: name one, e\.g\. one-way"):
        find_recipe(str(path))


@pytest.mark.parametrize(
    "text",
    [t for t in RUN if re.search("(sft|lora|dpo|reward|ppo|grpo)$", t.name)],
    ids=lambda text: text.name,
)
def test_a_tuning_fits_the_memory_it_asks_for(text: RecipeText) -> None:
    found: Any = list(text.load([]).stages.tuning())
    ((name, stage),) = found
    if "GPU" in text.needs:  # which has bf16, whatever this machine has
        loop = stage.loop.model_copy(update={"precision": "bf16"})
        stage = stage.model_copy(update={"loop": loop})
    peak = stage_estimate(name, shape_of(stage.base), stage).peak / 1e9
    asked = float(re.findall(r"(\d+) GB", text.needs)[0])
    assert 0.1 * asked < peak < asked
