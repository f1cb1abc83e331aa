"""A folder that one process at a time works in."""

import subprocess
import sys
from pathlib import Path

import pytest

from puna.core.errors import UsageError
from puna.core.hold import held

HOLDER = """
import sys, time
from pathlib import Path
from puna.core.hold import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


def test_a_held_folder_is_refused_until_its_holder_is_killed(tmp_path: Path) -> None:
    folder = tmp_path / "runs" / "mine"
    command = [sys.executable, "-c", HOLDER, str(folder)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "held\n"
            for _ in range(2):  # who is refused changes nothing
                with pytest.raises(UsageError, match=rf"^process {holder.pid} on .* in .*/mine: "):
                    held(folder).__enter__()
        finally:
            holder.kill()
    with held(folder):
        pass


def test_a_folder_is_let_go_when_its_holder_fails(tmp_path: Path) -> None:
    def fail() -> None:
        with held(tmp_path):
            raise RuntimeError

    for _ in range(2):
        with pytest.raises(RuntimeError):
            fail()
