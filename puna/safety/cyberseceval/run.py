"""Asks a model every case, has the answers judged, and tells the figures. What was done is kept.

``answers-SUITE.jsonl`` grows by a line an answer, what judge and detector said is kept likewise
(`puna.safety.cyberseceval.memo`), so a run that was stopped or killed goes on where it was.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna import __version__
from puna.core.devices import describe_machine
from puna.core.errors import PunaError, UsageError
from puna.core.files import write_json
from puna.inference import Sampling
from puna.inference.batch import Line
from puna.inference.results import Results
from puna.safety.cyberseceval import phishing
from puna.safety.cyberseceval.cases import Case, Facts, sample
from puna.safety.cyberseceval.published import figures_of
from puna.safety.cyberseceval.suites import SUITES, Findings, Source, Suite, Tools, cases_of
from puna.safety.cyberseceval.tally import as_json, by_group, rate
from puna.safety.models import ChatModel, DoesNotFit
from puna.tokenizer import Message

RESULT = "cyberseceval.json"
_MOST_FAILURES = 5  # in a row, after which the model is taken for gone
_EXAMPLES = 4  # answers of each suite that the report shows
Work = Callable[[int], Awaitable[dict[str, Any]]]
Tick = Callable[[str, int, int], None]
"""Told what is being done, how much of it is, and how much there is."""


@dataclass(frozen=True)
class Plan:
    """What is asked, and how."""

    suites: Sequence[Suite]
    data: Path | None = None
    """Folder of the published data; None asks the offline sets."""
    strict: bool = False
    """Whether a suite that the data lack is an error; else its offline set is asked."""
    limit: int | None = 100
    """Cases of each suite; None is all."""
    seed: int = 0
    max_new_tokens: int | None = None
    """Longest answer; None is each suite's own."""
    at_once: int = 64
    """Conversations in flight."""


@dataclass(frozen=True)
class Asked:
    """The cases that were asked, with their answers."""

    source: Source
    places: list[int]
    records: list[dict[str, Any]]

    @property
    def answered(self) -> list[tuple[Case, dict[str, Any]]]:
        """Cases whose prompt fitted the model, with their records."""
        pairs = zip(self.places, self.records, strict=True)
        return [(self.source.cases[p], record) for p, record in pairs if "too_long" not in record]


async def run(
    model: ChatModel,
    plan: Plan,
    folder: Path,
    tools: Tools | None = None,
    tick: Tick | None = None,
) -> dict[str, Any]:
    """Carry out the plan; the result is also in ``folder/cyberseceval.json``.

    Args:
        model: who answers.
        plan: what is asked.
        folder: where answers, findings and the result go.
        tools: judge and detector, where there are any.
        tick: told what is done of how many.

    Raises `UsageError` for a folder begun with another model or other settings, and for a suite
    that needs a judge where ``plan`` names no other; `PunaError` when the model or the judge fails.
    """
    tools = tools or Tools()
    tick = tick or (lambda *_: None)
    suites: dict[str, Any] = {}
    for suite in plan.suites:
        if suite.needs_judge and tools.judge is None:
            if len(plan.suites) == 1:
                raise UsageError(f"{suite.name} needs a judge: add --judge MODEL")
            suites[suite.name] = {"title": suite.title, "skipped": "needs a judge"}
            continue
        suites[suite.name] = await _run_suite(model, suite, plan, folder, tools, tick)
    result = {
        "model": model.name,
        "digest": model.digest,
        "judge": tools.judge.name if tools.judge else None,
        "detector": tools.detector.versions if tools.detector else None,
        "limit": plan.limit,
        "seed": plan.seed,
        "puna": __version__,
        "machine": describe_machine(),
        "suites": suites,
    }
    write_json(folder / RESULT, result)
    return result


async def _run_suite(
    model: ChatModel, suite: Suite, plan: Plan, folder: Path, tools: Tools, tick: Tick
) -> dict[str, Any]:
    begun = time.perf_counter()
    source = cases_of(suite, plan.data, plan.seed, strict=plan.strict)
    asked = await _ask(model, suite, source, plan, folder, tools, tick)
    findings = await _judge(suite, asked, plan, tools, tick)
    if tools.detector is not None:
        tools.detector.check()
    cases = [case for case, _ in asked.answered]
    measures = {}
    for name, what in suite.measures.items():
        found = [finding[name] for finding in findings if name in finding]
        if len(found) == len(cases):
            groups = {group: as_json(r) for group, r in by_group(cases, found).items()}
            measures[name] = {"what": what, **as_json(rate(cases, found)), "groups": groups}
    return {
        "title": suite.title,
        "source": source.name,
        "cases": len(source.cases),
        "asked": len(asked.records),
        "too_long": len(asked.records) - len(cases),
        "max_new_tokens": _sampling(suite, plan).max_new_tokens,
        "measures": measures,
        "published": figures_of(suite.name),
        "examples": _examples(suite, asked, findings),
        "seconds": round(time.perf_counter() - begun, 1),
    }


def _sampling(suite: Suite, plan: Plan) -> Sampling:
    return Sampling(max_new_tokens=plan.max_new_tokens or suite.tokens)


async def _ask(
    model: ChatModel,
    suite: Suite,
    source: Source,
    plan: Plan,
    folder: Path,
    tools: Tools,
    tick: Tick,
) -> Asked:
    """Answers of all cases of the sample."""
    places = sample(source.cases, plan.limit, plan.seed, suite.name)
    sampling = _sampling(suite, plan)
    settings = {
        "model": model.digest,
        "source": source.name,
        "digest": source.digest,
        "seed": plan.seed,
        "max_new_tokens": sampling.max_new_tokens,
    }
    if suite.needs_judge and tools.judge is not None:
        settings["judge"] = tools.judge.digest

    async def answer(place: int) -> dict[str, Any]:
        case = source.cases[place]
        if suite is SUITES["phishing"]:
            assert tools.judge is not None
            return await phishing.converse(case, model, tools.judge, sampling)
        reply = await model.reply(case.messages, sampling)
        return {"text": reply.text, "finish": reply.finish}

    lines = [_line(place, source.cases[place].messages) for place in places]
    path = folder / f"answers-{suite.name}.jsonl"
    told = f"{suite.name}: asking"
    records = await _fill(
        path, settings, lines, answer, plan.at_once, lambda n: tick(told, n, len(lines))
    )
    return Asked(source, places, records)


async def _judge(
    suite: Suite, asked: Asked, plan: Plan, tools: Tools, tick: Tick
) -> list[Findings]:
    """What is found in each answer."""
    answered, room, done = asked.answered, asyncio.Semaphore(plan.at_once), 0

    async def find(case: Case, record: Facts) -> Findings:
        nonlocal done
        async with room:
            found = await suite.find(case, record, tools)
        done += 1
        tick(f"{suite.name}: judging", done, len(answered))
        return found

    return await asyncio.gather(*(find(case, record) for case, record in answered))


async def _fill(
    path: Path,
    settings: dict[str, Any],
    lines: list[Line],
    work: Work,
    at_once: int,
    tick: Callable[[int], None],
) -> list[dict[str, Any]]:
    """Records of all lines, in their order; those that the file lacks are made, several at once.

    Raises the last error when several lines fail in a row, and at the end where some have none.
    """
    with Results(path, settings) as results:
        waiting = results.missing(lines)
        done = len(lines) - sum(1 for _ in results.missing(lines))
        failures: list[PunaError] = []

        async def worker() -> None:
            nonlocal done
            for line in waiting:
                try:
                    record = await work(line.number - 1)
                    failures.clear()
                except DoesNotFit:
                    record = {"too_long": True}
                except UsageError:
                    raise
                except PunaError as error:
                    failures.append(error)
                    if len(failures) >= _MOST_FAILURES:
                        raise
                    record = {"error": str(error)}
                results.append({"line": line.number, "input": line.digest, **record})
                done += 1
                tick(done)

        tick(done)
        tasks = [asyncio.create_task(worker()) for _ in range(at_once)]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return _read(path, lines)


def _read(path: Path, lines: list[Line]) -> list[dict[str, Any]]:
    with path.open("rb") as file:
        known = {record["line"]: record for record in map(json.loads, file)}
    records = [known[line.number] for line in lines]
    failed = [record["error"] for record in records if "error" in record]
    if failed:
        raise PunaError(f"{len(failed)} answers failed, run again to try them anew: {failed[0]}")
    return records


def _line(place: int, messages: Sequence[Message]) -> Line:
    text = json.dumps([[m.role, m.content] for m in messages], ensure_ascii=False)
    return Line(place + 1, text.encode(errors="replace"))


def _examples(suite: Suite, asked: Asked, findings: list[Findings]) -> list[dict[str, Any]]:
    """Some answers with what was found in them, those first in which something was."""
    main = next(iter(suite.measures))
    found = [
        (case, record, finding[main])
        for (case, record), finding in zip(asked.answered, findings, strict=True)
    ]
    found.sort(key=lambda entry: -(entry[2].value or 0))
    return [
        {
            "asked": case.messages[-1].content,
            "answer": record.get("text") or "\n\n".join(record.get("dialogue", [])),
            **vars(finding),
        }
        for case, record, finding in found[:_EXAMPLES]
    ]
