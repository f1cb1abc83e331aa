"""Decoding as a GPU replays it, its passes run one by one where there is none."""

from dataclasses import dataclass

import pytest
import torch
from tiny_engine import Build, Reference

from puna.inference import Request, Sampling
from puna.inference.graphs import GraphedDecoding, _Captured, _eighths

PROMPTS = [[7] * 3, [9, 11] * 10, [5, 6, 7] * 11, [30] * 2, list(range(20, 60))]


@dataclass
class Replayed:
    """A graph's stand-in: it computes what a graph would, from the same inputs."""

    decoding: "OnePassEach"
    inputs: torch.Tensor
    hidden: torch.Tensor

    def replay(self) -> None:
        self.hidden.copy_(self.decoding._pass(self.inputs))


class OnePassEach(GraphedDecoding):
    """Captures nothing."""

    shapes: list[tuple[int, int]]

    def _capture(self, n_rows: int, span: int) -> _Captured:
        self.shapes = [*getattr(self, "shapes", []), (n_rows, span)]
        inputs = torch.zeros(n_rows, 2 + span, dtype=torch.int64)
        hidden = self._pass(inputs)
        return _Captured(Replayed(self, inputs, hidden), inputs, hidden)  # type: ignore[arg-type]


@pytest.mark.parametrize("cache_weights", ["auto", "int8"])
def test_texts_are_those_of_plain_passes(
    build: Build, reference: Reference, cache_weights: str
) -> None:
    engine = build(cache_weights=cache_weights)
    runner = engine._runner
    runner._graphs = decoding = OnePassEach(runner.model, runner.store)
    greedy = [
        Request(p, Sampling(temperature=0, max_new_tokens=20 + n)) for n, p in enumerate(PROMPTS)
    ]
    handles = [engine.submit(request) for request in greedy]
    written: dict[int, list[int]] = {handle: [] for handle in handles}
    while not engine.idle:
        for handle, delta in engine.step():
            written[handle] += delta.ids
    expected = [reference(p, 20 + n) for n, p in enumerate(PROMPTS)]
    if cache_weights == "auto":
        assert list(written.values()) == expected
    else:  # rounded keys may choose another token once
        assert [ids[0] for ids in written.values()] == [ids[0] for ids in expected]
    assert decoding.shapes == sorted(set(decoding.shapes), key=decoding.shapes.index)
    assert {n_rows for n_rows, _ in decoding.shapes} <= {1, 2, 4, 8}
    assert len(decoding.shapes) <= 12  # five rows of many lengths


def test_few_lengths_serve_all_and_waste_a_quarter_at_most() -> None:
    numbers = range(1, 4097)
    spans = [_eighths(n) for n in numbers]
    assert all(n <= span <= max(n, 1.25 * n) for n, span in zip(numbers, spans, strict=True))
    assert len(set(spans)) < 60
