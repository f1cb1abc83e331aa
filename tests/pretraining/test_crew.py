"""Work shared by processes: all of it done, errors and stops passed on, nobody left behind."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from puna.core.errors import PunaError, UsageError
from puna.pretraining.scaling.crew import shared_out
from puna.training.interrupt import Interrupted


def square(number: int) -> int:
    if number < 0:
        raise UsageError(f"{number} is below 0")
    return number**2


def vanish(number: int) -> int:
    os._exit(9)


def leave(number: int) -> int:
    raise Interrupted("as a member does that somebody asks to stop")


class Stubborn(Exception):
    """Cannot be pickled and read again."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(f"{one} and {two}")


def object_to(number: int) -> int:
    raise Stubborn("this", "that")


def linger(place: Path) -> None:
    try:
        place.with_suffix(".begun").touch()
        time.sleep(300)
    except KeyboardInterrupt:
        place.with_suffix(".stopped").touch()
        raise


@pytest.fixture(autouse=True)
def nobody_is_left_behind() -> Iterator[None]:
    before = set(psutil.Process().children())
    yield
    left = [one for one in psutil.Process().children() if one not in before]
    assert not [one for one in left if "tracker" not in " ".join(one.cmdline())]


def test_every_item_is_worked_on_once_and_an_error_is_that_of_the_work() -> None:
    assert sorted(shared_out(square, [3, 1, 2], 2)) == [(1, 1), (2, 4), (3, 9)]
    with pytest.raises(UsageError, match="-1 is below 0"):
        list(shared_out(square, [-1], 2))


def test_a_process_that_vanishes_is_noticed() -> None:
    for work in (vanish, leave):
        with pytest.raises(PunaError, match="ended in the middle of its work"):
            list(shared_out(work, [1], 1))


def test_any_error_arrives() -> None:
    with pytest.raises(PunaError, match="Stubborn: this and that") as error:
        list(shared_out(object_to, [1], 1))
    assert "in object_to" in error.value.__notes__[0]


def test_who_is_asked_to_stop_stops_the_others(tmp_path: Path) -> None:
    items = [tmp_path / "a", tmp_path / "b"]

    def ask() -> None:
        while not all(item.with_suffix(".begun").exists() for item in items):
            time.sleep(0.1)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=ask, daemon=True).start()
    with pytest.raises(Interrupted, match="run the same command to go on"):
        list(shared_out(linger, items, 2))
    assert all(item.with_suffix(".stopped").exists() for item in items)
