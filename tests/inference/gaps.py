"""Whether a call lets other threads of Python run."""

import threading
import time
from collections.abc import Callable


def longest_gap(call: Callable[[], object]) -> float:
    """The longest time in which another thread stood still, as a share of what a call takes."""
    began, ended, calls = threading.Event(), threading.Event(), 5

    def work() -> None:
        began.set()
        for _ in range(calls):
            call()
        ended.set()

    worker = threading.Thread(target=work)
    worker.start()
    began.wait()
    start = last = time.perf_counter()
    gap = 0.0
    while not ended.is_set():
        now = time.perf_counter()
        gap, last = max(gap, now - last), now
    worker.join()
    return gap * calls / (time.perf_counter() - start)
