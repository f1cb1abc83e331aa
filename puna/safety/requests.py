"""Requests by hazard: such as ought to be declined, such as only sound so, and everyday ones.

What tuning learns from and what it is judged on have no act, no question and no frame in common.
"""

from collections import Counter
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
    act: str = ""
    """What is asked about, where it stands in a frame."""


@cache
def _texts() -> dict[str, Any]:
    return load_yaml(Path(__file__).with_suffix(".yaml"))


@cache
def _twins() -> dict[str, list[dict[str, Any]]]:
    """Acts that their object alone makes harmful or harmless, and questions with the same words."""
    return dict(load_yaml(Path(__file__).with_name("twins.yaml")))


def _side(entries: Sequence[_Entry], part: Part) -> list[_Entry]:
    """Two thirds to learn from, the last third held out."""
    cut = len(entries) - len(entries) // 3
    return list(entries[:cut] if part == "train" else entries[cut:])


def harmful(part: Part) -> list[SafetyRequest]:
    """Every harmful act of a part in every frame of that part."""
    return _framed("harmful", "harmful", part)


def harmless(part: Part) -> list[SafetyRequest]:
    """Harmless acts with words of the harmful ones, in the same frames: only the act tells."""
    return _framed("harmless", "borderline", part)


def _framed(acts: Literal["harmful", "harmless"], kind: Kind, part: Part) -> list[SafetyRequest]:
    texts = _texts()
    found = [
        (hazard, act)
        for hazard, entry in texts["hazards"].items()
        for act in _side(entry[acts], part)
    ]
    if part == "train":
        twins = _twins()["twins"]
        found += [(twin["hazard"], twin["act"].format(it)) for twin in twins for it in twin[acts]]
    frames = _side(texts["frames"], part)
    return [
        SafetyRequest(frame.format(act=act), kind, hz, act) for hz, act in found for frame in frames
    ]


def borderline(part: Part) -> list[SafetyRequest]:
    """Benign questions that share words or topics with the harmful requests."""
    return [
        SafetyRequest(text, "borderline", hazard)
        for hazard, entry in _texts()["hazards"].items()
        for text in _side(entry["borderline"], part)
    ]


def asked(side: Literal["harmful", "harmless"]) -> list[SafetyRequest]:
    """Questions without a frame, to learn from; those of both sides have their words in common."""
    kind: Kind = "harmful" if side == "harmful" else "borderline"
    return [
        SafetyRequest(text, kind, group["hazard"])
        for group in _twins()["questions"]
        for text in group[side]
    ]


def everyday(part: Part) -> list[SafetyRequest]:
    """What people ask all day."""
    return [SafetyRequest(text, "everyday", "") for text in _side(_texts()["everyday"], part)]


def drawn(requests: Sequence[SafetyRequest], count: int, seed: int) -> list[SafetyRequest]:
    """At most ``count`` of them: acts in turn, each time in another frame."""
    met: Counter[str] = Counter()
    turns: list[tuple[int, int, SafetyRequest]] = []
    for place in stream(seed, "drawn", len(requests)).permutation(len(requests)):
        request = requests[int(place)]
        key = request.act or request.text
        turns.append((met[key], len(turns), request))
        met[key] += 1
    return [request for _, _, request in sorted(turns)[:count]]


def refusal_to(request: SafetyRequest, seed: int) -> str:
    """An answer that declines, says why, and offers something; to benign ones the worse answer."""
    texts = _texts()
    entry = texts["hazards"][request.hazard or "S2"]
    place = int(stream(seed, "refusal", request.text).integers(len(texts["refusals"])))
    text: str = texts["refusals"][place].format(why=entry["why"], instead=entry["instead"])
    return text
