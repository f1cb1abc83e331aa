"""One loop for every method: optimizer, schedule, checkpoints, metrics."""

from puna.training.config import LoopConfig
from puna.training.loop import Objective, Outcome, Source, train
from puna.training.objectives import next_token
from puna.training.source import RowSource

__all__ = ["LoopConfig", "Objective", "Outcome", "RowSource", "Source", "next_token", "train"]
