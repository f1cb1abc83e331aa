import json
from pathlib import Path

import pytest
from cli_calls import Puna

from puna.safety.guard import training
from puna.safety.guard.sources import asked

KEY = "ghp_" + "a1B2" * 9


@pytest.fixture
def policy(tmp_path: Path) -> Path:
    pytest.importorskip("datafog")
    path = tmp_path / "policy.yaml"
    path.write_text("secrets: block\npersonal: {input: warn}\n")
    return path


def test_a_text_is_checked_and_an_unsafe_one_gives_exit_code_1(puna: Puna, policy: Path) -> None:
    done = puna("guard", "check", "How do I bake bread?", "--policy", policy)
    assert (done.returncode, done.stdout) == (0, "allow\n")
    done = puna("guard", "check", "--policy", policy, stdin=f"my key is {KEY}")
    assert (done.returncode, done.stdout) == (1, "block: found GITHUB_TOKEN\n")
    done = puna("guard", "check", "I am jane@example.com", "--policy", policy, "--json")
    assert done.returncode == 0
    assert json.loads(done.stdout) == {"decision": "warn", "reason": "found EMAIL"}


def test_the_last_turn_of_a_conversation_is_checked_in_its_direction(
    puna: Puna, policy: Path
) -> None:
    turns = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "jane@example.com"},
    ]
    done = puna("guard", "check", "--policy", policy, stdin=json.dumps(turns))
    assert (done.returncode, done.stdout) == (0, "allow\n"), "answers may hold personal data here"
    done = puna("guard", "check", "--policy", policy, stdin=json.dumps({"messages": turns[:1]}))
    assert done.stdout == "allow\n"


def test_wrong_use_is_said_in_a_line(puna: Puna, policy: Path, model_folder: Path) -> None:
    for arguments, message in (
        (["x"], "nothing to guard with"),
        (["x", "--guard", "no/such"], "no model 'no/such'"),
        ([" ", "--policy", policy], "there is nothing to judge"),
    ):
        done = puna("guard", "check", *arguments)
        assert (done.returncode, done.stdout) == (2, "")
        assert message in done.stderr
    done = puna("guard", "check", "x", "--guard", model_folder)
    assert (done.returncode, done.stdout) == (2, "")
    assert "this model's context is 96" in done.stderr, "Llama Guard's prompt is longer"


def test_a_head_is_trained_and_judges(
    puna: Puna, model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PUNA_CACHE", str(tmp_path / "cache"))
    texts = {"bread": True, "rain": False}
    made = {
        name: [
            asked(f"{word} {name} {n}", bad, name) for word, bad in texts.items() for n in range(9)
        ]
        for name in ("one", "two")
    }
    sources = {name: lambda items=items: iter(items) for name, items in made.items()}
    monkeypatch.setitem(training.SOURCES, "injection", sources)
    rows = tmp_path / "mine.jsonl"
    rows.write_text(
        '{"text": "bread mine", "label": "unsafe"}\n{"text": "rain", "label": "safe"}\n'
    )
    head = tmp_path / "head"
    command = ["guard", "train", model_folder, "--task", "injection", "--out", head]
    done = puna(*command, "--hold-out", "two", "--data", rows, "--json")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert set(found["sources"]) == {"one", "two", "mine"}
    assert found["sources"]["two"]["unsafe"] == 9
    assert json.loads((head / "head.json").read_text())["sources"] == {
        "one": [9, 9],
        "mine": [1, 1],
    }
    done = puna("guard", "check", "rain", "--guard", head, "--json")
    assert set(json.loads(done.stdout)["injection"]) == {"unsafe", "score", "hazards"}
    done = puna(*command, "--hold-out", "three")
    assert (done.returncode, "no source 'three'" in done.stderr) == (2, True)


def test_serve_needs_models_or_another_server(puna: Puna) -> None:
    for arguments in ([], ["smollm2", "--upstream", "http://127.0.0.1:9/v1"]):
        done = puna("serve", *arguments)
        assert done.returncode == 2
        assert "--upstream URL" in done.stderr
