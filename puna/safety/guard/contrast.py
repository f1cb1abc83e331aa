"""Contrasts of our own: harmful and harmless texts that share their words.

A head that learns only from collected attacks and everyday questions learns the words: "kill",
"ignore". Here the same word stands on both sides: what a crime is called in questions about law,
history, help and fiction against requests to commit it; "ignore" said of blank lines against said
of the system's instructions. Made from ``contrast.yaml`` alone, always the same.
"""

from collections.abc import Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from puna.core.random import stream

N_INJECTIONS = 500
"""Injections drawn of the thousands that the lists make."""
_FILE = Path(__file__).with_name("contrast.yaml")


@cache
def _lists() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(_FILE.read_text(encoding="utf-8"))
    return found


def harmful_pairs() -> list[tuple[str, bool, str]]:
    """Requests with whether they are harmful, and of which hazard ("" for harmless ones)."""
    lists = _lists()
    unsafe = [
        (frame.format(**harm), True, harm["code"])
        for harm, frame in product(lists["harms"], lists["unsafe_frames"])
    ]
    safe = [
        (frame.format(**harm), False, "")
        for harm, frame in product(lists["harms"], lists["safe_frames"])
    ]
    unsafe += [
        (line, True, code) for code, written in lists["unsafe_lines"].items() for line in written
    ]
    return unsafe + safe + [(line, False, "") for line in lists["safe_lines"]]


def injection_pairs() -> list[tuple[str, bool]]:
    """Requests with whether they attack the instructions of the model that reads them."""
    benign = _lists()["benign"]
    spoken = [f"{verb} {rest}" for verb, rests in benign["verbs"].items() for rest in rests]
    return [(text, True) for text in _attacks()] + [
        (text, False) for text in (*spoken, *benign["lines"])
    ]


def planted_documents(documents: Sequence[str]) -> list[tuple[str, bool]]:
    """The documents, half of them with an attack somewhere between two sentences.

    Of the others every second one has a harmless note at such a place.
    """
    attacks, notes = _attacks(), _lists()["benign"]["notes"]
    rng = stream("planted documents", len(documents))
    made = []
    for number, document in enumerate(documents):
        sentences = document.split(". ")
        place = int(rng.integers(len(sentences) + 1))
        if number % 2 == 0:
            sentences.insert(place, str(rng.choice(attacks)).rstrip("."))
        elif number % 4 == 1:
            sentences.insert(place, str(rng.choice(notes)).rstrip("."))
        made.append((". ".join(sentences), number % 2 == 0))
    return made


@cache
def _attacks() -> list[str]:
    parts = _lists()["injections"]
    every = [
        frame.format(verb=verb, lower=verb.lower(), scope=scope, goal=goal)
        for frame, verb, scope, goal in product(
            parts["frames"], parts["verbs"], parts["scopes"], parts["goals"]
        )
    ]
    distinct = list(dict.fromkeys(every))
    chosen = stream("injections").choice(len(distinct), N_INJECTIONS, replace=False)
    return [distinct[index] for index in sorted(chosen)]
