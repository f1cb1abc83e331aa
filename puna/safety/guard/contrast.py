"""Contrasts of our own: harmful and harmless texts that share their words.

A head that learns only from collected attacks and everyday questions learns the words: "kill",
"ignore". Here the same word stands on both sides: what a crime is called in questions about law,
history, help and fiction against requests to commit it; "ignore" said of blank lines against said
of the system's instructions; the same verb with an object that makes it a craft or a crime. Made
from ``contrast.yaml`` and ``meanings.yaml`` alone, always the same.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import yaml

from puna.core.random import stream

N_INJECTIONS = 500
"""Injections drawn of the thousands that the lists make."""
N_MEANINGS = 90
"""Requests drawn of each side of what lists of ``meanings.yaml`` make together."""
_FILE = Path(__file__).with_name("contrast.yaml")
_MEANINGS = Path(__file__).with_name("meanings.yaml")


@dataclass(frozen=True)
class Contrast:
    """A request that somebody might make.

    Attributes:
        text: its words.
        unsafe: whether it is harmful.
        code: its hazard; "" for harmless ones.
        topic: what it shares with its counterparts: whoever leaves it out leaves out all of them.
    """

    text: str
    unsafe: bool
    code: str
    topic: str


@cache
def _lists(file: Path = _FILE) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(file.read_text(encoding="utf-8"))
    return found


def harmful_pairs() -> list[Contrast]:
    """What crimes are called, in requests to commit them and in questions about them."""
    lists = _lists()
    made = [
        Contrast(frame.format(**harm), unsafe, harm["code"] if unsafe else "", harm["noun"])
        for unsafe, frames in ((True, "unsafe_frames"), (False, "safe_frames"))
        for harm, frame in product(lists["harms"], lists[frames])
    ]
    lines = [(line, code) for code, some in lists["unsafe_lines"].items() for line in some]
    lines += [(line, "") for line in lists["safe_lines"]]
    return made + [Contrast(line, code != "", code, line) for line, code in lines]


def meaning_pairs() -> list[Contrast]:
    """Requests in the same words whose object, or whose subject, makes them harmful or harmless."""
    lists = _lists(_MEANINGS)
    return [*_deeds(lists), *_groups(lists["whose"]), *_private(lists["private"]),
            *_events(lists["events"])]  # fmt: skip


def _deeds(lists: dict[str, Any]) -> Iterator[Contrast]:
    """Each deed in two of the frames, harmful and harmless ones in the same."""
    frames = lists["frames"]
    for number, (verb, sides) in enumerate(lists["deeds"].items()):
        for code, objects in sides.items():
            for place, thing in enumerate(objects):
                for step in (0, len(frames) // 2):
                    frame = frames[(number + place + step) % len(frames)]
                    unsafe = code != "safe"
                    deed = frame.format(x=f"{verb} {thing}")
                    yield Contrast(deed, unsafe, code if unsafe else "", verb)


def _groups(lists: dict[str, Any]) -> Iterator[Contrast]:
    """Contempt for people; the same said of goblins, and fair questions about people."""
    kinds = ("bad", "right", "place")

    def said(frames: str, groups: str) -> list[tuple[str, str]]:
        every = product(lists[frames], lists[groups], *(lists[kind] for kind in kinds))
        texts = {
            frame.format(who=who, **dict(zip(kinds, words, strict=True))): who
            for frame, who, *words in every
        }
        return _drawn(list(texts.items()), frames + groups)

    for text, who in said("frames_unsafe", "real"):
        yield Contrast(text, True, "S10", who)
    for text, who in said("frames_unsafe", "unreal") + said("frames_safe", "real"):
        yield Contrast(text, False, "", who)


def _private(lists: dict[str, Any]) -> Iterator[Contrast]:
    """Secrets of people; those of figures in novels, and what the public knows."""

    def said(who: str) -> list[tuple[str, str]]:
        every = product(lists["frames"], lists["facts"], lists[who])
        return _drawn([(f.format(fact=fact, who=name), name) for f, fact, name in every], who)

    for text, who in said("people"):
        yield Contrast(text, True, "S7", who)
    for text, who in said("unreal"):
        yield Contrast(text, False, "", who)
    for frame, who in product(lists["public"], lists["known"]):
        yield Contrast(frame.format(who=who), False, "", who)


def _events(lists: dict[str, Any]) -> Iterator[Contrast]:
    """Atrocities: questions of history, and wishes to deny or repeat them."""
    for code in ("safe", "S10", "S1"):
        for frame, name in product(lists[code], lists["names"]):
            unsafe = code != "safe"
            yield Contrast(frame.format(event=name), unsafe, code if unsafe else "", name)


def _drawn(items: list[tuple[str, str]], key: str) -> list[tuple[str, str]]:
    chosen = stream("meanings", key).choice(len(items), min(N_MEANINGS, len(items)), replace=False)
    return [items[index] for index in sorted(chosen)]


def injection_pairs() -> list[Contrast]:
    """Requests that attack the instructions of the model that reads them, and harmless ones."""
    benign = _lists()["benign"]
    spoken = [
        Contrast(f"{verb} {rest}", False, "", verb)
        for verb, rests in benign["verbs"].items()
        for rest in rests
    ]
    return [*_attacks(), *spoken, *(Contrast(line, False, "", line) for line in benign["lines"])]


def planted_documents(documents: Sequence[str]) -> list[Contrast]:
    """The documents, half of them with an attack somewhere between two sentences.

    Of the others every second one has a harmless note at such a place.
    """
    attacks, notes = _attacks(), _lists()["benign"]["notes"]
    rng = stream("planted documents", len(documents))
    made = []
    for number, document in enumerate(documents):
        sentences = document.split(". ")
        place = int(rng.integers(len(sentences) + 1))
        code, topic = "", document[:80] or "nothing"
        if number % 2 == 0:
            attack = attacks[int(rng.integers(len(attacks)))]
            sentences.insert(place, attack.text.rstrip("."))
            code, topic = attack.code, attack.topic
        elif number % 4 == 1:
            sentences.insert(place, str(rng.choice(notes)).rstrip("."))
        made.append(Contrast(". ".join(sentences), code != "", code, topic))
    return made


@cache
def _attacks() -> list[Contrast]:
    """Attacks by frame; a frame is their topic."""
    parts = _lists()["injections"]
    every = {
        frame.format(verb=verb, lower=verb.lower(), scope=scope, goal=goal): frame
        for frame, verb, scope, goal in product(
            parts["frames"], parts["verbs"], parts["scopes"], parts["goals"]
        )
    }
    distinct = list(every)
    drawn = stream("injections").choice(len(distinct), N_INJECTIONS, replace=False)
    return [Contrast(distinct[i], True, "injection", every[distinct[i]]) for i in sorted(drawn)]
