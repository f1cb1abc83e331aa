"""Whether a call lets other threads of Python run."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor


def longest_gap(call: Callable[[], object]) -> float:
    """The longest time in which another thread stood still, as a share of what a call takes."""
    calls = 5
    call()  # whatever it does only once

    def work() -> float:
        start = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - start) / calls

    gap = 0.0
    with ThreadPoolExecutor(1) as pool:
        future = pool.submit(work)
        last = time.perf_counter()
        while not future.done():
            now = time.perf_counter()
            gap, last = max(gap, now - last), now
        return gap / future.result()
