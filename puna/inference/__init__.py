"""The generation engine: paged cache, continuous batching, sampling, quantised weights."""

from puna.inference.config import EngineConfig
from puna.inference.engine import Engine, load_engine
from puna.inference.generate import Generation, generate, stream
from puna.inference.request import Delta, QueueFull, Request, Stats, TokenLogprob, check_fits
from puna.inference.sampling import Sampling
from puna.inference.worker import AsyncEngine

__all__ = [
    "AsyncEngine",
    "Delta",
    "Engine",
    "EngineConfig",
    "Generation",
    "QueueFull",
    "Request",
    "Sampling",
    "Stats",
    "TokenLogprob",
    "check_fits",
    "generate",
    "load_engine",
    "stream",
]
