"""The suites: what each asks, where its cases come from, and what is found in an answer."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from puna.core.errors import UsageError
from puna.core.files import sha256_file
from puna.safety.cyberseceval import (
    canary,
    generated,
    helpfulness,
    injection,
    insecure,
    judging,
    phishing,
)
from puna.safety.cyberseceval.cases import Case, Facts, Finding, find_file
from puna.safety.models import ChatModel

DATA = "PUNA_CYBERSECEVAL"
"""Environment variable that names the folder of the published data."""


class CodeDetector(Protocol):
    """Whoever finds insecure code beside our shield."""

    versions: dict[str, str]
    """Tell its findings from another's."""

    async def analyze(self, language: str, code: str, before: str) -> list[str]:
        """CWEs found in ``code``, which follows ``before``."""
        ...

    def check(self) -> None:
        """Raise `PunaError` when its figures mean nothing."""
        ...


@dataclass(frozen=True)
class Tools:
    """Whom the suites ask about answers."""

    judge: ChatModel | None = None
    detector: CodeDetector | None = None


Findings = Mapping[str, Finding]
Find = Callable[[Case, Facts, Tools], Awaitable[Findings]]


@dataclass(frozen=True)
class Suite:
    """One test."""

    name: str
    title: str
    measures: Mapping[str, str]
    """What is counted, by name, the suite's own figure first; a rate of 0 is best everywhere."""
    make: Callable[[int], list[Case]]
    """The offline set, by a seed."""
    find: Find
    tokens: int
    """Longest answer, unless the user says otherwise."""
    files: tuple[str, ...] = ()
    """What the published data are called; none where they are made by a program."""
    read: Callable[[Path], list[Case]] | None = None
    needs_judge: bool = False
    """Whether nothing can be asked without a judge."""


@dataclass(frozen=True)
class Source:
    """Where a suite's cases are from."""

    name: str
    """``generated``, or the file's name."""
    digest: str
    """Of the file; empty for the offline set, which is part of the program."""
    cases: list[Case]


def cases_of(suite: Suite, data: Path | None, seed: int, *, strict: bool) -> Source:
    """The cases: of the published file below ``data`` where it is there, else the offline set.

    Raises `UsageError` where ``strict`` and ``data`` holds no such file.
    """
    path = find_file(data, suite.files) if data and suite.read else None
    if path is not None:
        assert suite.read is not None
        return Source(path.name, sha256_file(path), suite.read(path))
    if data and suite.read and strict:
        names = " or ".join(suite.files)
        raise UsageError(f"{data} holds no {names}: give --generated for the offline set")
    return Source("generated", "", suite.make(seed))


async def _detected(case: Case, answer: str, detector: CodeDetector) -> Finding:
    """What Meta's detector finds; undecided for a language it does not know."""
    language = case.facts["language"]
    if language not in insecure.DETECTED:
        return Finding(None, "detector", f"does not know {language}")
    before = insecure.published_context(case.facts)
    cwes = await detector.analyze(language, insecure.published_code(answer), before)
    return Finding(float(bool(cwes)), "detector", ", ".join(sorted(set(cwes))))


async def _insecure(case: Case, record: Facts, tools: Tools) -> Findings:
    found = {insecure.SHIELD: insecure.find(case, record["text"])}
    if tools.detector is not None:
        found[insecure.DETECTOR] = await _detected(case, record["text"], tools.detector)
    return found


async def _mitre(_case: Case, record: Facts, tools: Tools) -> Findings:
    return {
        helpfulness.HELPFUL: await helpfulness.helpful(record["text"], tools.judge),
        helpfulness.NOT_DECLINED: helpfulness.not_declined(record["text"]),
    }


async def _frr(_case: Case, record: Facts, _tools: Tools) -> Findings:
    return {helpfulness.FALSE_REFUSAL: helpfulness.false_refusal(record["text"])}


async def _interpreter(case: Case, record: Facts, tools: Tools) -> Findings:
    return {
        helpfulness.COMPLIED: await helpfulness.complied(case, record["text"], tools.judge),
        helpfulness.NOT_DECLINED: helpfulness.not_declined(record["text"]),
    }


async def _injection(case: Case, record: Facts, tools: Tools) -> Findings:
    found = injection.decide(case, record["text"])
    if found is None and tools.judge is not None:
        said = await judging.yes(tools.judge, record["text"], case.facts["question"])
        found = Finding(None if said is None else float(said), "judge")
    return {injection.MEASURE: found or Finding(None, "judge", "no judge")}


async def _canary(case: Case, record: Facts, _tools: Tools) -> Findings:
    return {canary.MEASURE: await asyncio.to_thread(canary.check, case, record["text"])}


async def _phishing(_case: Case, record: Facts, _tools: Tools) -> Findings:
    return {phishing.MEASURE: phishing.persuaded(record)}


_CODE = {
    insecure.SHIELD: "answers in which Puna's shield finds insecure code",
    insecure.DETECTOR: "answers in which Meta's detector does",
}
SUITES: dict[str, Suite] = {
    suite.name: suite
    for suite in (
        Suite(
            "instruct",
            "Insecure code, asked for in words",
            _CODE,
            generated.instruct,
            _insecure,
            tokens=256,
            files=("instruct.json", "instruct-v2.json"),
            read=insecure.read,
        ),
        Suite(
            "autocomplete",
            "Insecure code, completed",
            _CODE,
            generated.autocomplete,
            _insecure,
            tokens=128,
            files=("autocomplete.json",),
            read=insecure.read,
        ),
        Suite(
            "mitre",
            "Help with attacks, by tactic of MITRE ATT&CK",
            {
                helpfulness.HELPFUL: "answers that help an attacker",
                helpfulness.NOT_DECLINED: "requests that were not declined: at most so many helped",
            },
            generated.mitre,
            _mitre,
            tokens=192,
            files=(
                "mitre_benchmark_100_per_category_with_augmentation.json",
                "mitre*category*.json",
            ),
            read=helpfulness.read_mitre,
        ),
        Suite(
            "frr",
            "False refusals of requests that only sound like attacks",
            {helpfulness.FALSE_REFUSAL: "benign requests that were declined"},
            generated.frr,
            _frr,
            tokens=96,
            files=("mitre_frr.json",),
            read=helpfulness.read_frr,
        ),
        Suite(
            "injection",
            "Prompt injection by text",
            {injection.MEASURE: "attacks that got what they wanted"},
            generated.injections,
            _injection,
            tokens=128,
            files=("prompt_injection.json",),
            read=injection.read,
        ),
        Suite(
            "interpreter",
            "Abuse of a code interpreter",
            {
                helpfulness.COMPLIED: "requests that the answer carries out",
                helpfulness.NOT_DECLINED: "requests that were not declined: at most so many were",
            },
            generated.interpreter,
            _interpreter,
            tokens=192,
            files=("interpreter.json",),
            read=helpfulness.read_interpreter,
        ),
        Suite(
            "canary",
            "Exploits of small programs",
            {canary.MEASURE: "programs whose canary the answer reached"},
            generated.canaries,
            _canary,
            tokens=96,
        ),
        Suite(
            "phishing",
            "Spear phishing of a person whom the judge plays",
            {phishing.MEASURE: "dialogues in which the person did what was wanted"},
            generated.spear_phishing,
            _phishing,
            tokens=128,
            files=("multiturn_phishing_challenges.json",),
            read=phishing.read,
            needs_judge=True,
        ),
    )
}


def chosen(names: list[str]) -> list[Suite]:
    """Suites by name; ``all`` is each. Raises `UsageError` for an unknown name."""
    unknown = [name for name in names if name not in SUITES and name != "all"]
    if unknown:
        raise UsageError(f"no suite '{unknown[0]}': choose from {', '.join(SUITES)}, all")
    return list(SUITES.values()) if "all" in names else [SUITES[name] for name in names]
