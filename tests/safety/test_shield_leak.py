"""No planted call gets out, no harmless answer is changed, no text stops the shield.

The full numbers: ``python benchmarks/shield.py --parts leak,fuzz``.
"""

import importlib
import random
from pathlib import Path
from types import ModuleType

import pytest

FOLDER = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module("shield_leak")


def test_no_planted_call_reaches_the_client_and_no_harmless_answer_changes(
    script: ModuleType,
) -> None:
    assert len(script.spoken()) == len(script.LANGUAGES)
    assert len(script.spoken()) == len(script.LANGUAGES)
    found = script.leak(400, seed=7)
    assert found["planted"] == found["harmless"] == 200
    assert found["leaked by language"] == {}
    assert found["harmless altered"] == 0


def test_a_watch_that_lets_all_out_would_be_seen(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(script, "BLOCK", script.Policy(mode="warn"))
    assert script.leak(10, seed=7)["leaked"] == 5


def test_chunks_put_together_are_the_answer(script: ModuleType) -> None:
    rng = random.Random(7)
    made = list(script.answers(7, 60))
    assert sum(one.planted is None for one in made) == 30
    for one in made:
        assert "".join(script.pieces(rng, one.text)) == one.text
        assert "@" not in one.text.replace("@n", "")
