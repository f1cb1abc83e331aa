"""The share of a pipeline's time in which nothing is computed."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from puna.parallel import pipeline
from puna.parallel.parallelize import Parallel
from puna.parallel.pipeline import Clock


def test_a_clock_adds_up_what_is_spent_within_it_and_begins_anew(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    ticks = iter([0.0, 1.0, 5.0, 7.5, 9.0, 9.25])
    monkeypatch.setattr(pipeline, "time", SimpleNamespace(perf_counter=lambda: next(ticks)))
    monkeypatch.setattr(pipeline, "default_device", lambda: torch.device("cpu"))
    clock = Clock()
    with clock:
        pass
    assert clock.around(lambda a, b: a - b)(5, b=2) == 3
    assert clock.seconds() == 1.0 + 2.5
    with pytest.raises(ZeroDivisionError), clock:
        _ = 1 / 0
    assert clock.seconds() == 0.25
    assert clock.seconds() == 0.0


def test_the_bubble_is_what_processes_together_did_not_compute() -> None:
    mesh: Any = SimpleNamespace(sum=lambda mine: [a + b for a, b in zip(mine, (1, 4), strict=True)])
    stages = SimpleNamespace(seconds=lambda: (3, 4))
    assert Parallel(mesh, [], pipeline=stages).bubble() == 0.5
    assert Parallel(mesh, []).bubble() is None
