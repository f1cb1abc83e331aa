"""Many prompts from a stream of JSON lines: in flight never more than the engine can use."""

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from puna.core.errors import UsageError
from puna.inference.engine import Engine
from puna.inference.generate import joined
from puna.inference.request import Delta, Request
from puna.inference.sampling import Sampling
from puna.inference.task import Task, answer_record
from puna.tokenizer import Message

Record = dict[str, Any]


@dataclass(frozen=True)
class Line:
    """One line of the input."""

    number: int
    """Its place in the file, from 1."""
    content: bytes

    @property
    def digest(self) -> str:
        """Tells this line from another."""
        return hashlib.sha256(self.content.strip()).hexdigest()[:12]


@dataclass
class _Job:
    """A line whose answers are being written."""

    head: Record
    n_prompt: int
    answers: dict[int, list[Delta]] = field(default_factory=dict)
    """Deltas of each request by its handle."""
    open: int = 0


class Batch:
    """Answers lines as they come: ``{"prompt": ...}`` or ``{"messages": [...]}``.

    A line may bring an ``id`` of its own and any field of `Sampling`. Without a ``seed`` it gets
    one from its number, so that equal prompts are answered differently. A line that is wrong, or
    whose generation fails, is answered with its error.

    Args:
        engine: nothing else may use it meanwhile.
        task: what is asked of every line.
    """

    def __init__(self, engine: Engine, task: Task) -> None:
        self._engine = engine
        self._task = task
        self._most = engine.config.max_rows + max(8, engine.config.max_rows // 4)
        self._jobs: dict[int, _Job] = {}

    def run(self, lines: Iterable[Line]) -> Iterator[Record]:
        """Records in the order in which they are done; ``lines`` is read as there is room.

        Each has ``line``, ``id`` where given, what `answer_record` says or ``error``, and
        ``input``, the line's digest.
        """
        waiting = iter(lines)
        try:
            while True:
                while len(self._jobs) < self._most and (line := next(waiting, None)) is not None:
                    failure = self._enter(line)
                    if failure is not None:
                        yield failure
                if not self._jobs:
                    return
                for handle, delta in self._engine.step():
                    record = self._take(handle, delta)
                    if record is not None:
                        yield record
        finally:
            for handle in self._jobs:
                self._engine.cancel(handle)

    def _enter(self, line: Line) -> Record | None:
        """Hand a line to the engine; the record of its error if it is wrong."""
        head: Record = {"line": line.number, "input": line.digest}
        try:
            entry = _parse(line)
            if "id" in entry:
                head = {"line": line.number, "id": entry.pop("id"), "input": line.digest}
            ids, requests = self._requests(line, entry)
            job = _Job(head, len(ids), open=len(requests))
            self._submit(job, requests)
        except UsageError as error:
            return head | {"error": str(error)}
        return None

    def _requests(self, line: Line, entry: Record) -> tuple[list[int], list[Request]]:
        prompt = _prompt(entry)
        base = self._task.sampling
        seed = base.seed + (line.number - 1) * self._task.n
        fields = base.model_dump() | {"seed": seed} | entry
        sampling = Sampling.parse(fields, where="sampling")
        ids = self._task.prompt_ids(self._engine.tokenizer, prompt)
        return ids, self._task.requests(self._engine, ids, sampling)

    def _submit(self, job: _Job, requests: list[Request]) -> None:
        for request in requests:  # all are alike: the first is refused, or none
            handle = self._engine.submit(request)
            job.answers[handle] = []
            self._jobs[handle] = job

    def _take(self, handle: int, delta: Delta) -> Record | None:
        """Add what a request has gained; the line's record when it was the last to end."""
        job = self._jobs[handle]
        job.answers[handle].append(delta)
        if delta.finish is None:
            return None
        del self._jobs[handle]
        job.open -= 1
        if job.open:
            return None
        errors = [deltas[-1].error for deltas in job.answers.values() if deltas[-1].error]
        if errors:
            return job.head | {"error": f"generation failed: {errors[0]}"}
        answers = [joined(deltas) for deltas in job.answers.values()]
        return job.head | answer_record(job.n_prompt, answers)


def _parse(line: Line) -> Record:
    try:
        entry = json.loads(line.content)
    except UnicodeDecodeError as error:
        raise UsageError("not UTF-8 text") from error
    except (json.JSONDecodeError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise UsageError(f"not valid JSON: {reason}") from error
    if not isinstance(entry, dict):
        raise UsageError('expected an object: {"prompt": ...} or {"messages": [...]}')
    return entry


def _prompt(entry: Record) -> str | tuple[Message, ...]:
    """Take the prompt out of a line's object."""
    if ("prompt" in entry) == ("messages" in entry):
        raise UsageError('give "prompt" or "messages"')
    if "messages" in entry:
        from puna.data.chats import parse_messages  # what a single prompt starts without

        return parse_messages({"messages": entry.pop("messages")}, "messages")
    prompt = entry.pop("prompt")
    if not isinstance(prompt, str):
        raise UsageError('"prompt" must be a string')
    return prompt
