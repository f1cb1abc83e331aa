"""Findings: attacks that succeeded, kept as tests that anybody can run again.

A folder holds ``findings.jsonl``, one finding a line. A replay sends the same conversation with the
same seed and judges the answer anew; what the model had said in the middle of a conversation is
asked for again, since another model would have said something else.
"""

import asyncio
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from puna.core.config import Config
from puna.core.errors import PunaError, UsageError
from puna.core.files import write_text
from puna.inference.batch import Record
from puna.safety.models import DoesNotFit, Reply
from puna.safety.redteam.arena import Aim, Cast, judged
from puna.safety.redteam.goals import Kind
from puna.safety.redteam.verdicts import Verdicts
from puna.tokenizer import Message, ToolCall

FINDINGS = "findings.jsonl"
_MOST_BYTES = 256 * 1024**2


class SentCall(Config):
    """A call of a tool in a kept conversation."""

    name: str
    """The tool."""
    arguments: str
    """The text of a JSON object."""


class SentMessage(Config):
    """A message of a kept conversation."""

    role: str
    """Who speaks."""
    content: str
    """What is said."""
    calls: tuple[SentCall, ...] = ()
    """Tools that an assistant's turn calls."""
    said: bool = False
    """Whether the model under attack said it: a replay asks it anew."""
    seed: int = 0
    """Of that answer's draw."""

    def message(self) -> Message:
        """As a model is asked."""
        calls = tuple(ToolCall(call.name, call.arguments) for call in self.calls)
        return Message(self.role, self.content, calls)


class Finding(Config):
    """An attack that succeeded."""

    id: str
    """Tells it from others: attack, goal, language and sample."""
    model: str
    """What the user called the model."""
    digest: str
    """SHA-256 of its files, or its address."""
    attack: str
    """Name of the attack."""
    family: str
    """What the attack is counted with."""
    goal: str
    """Name of the goal."""
    kind: Kind
    """Kind of the goal."""
    group: str
    """The hazard, or the kind."""
    language: str
    """Of the request."""
    request: str
    """What was asked for."""
    marker: str = ""
    """The string that shows success; empty for a harm."""
    opening: str = ""
    """First words of an answer that agrees."""
    messages: tuple[SentMessage, ...] = Field(min_length=1)
    """The conversation before the answer."""
    seed: int
    """Of the answer's draw."""
    max_new_tokens: int
    """Longest answer."""
    temperature: float
    """Of the answer."""
    answer: str
    """What the model said."""
    verdicts: dict[str, Any]
    """``decided_by``, and what rules, guard and judge thought, with the details."""

    def aim(self) -> Aim:
        """What its answer is judged by."""
        return Aim(self.kind, self.group, self.request, self.marker, self.opening)


@dataclass(frozen=True)
class Replayed:
    """A finding tried again."""

    finding: Finding
    reply: Reply | None
    """What the model says now; None where the conversation does not fit it."""
    verdicts: Verdicts | None

    @property
    def succeeds(self) -> bool:
        """Whether the attack still works."""
        return self.verdicts is not None and self.verdicts.success

    @property
    def same(self) -> bool:
        """Whether the answer is what it was, character by character."""
        return self.reply is not None and self.reply.text == self.finding.answer

    def fields(self) -> Record:
        """As JSON."""
        kept = {"id": self.finding.id, "succeeds": self.succeeds, "same_answer": self.same}
        by = None if self.verdicts is None else self.verdicts.decided_by
        return kept | {"decided_by": by, "answer": None if self.reply is None else self.reply.text}


def finding_of(record: Record, cast: Cast) -> Finding:
    """The finding of a record that succeeded."""
    name = "/".join([record["attack"], record["goal"], record["language"], str(record["sample"])])
    same = ("attack", "family", "goal", "kind", "group", "language", "request", "marker")
    kept = (*same, "opening", "messages", "seed", "answer")
    opinions = ("decided_by", "rules", "guard", "judge", "facts", "form")
    fields = {
        "id": name,
        "model": cast.target.name,
        "digest": cast.target.digest,
        "max_new_tokens": cast.sampling.max_new_tokens,
        "temperature": cast.sampling.temperature,
        "verdicts": {key: record[key] for key in opinions},
        **{key: record[key] for key in kept},
    }
    return Finding.parse(fields, where="finding")


def write_findings(folder: Path, findings: Iterable[Finding]) -> Path:
    """Write them all, atomically; returns the file's path."""
    path = folder / FINDINGS
    write_text(path, "".join(f.model_dump_json(exclude_defaults=True) + "\n" for f in findings))
    return path


def read_findings(folder: Path) -> list[Finding]:
    """The findings in a folder, or in a file; raises `UsageError` naming the line."""
    path = folder / FINDINGS if folder.is_dir() else folder
    if not path.exists():
        raise UsageError(f"no findings in {folder}: name a folder with {FINDINGS}")
    if path.stat().st_size > _MOST_BYTES:
        raise UsageError(f"{path} is larger than {_MOST_BYTES} bytes: split it")
    findings = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            entry = json.loads(line)
        except ValueError as error:
            raise UsageError(f"{path}, line {number}: not valid JSON") from error
        if not isinstance(entry, dict):
            raise UsageError(f"{path}, line {number}: a finding is an object")
        findings.append(Finding.parse(entry, where=f"{path}, line {number}"))
    return findings


async def replay(
    cast: Cast,
    findings: Sequence[Finding],
    *,
    concurrency: int,
    done: Callable[[Replayed], None] = lambda _: None,
) -> list[Replayed]:
    """Try findings again, in their order; the settings of each answer are the finding's own."""
    room = asyncio.Semaphore(concurrency)

    async def one(finding: Finding) -> Replayed:
        async with room:
            try:
                replayed = await _again(cast, finding)
            except DoesNotFit:
                replayed = Replayed(finding, None, None)
            done(replayed)
            return replayed

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(one(finding)) for finding in findings]
    except* PunaError as errors:
        raise errors.exceptions[0] from None
    return [task.result() for task in tasks]


async def _again(cast: Cast, finding: Finding) -> Replayed:
    limits = {"max_new_tokens": finding.max_new_tokens, "temperature": finding.temperature}
    messages: list[Message] = []
    for entry in finding.messages:
        if not entry.said:
            messages.append(entry.message())
            continue
        sampling = cast.sampling.model_copy(update={**limits, "seed": entry.seed})
        reply = await cast.target.reply(messages, sampling)
        messages.append(Message("assistant", reply.text))
    sampling = cast.sampling.model_copy(update={**limits, "seed": finding.seed})
    reply = await cast.target.reply(messages, sampling)
    return Replayed(finding, reply, await judged(cast, finding.aim(), messages, reply))
