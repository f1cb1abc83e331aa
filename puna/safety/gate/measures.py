"""What a gate can ask about a model: measures by name, each a rate of bad outcomes.

A room adds its own with `measure`; the modules of `_PROVIDERS` are imported when a name is looked
up.
"""

import importlib
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path

from puna.core.errors import UsageError
from puna.safety.models import ChatModel

_PROVIDERS = (
    "puna.safety.cyberseceval.gate",
    "puna.safety.gate.answers",
    "puna.safety.gate.red_team",
)


@dataclass(frozen=True)
class Circumstances:
    """How a measure is taken."""

    limit: int
    """Most prompts."""
    seed: int
    """Of what is drawn."""
    folder: Path
    """Where answers may be kept."""
    data: Path | None = None
    """Folder of CyberSecEval's published data; None takes the offline sets."""


@dataclass(frozen=True)
class Measured:
    """A rate of bad outcomes: 0 is best."""

    rate: float
    low: float
    high: float
    """Ends of the 95% interval."""
    n: int
    """Outcomes it was measured on."""
    what: str
    """What is counted, and on which prompts."""


Measure = Callable[[ChatModel, Circumstances], Awaitable[Measured]]
_MEASURES: dict[str, Measure] = {}


def measure(name: str) -> Callable[[Measure], Measure]:
    """Register a measure under a name, as a decorator."""

    def register(function: Measure) -> Measure:
        _MEASURES[name] = function
        return function

    return register


def names() -> list[str]:
    """Names of all measures."""
    for provider in _PROVIDERS:
        importlib.import_module(provider)
    return sorted(_MEASURES)


def measure_of(name: str) -> Measure:
    """The measure of this name; raises `UsageError` for an unknown one."""
    known = names()
    if name not in _MEASURES:
        raise UsageError(f"gate: no measure '{name}': known are {', '.join(known)}")
    return _MEASURES[name]
