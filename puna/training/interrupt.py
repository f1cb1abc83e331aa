"""Ctrl-C at a good moment: the step in hand ends and is saved, then the run stops."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from puna.core.errors import PunaError


class Interrupted(PunaError):
    """The user stopped the run; the work done is saved."""

    exit_code = 1


class Request:
    """Whether someone asked to stop."""

    made = False


@contextmanager
def deferred_interrupt() -> Iterator[Request]:
    """While inside, the first Ctrl-C or SIGTERM is noted in the request; a second one acts at once.

    Only the main thread receives signals; elsewhere the request is never made.
    """
    request = Request()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return

    def note(_number: int, _frame: FrameType | None) -> None:
        if request.made:
            raise KeyboardInterrupt
        request.made = True

    previous = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield request
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
