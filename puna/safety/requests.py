"""Requests by hazard: such as ought to be declined, such as only sound so, and everyday ones.

What tuning learns from and what it is judged on have no act, no question and no frame in common.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, TypeVar

from puna.core.config import load_yaml
from puna.core.random import stream

Part = Literal["train", "held out"]
Kind = Literal["harmful", "borderline", "everyday"]
_Entry = TypeVar("_Entry")


@dataclass(frozen=True)
class SafetyRequest:
    """What a user asks."""

    text: str
    kind: Kind
    hazard: str
    """``S1`` to ``S14``; of everyday ones ``""``."""


@cache
def _texts() -> dict[str, Any]:
    return load_yaml(Path(__file__).with_suffix(".yaml"))


def _side(entries: Sequence[_Entry], part: Part) -> list[_Entry]:
    """Two thirds to learn from, the last third held out."""
    cut = len(entries) - len(entries) // 3
    return list(entries[:cut] if part == "train" else entries[cut:])


def harmful(part: Part) -> list[SafetyRequest]:
    """Every act of a part in every frame of that part."""
    texts = _texts()
    frames = _side(texts["frames"], part)
    return [
        SafetyRequest(frame.format(act=act), "harmful", hazard)
        for hazard, entry in texts["hazards"].items()
        for act in _side(entry["harmful"], part)
        for frame in frames
    ]


def borderline(part: Part) -> list[SafetyRequest]:
    """Benign requests that share words or topics with the harmful ones."""
    return [
        SafetyRequest(text, "borderline", hazard)
        for hazard, entry in _texts()["hazards"].items()
        for text in _side(entry["borderline"], part)
    ]


def everyday(part: Part) -> list[SafetyRequest]:
    """What people ask all day."""
    return [SafetyRequest(text, "everyday", "") for text in _side(_texts()["everyday"], part)]


def refusal_to(request: SafetyRequest, seed: int) -> str:
    """An answer that declines, says why, and offers something; to benign ones the worse answer."""
    texts = _texts()
    entry = texts["hazards"][request.hazard or "S2"]
    drawn = int(stream(seed, "refusal", request.text).integers(len(texts["refusals"])))
    text: str = texts["refusals"][drawn].format(why=entry["why"], instead=entry["instead"])
    return text
