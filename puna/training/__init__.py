"""One loop for every method: optimizer, schedule, checkpoints, metrics."""

from puna.training.config import LoopConfig
from puna.training.loop import Objective, Outcome, Source, train
from puna.training.objectives import next_token
from puna.training.source import PackedSource

__all__ = ["LoopConfig", "Objective", "Outcome", "PackedSource", "Source", "next_token", "train"]
