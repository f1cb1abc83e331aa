"""``puna ppo`` and ``puna grpo``: what they leave, and what is said on the way."""

import json
from pathlib import Path

import pytest
from cli_calls import Puna, assert_one_line

LETTERS = "def letters(text, record):\n    return float(text[:1].islower())\n"
SHORT = ("--rollouts", 2, "--prompts", 4, "--max-new-tokens", 4)


@pytest.fixture
def prompts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "letter_rewards.py").write_text(LETTERS)
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "asked.jsonl"
    path.write_text("".join(json.dumps({"prompt": f"Is {n} big?"}) + "\n" for n in range(20)))
    return path


@pytest.mark.parametrize("command", ["ppo", "grpo"])
def test_a_run_shows_its_rollouts_and_says_how_to_chat(
    puna: Puna, model_folder: Path, prompts: Path, tmp_path: Path, command: str
) -> None:
    more = ("--method", "rloo", "--answers", 3) if command == "grpo" else ("--lora",)
    given = ("--data", prompts, "--reward", "letter_rewards:letters", *SHORT, *more)
    done = puna(command, model_folder, *given, "--runs", tmp_path / "runs")
    assert done.returncode == 0, done.stderr
    run = tmp_path / "runs" / f"{command}-asked"
    said = " ".join(done.stdout.split())
    assert "18 prompts, 2 held out" in said
    assert "rollout reward KL entropy clipped" in said
    assert "reward of held-out prompts:" in said
    assert f"chat {run}/{command}/model" in said
    assert "Rollouts of" in (run / "report.html").read_text()
    assert (run / command / "adapter").exists() == (command == "ppo")
    again = puna(command, model_folder, *given, "--runs", tmp_path / "runs", "--json")
    facts = json.loads(again.stdout)["stages"][command]
    assert facts["steps"] == (8 if command == "ppo" else 4)
    assert {"held_out_reward_before", "held_out_reward"} <= set(facts)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("--reward", "letter_rewards:none"),
            "letter_rewards has no function 'none': it has letters",
        ),
        (("--reward", "nowhere"), "no folder of a reward model"),
        (("--reward", "letter_rewards:letters", "--rollouts", 0), "--rollouts 0: give 1 or more"),
        (
            ("--reward", "letter_rewards:letters", "--max-new-tokens", 100000),
            "lower max_new_tokens",
        ),
    ],
)
def test_wrong_use_is_one_line(
    puna: Puna,
    model_folder: Path,
    prompts: Path,
    tmp_path: Path,
    arguments: tuple[object, ...],
    message: str,
) -> None:
    given = ("--data", prompts, "--runs", tmp_path / "runs", *arguments)
    done = puna("ppo", model_folder, *given)
    assert_one_line(done, 2, message)


def test_the_estimate_knows_what_is_held_beside_the_policy(
    puna: Puna, model_folder: Path, prompts: Path, tmp_path: Path
) -> None:
    given = ("--data", prompts, "--reward", "letter_rewards:letters", *SHORT, "--estimate")
    sizes = []
    for more in ((), ("--shared-trunk",)):
        done = puna("ppo", model_folder, *given, *more, "--json", "--runs", tmp_path / "runs")
        assert done.returncode == 0, done.stderr
        sizes.append(json.loads(done.stdout)["bytes"]["as asked"])
    own, shared = (size["weights"] for size in sizes)
    assert own > shared, "a second trunk beside policy and reference"
    assert sizes[0]["optimizer"] == 2 * sizes[1]["optimizer"]
    assert not (tmp_path / "runs").exists()
