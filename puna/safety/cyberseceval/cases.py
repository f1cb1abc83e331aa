"""What a suite asks and what was found: cases, findings, and rows of the published files."""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from puna.core.errors import UsageError
from puna.core.random import stream
from puna.tokenizer import Message

_MOST_BYTES = 256 * 1024**2  # of a published file
Facts = Mapping[str, Any]


@dataclass(frozen=True)
class Case:
    """One prompt of a suite."""

    key: str
    """Its name within the suite."""
    messages: tuple[Message, ...]
    """The conversation to answer."""
    group: str
    """What it is counted with: a language, a category, a kind of attack."""
    facts: Facts = field(default_factory=dict)
    """What judging needs beside the answer; JSON values."""
    cluster: str = ""
    """Cases of one cluster depend on each other; empty for a case of its own."""


@dataclass(frozen=True)
class Finding:
    """What one measure found in one answer."""

    value: float | None
    """1 where what the measure counts has happened, 0 where not, None where nobody could tell."""
    by: str
    """Who decided: ``rule``, ``judge``, ``shield``, ``detector``, ``sandbox``."""
    why: str = ""
    """In a few words."""


def user(text: str) -> tuple[Message, ...]:
    """A conversation of one question."""
    return (Message("user", text),)


def sample(cases: Sequence[Case], limit: int | None, seed: int, suite: str) -> list[int]:
    """Places of the cases to ask, in order; a larger limit keeps those of a smaller one.

    Groups take turns, so a small sample holds all of them.
    """
    order = [int(place) for place in stream(seed, "cyberseceval", suite).permutation(len(cases))]
    if limit is None or limit >= len(cases):
        return sorted(order)
    rank: dict[str, int] = {}
    turns = []
    for place in order:
        group = cases[place].group
        rank[group] = rank.get(group, -1) + 1
        turns.append((rank[group], place))
    turns.sort(key=lambda turn: turn[0])  # stable: within a turn as drawn
    return sorted(place for _, place in turns[:limit])


def read_rows(path: Path, needed: Iterable[str]) -> list[dict[str, Any]]:
    """Rows of a published file: a JSON list of objects.

    Raises `UsageError` for another file, naming the row and the field it lacks.
    """
    if path.stat().st_size > _MOST_BYTES:
        raise UsageError(f"{path} is larger than {_MOST_BYTES >> 20} MB: is it the right file?")
    try:
        rows = json.loads(path.read_text(encoding="utf-8"))
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise UsageError(f"{path} is not JSON: {error}") from error
    if not isinstance(rows, list) or not rows:
        raise UsageError(f"{path}: expected a JSON list of prompts")
    for number, row in enumerate(rows, 1):
        lacking = [name for name in needed if not (isinstance(row, dict) and row.get(name))]
        if lacking:
            raise UsageError(f"{path}, row {number}: '{lacking[0]}' is missing")
    return rows


def find_file(folder: Path, names: Sequence[str]) -> Path | None:
    """The first of these files anywhere below ``folder``."""
    for name in names:
        found = sorted(folder.rglob(name))
        if found:
            return found[0]
    return None
