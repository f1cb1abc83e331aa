"""A run killed with SIGKILL at random moments ends with the weights of an undisturbed one."""

import json
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from puna.core.events import read_events

STAGES = ("pretrain", "sft", "dpo")
KILLS = 5
COMMAND = [sys.executable, "-m", "puna", "run"]


def start(recipe: Path, runs: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [*COMMAND, str(recipe), "--runs", str(runs)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )


def reached(events: Path, stage: str) -> int:
    steps = [
        event["step"]
        for event in read_events(events)
        if event["kind"] == "train_step" and event["stage"] == stage
    ]
    return max(steps, default=0)


def finish(process: subprocess.Popen[bytes]) -> None:
    assert process.stderr is not None
    message = process.stderr.read().decode()
    assert process.wait() == 0, message


@pytest.mark.timeout(400)
def test_weights_after_fifteen_kills_equal_those_of_an_undisturbed_run(
    recipe_file: Path, tmp_path: Path
) -> None:
    finish(start(recipe_file, tmp_path / "calm"))
    rng = random.Random(11)
    events = tmp_path / "killed" / "tiny" / "events.jsonl"
    kills = dict.fromkeys(STAGES, 0)
    for stage in STAGES:
        # Six steps forward each time, so five kills fall inside the forty steps of a stage.
        for goal in range(6, 6 * KILLS + 1, 6):
            process = start(recipe_file, tmp_path / "killed")
            try:
                while process.poll() is None and reached(events, stage) < goal:
                    time.sleep(0.005)
                time.sleep(rng.uniform(0, 0.03))  # any moment: in a step, in a checkpoint
                assert process.poll() is None, "it ended before it could be killed"
                kills[stage] += 1
            finally:
                process.kill()
                process.communicate()
    assert kills == dict.fromkeys(STAGES, KILLS)
    finish(start(recipe_file, tmp_path / "killed"))
    for stage in STAGES:
        calm, killed = (
            (tmp_path / run / "tiny" / stage / "model" / "model.safetensors").read_bytes()
            for run in ("calm", "killed")
        )
        assert calm == killed, stage
        outputs = [
            json.loads((tmp_path / run / "tiny" / stage / "manifest.json").read_text())["outputs"]
            for run in ("calm", "killed")
        ]
        assert outputs[0] == outputs[1], stage
