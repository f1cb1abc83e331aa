"""A whole life on a tiny recipe: artifacts, skipping, rerunning, errors."""

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from puna.core.errors import PunaError, UsageError
from puna.core.events import read_events
from puna.core.hold import HELD, held
from puna.formats import load_model
from puna.training import checkpoint
from puna.workflow.run import run_recipe
from puna.workflow.shipped import find_recipe
from puna.workflow.stage import Origin, origin_of

SHORT = [f"stages.{stage}.loop.steps=6" for stage in ("pretrain", "sft", "dpo")]
LOOP = "{steps: 6, batch_rows: 4, learning_rate: 0.001}"
JUDGED = ["stages.evaluate.questions_per_kind=2", "stages.evaluate.pairs=4"]
PROMPTS = [
    "stages.evaluate.sample_prompts=[word1]",
    'stages.evaluate.sample_questions=["What is 1 + 1?"]',
]
NOTHING_GENERATED = "stages.data.generated={exercises: 0, geography: 0, stories: 0}"


def run(recipe_file: Path, *overrides: str) -> dict[str, Any]:
    recipe = find_recipe(str(recipe_file)).load([*SHORT, *overrides])
    return run_recipe(recipe, recipe_file.parent / "runs", Console(quiet=True))


def kinds(folder: Path) -> list[tuple[str, str]]:
    events = read_events(folder / "events.jsonl")
    shown = ("stage_start", "stage_skip")
    return [(e["kind"], e["stage"]) for e in events if e["kind"] in shown]


def test_a_recipe_leaves_models_figures_and_a_report(recipe_file: Path, tmp_path: Path) -> None:
    summary = run(recipe_file, *JUDGED, *PROMPTS)
    folder = tmp_path / "runs" / "tiny"
    for name in ("recipe.yaml", "events.jsonl", "summary.json", "report.html"):
        assert (folder / name).stat().st_size > 0, name
    assert json.loads((folder / "summary.json").read_text()) == summary
    assert list(summary["evaluation"]) == ["untrained", "pretrain", "sft", "dpo"]
    for facts in summary["evaluation"].values():
        assert facts["bits_per_byte"] > 0
        assert 0 <= facts["preference_accuracy"] <= 1
    assert set(summary["stages"]["baselines"]) >= {"xz_alone", "xz_primed", "ppmd", "five_gram"}
    model, tokenizer = load_model(folder / summary["model"])
    assert model.config.vocab_size == tokenizer.vocab_size == 400
    assert not list(folder.rglob("scratch")), "checkpoints of finished stages are gone"


def test_a_finished_run_is_skipped_and_a_change_reruns_what_follows(
    recipe_file: Path, tmp_path: Path
) -> None:
    run(recipe_file)
    folder = tmp_path / "runs" / "tiny"
    before = len(kinds(folder))
    run(recipe_file)
    assert {kind for kind, _ in kinds(folder)[before:]} == {"stage_skip"}
    before = len(kinds(folder))
    run(recipe_file, "stages.sft.loop.learning_rate=0.001")
    assert dict(map(reversed, kinds(folder)[before:])) == {
        "data": "stage_skip",
        "tokenizer": "stage_skip",
        "pretrain": "stage_skip",
        "sft": "stage_start",
        "dpo": "stage_start",
    }


def test_an_output_that_was_tampered_with_is_made_anew(recipe_file: Path, tmp_path: Path) -> None:
    run(recipe_file)
    folder = tmp_path / "runs" / "tiny"
    model = folder / "sft" / "model" / "model.safetensors"
    content = model.read_bytes()
    model.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    before = len(kinds(folder))
    run(recipe_file)
    started = [stage for kind, stage in kinds(folder)[before:] if kind == "stage_start"]
    assert started == ["sft"], "what follows has the same input again, so it is kept"
    assert model.read_bytes() == content


def test_changed_text_is_noticed(recipe_file: Path, tmp_path: Path) -> None:
    run(recipe_file)
    (tmp_path / "text" / "1.txt").write_text("Something else altogether.\n" * 5)
    before = len(kinds(tmp_path / "runs" / "tiny"))
    run(recipe_file)
    assert kinds(tmp_path / "runs" / "tiny")[before] == ("stage_start", "data")


def test_preferences_of_ones_own_are_learned_and_what_does_not_fit_is_counted(
    recipe_file: Path, tmp_path: Path
) -> None:
    pairs = tmp_path / "pairs.jsonl"
    rows = [{"prompt": f"Is {n} big?", "chosen": "No.", "rejected": "Yes."} for n in range(20)]
    rows += [{"prompt": "x " * 300, "chosen": "a", "rejected": "b"}]
    rows += [{"prompt": "x", "chosen": "a", "rejected": "a"}]
    pairs.write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = f"stages.dpo={{files: [{pairs}], too_long: drop, row_length: 96, loop: {LOOP}}}"
    summary = run(recipe_file, own)
    facts = summary["stages"]["dpo"]
    assert facts["pairs"] + facts["held_out_pairs"] == 20
    events = list(read_events(tmp_path / "runs" / "tiny" / "events.jsonl"))
    warned = [event["text"] for event in events if event["kind"] == "warning"]
    assert len(warned) == 2
    assert "pairs.jsonl, line 22: chosen and rejected are equal" in warned[0]
    assert warned[1] == "1 pairs are left out: longer than 96 tokens"
    pairs.write_text(pairs.read_text().replace("Yes.", "Quite."))
    before = len(kinds(tmp_path / "runs" / "tiny"))
    run(recipe_file, own)
    assert ("stage_start", "dpo") in kinds(tmp_path / "runs" / "tiny")[before:]


def test_a_full_disk_keeps_the_last_checkpoint(
    recipe_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_file = checkpoint.save_file
    calls = 0

    def fills_up(*arguments: Any) -> None:
        nonlocal calls
        calls += 1
        if calls == 2:
            raise OSError(28, "No space left on device")
        save_file(*arguments)

    monkeypatch.setattr(checkpoint, "save_file", fills_up)
    with pytest.raises(PunaError, match=r"the disk is full while writing .*step-00000006"):
        run(recipe_file)
    kept = tmp_path / "runs" / "tiny" / "pretrain" / "scratch" / "checkpoints"
    assert [item.name for item in kept.iterdir()] == ["step-00000003"]
    run(recipe_file)
    events = read_events(tmp_path / "runs" / "tiny" / "events.jsonl")
    assert [e["step"] for e in events if e["kind"] == "train_resume"] == [3]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("stages.data.corpus.sources={}", "holds no training document"),
        ("stages.data.corpus.sources.files.path=none", "no such file or folder: none"),
        ("stages.tokenizer.vocab_size=100000", "the text holds only"),
        ("stages.pretrain.model.n_kv_heads=3", "n_heads 4 is not a multiple of n_kv_heads 3"),
        ("stages.pretrain.model.size=llama3.1-8b", "give either size or dim"),
        ("stages.pretrain.row_length=100000", "context of 256"),
        ("stages.sft.row_length=9", "generated chat 0: .* exceed the row length of 9"),
        ("stages.sft.files=[none.jsonl]", "no such file or folder: none.jsonl"),
        ("stages.dpo.row_length=9", "pair 0: .* exceed the row length of 9"),
        ("stages.pretrain=null", "stages.sft has no model"),
        ("stages.tokenizer=null", "stages.pretrain needs tokens"),
        ("kinds={adition: 1}", "unknown generated kind 'adition'"),
        ("kinds={addition: 0}", "'kinds.addition' is 0"),
        ("name=../up", "'name' is '../up'"),
        ("track=mlflow", "'track' is 'mlflow'"),
    ],
)
def test_a_wrong_recipe_is_one_line_that_names_the_mend(
    recipe_file: Path, override: str, message: str
) -> None:
    overrides = [override, *([NOTHING_GENERATED] if "sources={}" in override else [])]
    with pytest.raises(UsageError, match=message) as error:
        run(recipe_file, *overrides)
    assert "\n" not in str(error.value)


def test_a_folder_of_another_making_is_left_alone(recipe_file: Path, tmp_path: Path) -> None:
    mine = tmp_path / "runs" / "tiny" / "notes.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("precious")
    with pytest.raises(UsageError, match="was not made by puna"):
        run(recipe_file)
    (tmp_path / "runs" / "tiny" / "events.jsonl").touch()
    mine = mine.parent / "sft" / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("precious")
    with pytest.raises(UsageError, match="was not made by puna"):
        run(recipe_file)
    assert mine.read_text() == "precious"


def test_two_runs_do_not_share_a_folder(recipe_file: Path, tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "tiny"
    with held(folder), pytest.raises(UsageError, match=f"works in {folder}: wait for its end"):
        run(recipe_file)
    assert [item.name for item in folder.iterdir()] == [HELD]
    run(recipe_file)


def test_a_base_inside_the_run_folder_is_refused_and_kept(
    recipe_file: Path, tmp_path: Path
) -> None:
    run(recipe_file)
    base = tmp_path / "runs" / "tiny" / "sft" / "model"
    only_sft = ["stages.data=null", "stages.tokenizer=null", "stages.pretrain=null"]
    with pytest.raises(UsageError, match="which this run replaces: give the run another name"):
        run(recipe_file, f"stages.sft.base={base}", *only_sft)
    load_model(base)


def test_what_a_kill_left_half_written_is_removed(recipe_file: Path, tmp_path: Path) -> None:
    run(recipe_file)
    folder = tmp_path / "runs" / "tiny"
    manifest = (folder / "sft" / "manifest.json").read_bytes()
    (folder / "sft" / "manifest.json").unlink()
    (folder / "sft" / ".model.123.tmp").mkdir()
    (folder / "sft" / ".model.123.tmp" / "half").write_text("x")
    run(recipe_file)
    assert not (folder / "sft" / ".model.123.tmp").exists()
    again = json.loads((folder / "sft" / "manifest.json").read_text())
    assert again["outputs"] == json.loads(manifest)["outputs"]


def test_a_model_is_judged_with_the_split_it_was_trained_on(
    recipe_file: Path, tmp_path: Path
) -> None:
    run(recipe_file, "kinds={addition: 1, sorting: 2}")
    origin = origin_of(tmp_path / "runs" / "tiny" / "dpo" / "model")
    assert origin == Origin(seed=3, kinds={"addition": 1.0, "sorting": 2.0})
    assert origin_of(tmp_path) is None
