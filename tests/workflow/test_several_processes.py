"""``torchrun -m puna run``: the processes train together, the first one does all the rest."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import psutil
import pytest
from safetensors.torch import load_file

from puna.core.events import read_events

TORCHRUN = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
STAGES = ("pretrain", "cpt", "sft", "dpo")
SHORT = [f"stages.{stage}.loop.{key}" for stage in STAGES for key in ("steps=6", "precision=fp32")]

SHORT += [
    f"stages.cpt.{k}" for k in ("row_length=64", "loop.batch_rows=4", "loop.learning_rate=0.001")
]


def puna(recipe: Path, runs: Path, *changes: str, processes: int = 1) -> tuple[int, str, str]:
    """Exit code, output and errors of ``puna run``; no process is left, whatever happens."""
    launcher = TORCHRUN if processes > 1 else []
    command = [sys.executable, *launcher, "-m", "puna", "run", str(recipe), *SHORT, *changes]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    started = subprocess.Popen([*command, "--runs", str(runs)], **pipes)
    try:
        output, errors = started.communicate(timeout=120)
    finally:
        if started.poll() is None:
            family = psutil.Process(started.pid).children(recursive=True)
            for member in (*family, started):
                member.kill()
            started.wait()
    return started.returncode, output, errors


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


def test_a_recipe_gives_two_processes_the_model_of_one(recipe_file: Path, tmp_path: Path) -> None:
    changes = ["stages.pretrain.loop.batch_rows=6"]
    code, _, errors = puna(recipe_file, tmp_path / "one", *changes)
    assert code == 0, errors
    spread = [*changes, *(f"stages.{stage}.loop.layout.dp_shard=2" for stage in STAGES)]
    code, output, errors = puna(recipe_file, tmp_path / "two", *spread, processes=2)
    assert code == 0, errors
    one, two = tmp_path / "one" / "tiny", tmp_path / "two" / "tiny"
    for stage in STAGES:
        mine, theirs = (load_file(run / stage / "model/model.safetensors") for run in (one, two))
        for name, weight in mine.items():
            # What sums in another order do to AdamW's first steps, through three stages.
            assert float((weight - theirs[name]).norm()) <= 1e-3 * float(weight.norm()), name
    told = [json.loads((run / "summary.json").read_text())["stages"]["cpt"] for run in (one, two)]
    for figure in ("held_out_loss_before", "held_out_loss"):
        assert told[0][figure] == pytest.approx(told[1][figure], abs=1e-3)
    # Everything is told and written once.
    assert output.count("step 6/6") == len(STAGES)
    begun = Counter(
        e["stage"] for e in read_events(two / "events.jsonl") if e["kind"] == "stage_start"
    )
    assert set(begun) >= set(STAGES)
    assert set(begun.values()) == {1}
    files = {run: {p.relative_to(run) for p in run.rglob("*")} for run in (one, two)}
    assert files[one] == files[two]
    # One process finds it all done.
    code, output, errors = puna(recipe_file, tmp_path / "two", *changes)
    assert (code, output.count("already done")) == (0, len(begun)), errors


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            ["stages.pretrain.loop.batch_rows=1"],
            "batch_rows 1 is fewer than the 2 processes: raise it to at least 2, or start fewer "
            "processes",
        ),
        (
            ["stages.cpt.row_length=66", "stages.cpt.loop.layout.cp=2"],
            "layout.cp 2 cuts a row into 4 pieces, row_length 66 is no multiple: set row_length to "
            "68",
        ),
    ],
)
def test_an_error_under_torchrun_is_one_line(
    recipe_file: Path, tmp_path: Path, changes: list[str], expected: str
) -> None:
    code, _, errors = puna(recipe_file, tmp_path, *changes, processes=2)
    assert code in (1, 2)
    said = [line for line in errors.splitlines() if line.startswith("puna: ")]
    assert said == [f"puna: {expected}"]
    manifest = json.loads((tmp_path / "tiny" / "tokenizer" / "manifest.json").read_text())
    assert manifest["stage"] == "tokenizer"  # what was done before is kept
