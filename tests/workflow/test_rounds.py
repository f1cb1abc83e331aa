"""Rounds: what each stage of a round starts from and learns from, and how they go on."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from rich.console import Console

from puna.core.errors import UsageError
from puna.core.events import read_events
from puna.data.generators import generate_chats
from puna.formats import load_model, save_model
from puna.model import Llama, LlamaConfig
from puna.tokenizer import Tokenizer
from puna.workflow.recipe import Recipe
from puna.workflow.run import run_recipe

LOOP = {"steps": 6, "batch_rows": 2, "learning_rate": 1e-3, "checkpoint_every": 2, "log_every": 1}
STAGES = ("reward", "sample", "sft", "dpo-1", "dpo-2", "average")


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = [m.content for chat in generate_chats(0, 50, ()) for m in chat.messages]
    tokenizer = Tokenizer.train(texts, 300, n_special=16)
    fields = {"dim": 32, "n_layers": 2, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 48}
    fields |= {"vocab_size": tokenizer.vocab_size, "context": 256}
    model = Llama(LlamaConfig.parse(fields, where="test"))
    model.init_weights(seed=2)
    folder = tmp_path_factory.mktemp("models") / "base"
    save_model(folder, model, tokenizer)
    return folder


def recipe(base: Path, **changes: Any) -> dict[str, Any]:
    dpo = {"row_length": 192, "loop": LOOP, "from_sample": True}
    rounds = {
        "base": str(base),
        "count": 2,
        "preferences": [{"generated_pairs": 20}, {"generated_pairs": 10}],
        "reward": {"row_length": 192, "loop": LOOP},
        "sample": {
            "generated_prompts": 6,
            "reward": "reward",
            "rejection": {"answers": 4, "prompts_at_once": 2, "max_new_tokens": 48},
        },
        "sft": {"from_sample": True, "generated_chats": 20, "row_length": 192, "loop": LOOP},
        "dpo": [dpo, dpo | {"dpo": {"beta": 0.5}}],
    }
    return {"name": "r", "kinds": {"addition": 1.0}, "stages": {"rounds": rounds | changes}}


def run(base: Path, runs: Path, **changes: Any) -> dict[str, Any]:
    parsed = Recipe.parse(recipe(base, **changes), where="test")
    return run_recipe(parsed, runs, Console(quiet=True))


def stages(runs: Path, kind: str) -> list[str]:
    events = read_events(runs / "r" / "events.jsonl")
    return [event["stage"] for event in events if event["kind"] == kind]


def manifest(runs: Path, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((runs / "r" / stage / "manifest.json").read_text())
    return found


def test_each_stage_starts_where_llama_3_says_and_rounds_that_are_done_are_kept(
    base: Path, tmp_path: Path
) -> None:
    summary = run(base, tmp_path, count=1, preferences=[{"generated_pairs": 20}])
    assert stages(tmp_path, "stage_start") == [f"round-1/{stage}" for stage in STAGES]
    assert summary["model"] == "round-1/average/model"
    summary = run(base, tmp_path)  # the second batch has come: another round
    assert stages(tmp_path, "stage_skip") == [f"round-1/{stage}" for stage in STAGES]
    assert stages(tmp_path, "stage_start")[6:] == [f"round-2/{stage}" for stage in STAGES]
    assert summary["model"] == "round-2/average/model"
    config = {stage: manifest(tmp_path, f"round-2/{stage}")["config"] for stage in STAGES}
    assert config["reward"]["base"] == config["sft"]["base"] == str(base)
    assert config["sample"]["base"] == "round-1/average"
    assert config["sample"]["generated_from"] == 6
    assert config["dpo-1"]["base"] == config["dpo-2"]["base"] == "sft"
    learned = [(config[s]["generated_from"], config[s]["generated_pairs"]) for s in STAGES[::3]]
    assert learned == [(0, 30), (20, 10)], "the reward model learns from all, DPO from the newest"
    parts = [load_model(tmp_path / "r" / "round-2" / s / "model")[0] for s in STAGES[3:]]
    first, second, mean = (model.state_dict() for model in parts)
    assert any(not torch.equal(first[name], second[name]) for name in first)
    for name, found in mean.items():
        torch.testing.assert_close(found, (first[name] + second[name]) / 2, rtol=1e-6, atol=1e-9)


def test_a_round_killed_in_any_stage_ends_with_the_weights_of_an_undisturbed_one(
    base: Path, tmp_path: Path
) -> None:
    run(base, tmp_path / "calm")
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(recipe(base)))
    command = [sys.executable, "-m", "puna", "run", str(file), "--runs", str(tmp_path / "killed")]
    events = tmp_path / "killed" / "r" / "events.jsonl"
    for kind, stage in (
        ("train_step", "round-1/reward"),
        ("rejection_step", ""),
        ("train_step", "round-1/dpo-2"),
        ("train_step", "round-2/sft"),
        ("stage_start", "round-2/average"),
    ):
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            while process.poll() is None and not any(
                e["kind"] == kind and e.get("stage", "") == stage for e in read_events(events)
            ):
                time.sleep(0.005)
            assert process.poll() is None, f"it ended before it could be killed in {stage}"
        finally:
            process.kill()
            process.wait()
    run(base, tmp_path / "killed")
    for number in (1, 2):
        for stage in STAGES:
            calm, killed = (
                manifest(tmp_path / name, f"round-{number}/{stage}")["outputs"]
                for name in ("calm", "killed")
            )
            assert calm == killed, (number, stage)


def test_a_batch_that_is_still_to_be_collected_is_asked_for_when_its_round_begins(
    base: Path, tmp_path: Path
) -> None:
    later = tmp_path / "later.jsonl"
    batches = [{"generated_pairs": 20}, [str(later)]]
    with pytest.raises(UsageError, match=r"round 2 learns from .*later\.jsonl") as error:
        run(base, tmp_path, preferences=batches)
    assert f"answers of {tmp_path / 'r' / 'round-1' / 'average' / 'model'}" in str(error.value)
    rows = [{"prompt": f"Is {n} big?", "chosen": "No.", "rejected": "Yes."} for n in range(20)]
    later.write_text("".join(json.dumps(row) + "\n" for row in rows))
    run(base, tmp_path, preferences=batches)
    assert stages(tmp_path, "stage_skip") == [f"round-1/{stage}" for stage in STAGES]


def test_a_round_may_go_on_from_the_last_and_the_best_model_is_left(
    base: Path, tmp_path: Path
) -> None:
    plain = recipe(base, sft_from="round", best_by="full_sentences", dpo=[])
    plain["stages"]["rounds"] |= {"reward": None, "preferences": []}
    plain["stages"]["rounds"]["sample"]["reward"] = "puna.alignment.scoring:last_number"
    plain["stages"]["evaluate"] = {"questions_per_kind": 2, "pairs": 2, "max_new_tokens": 8}
    summary = run_recipe(Recipe.parse(plain, where="test"), tmp_path, Console(quiet=True))
    assert list(summary["evaluation"]) == ["base", "round-1", "round-2"]
    assert manifest(tmp_path, "round-2/sft")["config"]["base"] == "round-1/sft"
    figures = [summary["evaluation"][f"round-{n}"]["full_sentences"] for n in (1, 2)]
    best = 2 if figures[1] >= figures[0] else 1
    assert summary["model"] == f"round-{best}/sft/model"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"preferences": [{"generated_pairs": 2}] * 3}, "3 batches of preferences for 2 rounds"),
        ({"preferences": [{}]}, "a batch without pairs"),
        ({"preferences": []}, "rounds.reward has no pairs: set rounds.preferences"),
        ({"average": [1.0]}, "rounds.average weighs 1 models, rounds.dpo leaves 2"),
        ({"best_by": "exact_match"}, "best_by compares evaluations: add stages.evaluate"),
        (
            {"reward": {"row_length": 9, "loop": LOOP, "files": ["x"]}},
            "named in rounds.preferences",
        ),
    ],
)
def test_wrong_rounds_are_one_line(base: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message) as error:
        Recipe.parse(recipe(base, **changes), where="test")
    assert "\n" not in str(error.value)
