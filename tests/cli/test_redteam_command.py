"""puna redteam by its command line, on a tiny model of noise."""

import json
from pathlib import Path

import pytest
from cli_calls import Puna, assert_one_line

from puna.formats import load_model, save_model
from puna.model import Llama


@pytest.fixture(scope="module")
def talker(model_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny model with a context that attacks fit into."""
    model, tokenizer = load_model(model_folder)
    longer = Llama(model.config.model_copy(update={"context": 1024}))
    longer.load_state_dict(model.state_dict())
    folder = tmp_path_factory.mktemp("talker") / "noise"
    save_model(folder, longer, tokenizer)
    return folder


QUICK = ("--max-new-tokens", 6, "--no-compile", "--weights", "fp32")


def test_a_run_its_report_and_its_replay(puna: Puna, talker: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    command = [
        "redteam",
        talker,
        "--kind",
        "harm",
        "--limit",
        6,
        "--out",
        out,
        "--attack",
        "direct",
    ]
    done = puna(*command, *QUICK, "--json")
    assert done.returncode == 0, done.stderr
    summary = json.loads(done.stdout)
    # noise is no refusal: by rules alone every attack succeeds
    assert summary["success"] == {
        **summary["success"],
        "successes": 6,
        "n": 6,
        "share": 1.0,
        "high": 1.0,
    }
    assert summary["decided_by"] == {"rules": 6}
    assert (out / "report.html").exists()

    again = puna("redteam", "replay", out, talker, *QUICK[2:], "--json")
    assert again.returncode == 1
    facts = json.loads(again.stdout)
    assert (facts["findings"], facts["still"]) == (6, 6)
    assert all(result["same_answer"] for result in facts["results"])


def test_a_run_for_people(puna: Puna, talker: Path, tmp_path: Path) -> None:
    options = ("--kind", "leak", "--attack", "repeat-above", "--out", tmp_path / "run")
    done = puna("redteam", "run", talker, *options, *QUICK)
    assert done.returncode == 0, done.stderr
    assert "0 of 3 attacks succeeded" in done.stdout
    assert "3 of 3" in done.stderr
    clean = puna("redteam", "replay", tmp_path / "run", talker)
    assert_one_line(clean, 2, "holds no findings")


def test_a_conversation_that_does_not_fit_is_no_failure(
    puna: Puna, model_folder: Path, tmp_path: Path
) -> None:
    options = ("--kind", "document", "--attack", "direct", "--out", tmp_path / "run")
    done = puna("redteam", model_folder, *options, *QUICK, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["skipped"] == 3


def test_ls_lists_attacks_goals_and_languages(puna: Puna) -> None:
    listed = json.loads(puna("redteam", "ls", "--json").stdout)
    families = {attack["family"] for attack in listed["attacks"]}
    assert families >= {"jailbreak", "encoding", "roleplay", "many-shot", "prefix", "injection"}
    assert len(listed["goals"]) == 14 + 3
    assert listed["languages"][0] == "en"
    assert "crescendo" in puna("redteam", "ls").stdout


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["no-model"], ["no-model"]),
        (["MODEL", "--attack", "grandmotherly"], ["no attack or family 'grandmotherly'", "ls"]),
        (["MODEL", "--attack", "tap"], ["needs a model that writes prompts", "--attacker"]),
        (["MODEL", "--kind", "harms"], ["harms"]),
        (["MODEL", "--language", "xx"], ["no language 'xx'"]),
        (["http://", "--limit", "1"], ["is no address"]),
        (["replay", "nowhere", "MODEL"], ["no findings in nowhere"]),
    ],
)
def test_wrong_use_is_one_line(
    puna: Puna,
    talker: Path,
    tmp_path: Path,
    arguments: list[str],
    parts: list[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    given = [str(talker) if argument == "MODEL" else argument for argument in arguments]
    assert_one_line(puna("redteam", *given), 2, *parts)
