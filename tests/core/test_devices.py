"""Work done in a thread that leaves nothing behind."""

import threading

import pytest

from puna.core.devices import in_own_thread


def test_a_result_comes_from_a_thread_that_has_ended() -> None:
    thread = in_own_thread(threading.current_thread)
    assert thread is not threading.current_thread()
    assert not thread.is_alive()


def test_an_error_reaches_the_caller() -> None:
    def fail() -> None:
        raise KeyError("lost")

    with pytest.raises(KeyError, match="lost"):
        in_own_thread(fail)
