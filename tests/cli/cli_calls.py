"""Calls of the command line in this process, and what they leave."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Done:
    """What a command left."""

    returncode: int
    stdout: str
    stderr: str


Puna = Callable[..., Done]


def assert_one_line(done: Done, code: int, *parts: str) -> None:
    assert done.returncode == code, done.stderr
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("puna: ")
    assert "Traceback" not in done.stderr
    for part in parts:
        assert part in done.stderr
