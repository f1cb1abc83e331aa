"""Requests that tuning learns from and that the gate asks: apart, balanced, none of XSTest's."""

import csv
import re
from collections import Counter
from pathlib import Path

import pytest

from puna.core.config import load_yaml
from puna.safety import requests
from puna.safety.requests import asked, borderline, drawn, everyday, harmful, harmless

XSTEST = Path(__file__).parents[2].parent / "shared" / "data" / "xstest"
FRAMES = load_yaml(Path(requests.__file__).with_suffix(".yaml"))["frames"]
EMPTY = set(re.findall(r"[a-z']+", " ".join(FRAMES).lower())) | {
    "the", "a", "an", "my", "of", "in", "on", "it", "that", "with", "could", "are", "does", "who",
}  # fmt: skip


def test_acts_and_frames_that_are_judged_on_are_not_learned_from() -> None:
    for make in (harmful, harmless):
        learned, judged = make("train"), make("held out")
        assert not {r.act for r in learned} & {r.act for r in judged}
        frames = [{r.text.replace(r.act, "{act}") for r in part} for part in (learned, judged)]
        assert frames[1]
        assert not frames[0] & frames[1]


def test_every_frame_is_learned_with_harmful_and_with_harmless_acts() -> None:
    """Else the frame alone would tell, and the model would decline the frame."""
    bad, fine = (
        Counter(r.text.replace(r.act, "{act}") for r in drawn(make("train"), 480, seed=0))
        for make in (harmful, harmless)
    )
    assert bad.keys() == fine.keys()
    assert min(*bad.values(), *fine.values()) >= 8


def test_acts_are_drawn_in_turn() -> None:
    requests_of = harmful("train")
    acts = {r.act for r in requests_of}
    once = drawn(requests_of, len(acts), seed=1)
    assert {r.act for r in once} == acts
    twice = Counter(r.act for r in drawn(requests_of, 2 * len(acts), seed=1))
    assert set(twice.values()) == {2}
    assert drawn(requests_of, 50, seed=1) == once[:50]
    assert drawn(requests_of, 50, seed=2) != once[:50]


@pytest.mark.skipif(not XSTEST.exists(), reason="XSTest's prompts are not here")
def test_nothing_learned_from_is_a_prompt_of_xstest() -> None:
    with (XSTEST / "xstest_prompts.csv").open(encoding="utf-8") as file:
        held_out = {_bare(row["prompt"]): row["prompt"] for row in csv.DictReader(file)}
    learned = [r for make in (harmful, harmless, borderline, everyday) for r in make("train")]
    for request in [*learned, *asked("harmful"), *asked("harmless")]:
        own = _bare(request.text)
        near = [
            text for words, text in held_out.items() if len(words & own) > 0.5 * len(words | own)
        ]
        assert not near, f"{request.text!r} is near {near}"


def test_no_question_learned_from_is_near_one_that_is_judged_on() -> None:
    judged = [r for make in (harmful, harmless, borderline, everyday) for r in make("held out")]
    held_out = {_bare(request.text) for request in judged} - {frozenset()}
    for request in [*asked("harmful"), *asked("harmless")]:
        own = _bare(request.text)
        assert all(len(words & own) <= 0.5 * len(words | own) for words in held_out), request.text


def _bare(text: str) -> frozenset[str]:
    """Words that carry the question."""
    return frozenset(re.findall(r"[a-z']+", text.lower())) - EMPTY
