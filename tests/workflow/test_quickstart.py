"""The quickstart made tiny: every stage runs, a judge and a model tuned on rewards come of it."""

import io
from pathlib import Path

import pytest
from rich.console import Console

from puna.core.errors import UsageError
from puna.core.events import read_events
from puna.workflow.run import run_recipe
from puna.workflow.shipped import find_recipe
from puna.workflow.shrink import shrunken

NO_NETWORK = (
    "stages.data.corpus.sources={python-reference: {max_chars: 20000}}",
    "stages.sft.dialogue_repeats=0",
    "kinds={addition: 1, subtraction: 1, comparison: 1, sorting: 1, position: 1, reversal: 1}",
)


def test_the_quickstart_goes_from_text_to_rewards(tmp_path: Path) -> None:
    tiny = shrunken(find_recipe("quickstart").load([*NO_NETWORK]), tmp_path)
    summary = run_recipe(tiny, tmp_path, Console(file=io.StringIO()))
    assert list(summary["evaluation"]) == ["untrained", "pretrain", "cpt", "sft", "dpo", "ppo"]
    assert summary["model"] == "ppo/model"
    assert 0 <= summary["stages"]["ppo"]["held_out_reward"] <= 1
    assert 0 <= summary["stages"]["reward"]["held_out_accuracy"] <= 1
    folder = tmp_path / tiny.name
    assert (folder / "reward" / "model" / "config.json").exists()
    rows = [e for e in read_events(folder / "events.jsonl") if e["kind"] == "rollout"]
    assert [row["stage"] for row in rows] == ["ppo"]
    assert "Rollouts of ppo" in (folder / "report.html").read_text()


@pytest.mark.parametrize(
    "setting", ["kinds={addition: 1, position: 1}", "stages.data.generated.exercises=0"]
)
def test_a_phase_on_exercises_that_are_not_drawn_is_refused_at_once(setting: str) -> None:
    with pytest.raises(UsageError, match=r"cpt\.curriculum has 'generated-\w+' in a mix"):
        find_recipe("quickstart").load([setting])
