"""What is trained and remembered besides the model goes through checkpoints with it."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from puna.core.events import EventLog
from puna.data import Batch, PackedRows, Share
from puna.model import Llama
from puna.training import LoopConfig, Outcome, RowSource, next_token, train


@dataclass
class Watcher:
    """A method that predicts its own loss and starts each step where the last loss left it."""

    source: RowSource[Batch]
    head: nn.Linear
    last: float = 0.0

    def __call__(self, model: Llama, batch: Batch) -> Outcome:
        outcome = next_token(model, batch)
        mean = outcome.loss_sum / outcome.count
        guess = self.head(torch.tensor([self.last])).squeeze()
        self.last = float(mean.detach())
        error = (guess - mean.detach()).square() * outcome.count
        return Outcome(outcome.loss_sum + error, outcome.count)

    def state_dict(self) -> dict[str, Tensor]:
        return {"last": torch.tensor(self.last)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.last = float(state["last"])


def run(model: Llama, rows: PackedRows, loop: LoopConfig, steps: int, folder: Path) -> Watcher:
    """Train to ``steps`` of the schedule and stop there as a kill would."""
    watcher = Watcher(RowSource(rows, seed=5, config=loop), nn.Linear(1, 1))
    nn.init.ones_(watcher.head.weight)
    nn.init.zeros_(watcher.head.bias)

    class Killed(Exception):
        pass

    def source(step: int, share: Share) -> list[Batch]:
        if step == steps:
            raise Killed
        return watcher.source(step)

    log = EventLog()
    with suppress(Killed):
        train(model, watcher, source, loop, folder, log, beside=watcher.head, kept=watcher)
    return watcher


def test_a_resumed_run_goes_on_with_what_stood_beside_the_model(
    rows: PackedRows, new_model: Callable[[], Llama], loop: LoopConfig, tmp_path: Path
) -> None:
    straight, resumed = new_model(), new_model()
    whole = run(straight, rows, loop, 8, tmp_path / "straight")
    run(new_model(), rows, loop, 5, tmp_path / "cut")
    rest = run(resumed, rows, loop, 8, tmp_path / "cut")
    assert rest.last == whole.last
    assert torch.equal(rest.head.weight, whole.head.weight)
    assert not torch.equal(rest.head.weight, torch.ones(1, 1))  # it was trained
    assert all(map(torch.equal, resumed.parameters(), straight.parameters()))
