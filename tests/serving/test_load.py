"""A short run of ``benchmarks/serving_load.py``; the full one has 500 clients for two minutes."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "serving_load.py"


@pytest.mark.timeout(240)
def test_a_crowd_of_bad_clients_does_not_disturb_the_good_ones_nor_the_end() -> None:
    command = [sys.executable, str(SCRIPT), "--clients", "200", "--seconds", "25"]
    found = subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)
    report = json.loads(found.stdout)
    assert report["faults"] == {}, found.stderr
    assert found.returncode == 0
    outcomes = report["outcomes"]
    assert report["right_answers"] == outcomes["whole 200"] + outcomes["streamed 200"] > 500
    for refused in ("too large 413", "nonsense 400", "wrong key 401"):
        assert outcomes[refused] >= 10
    assert outcomes["slow reader left"] >= 10
    # Torch's allocator and the heap settle in the first half; a leak would go on growing.
    assert report["memory_mb_last"] < 1.1 * report["memory_mb_middle"]
    assert report["open_files_most"] < 400
