"""One request of a client, from the gate to its last token.

An endpoint takes it as ``call: Annotated[Call, Depends(call_of)]`` and generates through it, so
that limits, safeguard, measurement and cancellation are the same on every path.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Sequence
from dataclasses import replace
from typing import TypeVar

import torch
from starlette.requests import Request as HttpRequest
from torch import Tensor

from puna.core.errors import UsageError
from puna.inference import Delta, Request, check_fits
from puna.inference.worker import Answer
from puna.safety import Cleaner, Safeguard, Subject, Verdict
from puna.serving.auth import Holder
from puna.serving.errors import ApiError, as_api_error, server_error
from puna.serving.guard import Filtered
from puna.serving.hub import Hub, Served
from puna.serving.logs import log
from puna.serving.record import Measure, Record
from puna.serving.stats import Figures
from puna.tokenizer import Message

_Result = TypeVar("_Result")


class Call:
    """A request on its way.

    Attributes:
        request_id: in the log, and in the answer's ``x-request-id``.
        key: name of the client's API key; None when the server asks for none.
        hub: the models.
        deadline: the event loop's time at which the answer must be complete.
        messages: the conversation, set by endpoints that know one, for the safeguard.
    """

    def __init__(
        self,
        request_id: str,
        hub: Hub,
        figures: Figures,
        *,
        deadline: float = float("inf"),
        safeguard: Safeguard | None = None,
        keep_text: bool = False,
    ) -> None:
        self.request_id = request_id
        self.hub = hub
        self.deadline = deadline
        self.messages: Sequence[Message] = ()
        self.holder: Holder | None = None
        self.record = Record(keep_text)
        self._figures = figures
        self._safeguard = safeguard
        self._verdicts: dict[int, Verdict] = {}
        self.started = time.perf_counter()
        self._waiting: asyncio.Task[object] | None = None
        self._interrupted: ApiError | None = None

    @property
    def key(self) -> str | None:
        """Name of the client's API key."""
        return None if self.holder is None else self.holder.entry.name

    @property
    def guarded(self) -> bool:
        """Whether a safeguard watches it."""
        return self._safeguard is not None

    def verdict(self, index: int) -> Verdict | None:
        """What the safeguard thinks of an answer and its prompt; None when there is none."""
        return self._verdicts.get(index)

    def interrupt(self, error: ApiError) -> None:
        """End the generation with ``error``, at the next token at the latest."""
        self._interrupted = error
        if self._waiting is not None:
            self._waiting.cancel()

    async def cleaned(self, texts: Sequence[str]) -> list[str]:
        """Texts of the prompt without what the safeguard keeps from the model."""
        guard = self._safeguard
        if not isinstance(guard, Cleaner):
            return list(texts)
        clean = guard.clean
        return await self.wait(asyncio.to_thread(lambda: [clean(text) for text in texts]))

    async def cleaned_turns(self, turns: Sequence[Message]) -> list[Message]:
        """`cleaned` for a conversation."""
        contents = await self.cleaned([turn.content for turn in turns])
        return [replace(turn, content=c) for turn, c in zip(turns, contents, strict=True)]

    async def generate(
        self, served: Served, requests: Sequence[Request]
    ) -> AsyncGenerator[tuple[int, Delta], None]:
        """Answers to ``requests``: pairs (index, delta) as they come; each index ends with a
        ``finish`` ("stop", "length" or "content_filter").

        Raises `ApiError`, before the first pair for what is wrong with the request or the moment:
        400 for a prompt that is too long or blocked, 429 for a full queue or a used-up limit, 500
        for a failing model, 504 when time is up. Closing it cancels what still runs.
        """
        measure = self._measure(served)
        subjects = await self._admit(served, requests, measure)
        answers = await self._submit(served, requests, measure)
        filters = {n: self.output_filter(subject) for n, subject in enumerate(subjects)}
        pairs = _one(answers[0]) if len(answers) == 1 else _several(answers)
        unfinished = set(range(len(answers)))
        try:
            while unfinished:
                index, delta = await self.wait(anext(pairs))
                if index not in unfinished:
                    continue  # it came before a blocked answer was closed
                measure.took(index, delta)
                delta = await self._checked(index, delta, filters.get(index))
                if delta.finish is not None:
                    unfinished.remove(index)
                    answers[index].close()
                    self.record.finish = delta.finish
                yield index, delta
        finally:
            for answer in answers:
                answer.close()
            await pairs.aclose()

    async def embed(self, served: Served, prompts: Sequence[Sequence[int]]) -> Tensor:
        """Vectors of length 1 for ``prompts``: (n, dim), fp32. Raises as `generate` does.

        Prompts go to the engine one by one: others' answers go on in between.
        """
        requests = [Request(prompt) for prompt in prompts]
        measure = self._measure(served)
        await self._admit(served, requests, measure)
        return torch.cat([await self.wait(served.engine.embed([prompt])) for prompt in prompts])

    async def _admit(
        self, served: Served, requests: Sequence[Request], measure: Measure
    ) -> list[Subject]:
        """Check everything that can be checked before the engine is asked."""
        self.record.model = served.name
        for request in requests:
            try:
                check_fits(request.prompt, served.context)
            except UsageError as error:
                code = "context_length_exceeded" if request.prompt else "empty_prompt"
                raise ApiError(400, str(error), code=code) from error
        measure.read(served, requests)
        if self._safeguard is None:
            return []
        subjects = [
            Subject(served.tokenizer.decode(r.prompt), self.messages, served.name, self.key)
            for r in requests
        ]
        await self.admit(subjects)
        return subjects

    async def admit(self, subjects: Sequence[Subject]) -> None:
        """Show prompts to the safeguard, where there is one; raises `ApiError` 400 for a block."""
        if self._safeguard is None:
            return
        seen: dict[str, Verdict] = {}
        for index, subject in enumerate(subjects):
            if subject.text not in seen:
                seen[subject.text] = await self.wait(self._safeguard.admit(subject))
                self._figures.verdicts["input", seen[subject.text].decision] += 1
            self._verdicts[index] = verdict = seen[subject.text]
            if verdict.decision == "block":
                raise ApiError(
                    400,
                    f"the safeguard refuses this request: {verdict.reason}",
                    type="safety_error",
                    code="content_blocked",
                )

    def output_filter(self, subject: Subject) -> Filtered | None:
        """A filter for one answer, where there is a safeguard."""
        guard = self._safeguard
        return None if guard is None else Filtered(guard.output_filter(subject))

    def judged(self, index: int, verdict: Verdict) -> None:
        """The answer ``index`` has ended: count what its filter thinks of it."""
        self._figures.verdicts["output", verdict.decision] += 1
        if verdict.decision != "allow":
            self._verdicts[index] = verdict

    async def _submit(
        self, served: Served, requests: Sequence[Request], measure: Measure
    ) -> list[Answer]:
        """Let all of ``requests`` in, or none."""
        asked = asyncio.gather(
            *(served.engine.submit(request) for request in requests), return_exceptions=True
        )
        results = await self.wait(asked)
        answers = [result for result in results if isinstance(result, Answer)]
        problems = [result for result in results if isinstance(result, BaseException)]
        if not problems:
            return answers
        for answer in answers:
            answer.close()
        measure.refund(requests)
        raise as_api_error(problems[0]) or problems[0]

    async def wait(self, event: Awaitable[_Result]) -> _Result:
        """Wait for ``event``, or raise the error that interrupts the call."""
        if self._interrupted is None:
            self._waiting = asyncio.current_task()
            try:
                return await event
            except asyncio.CancelledError:
                if self._interrupted is None:
                    raise
                assert self._waiting is not None, "somebody waits here"
                self._waiting.uncancel()
            finally:
                self._waiting = None
        elif asyncio.iscoroutine(event):
            event.close()
        raise self._interrupted

    def _measure(self, served: Served) -> Measure:
        figures = self._figures.of(served.name)
        return Measure(self.record, figures, self.started, self.holder)

    async def _checked(self, index: int, delta: Delta, output: Filtered | None) -> Delta:
        """What of ``delta`` may leave; the verdict is counted when the answer ends."""
        if delta.finish in ("error", "cancelled"):  # the latter when the engine is closed
            log(level="error", id=self.request_id, error=delta.error or "the engine was closed")
            raise server_error()
        if output is None:
            return delta
        released = await self.wait(output.push(delta))
        if released.finish is not None:
            self.judged(index, output.verdict)
        return released


async def call_of(request: HttpRequest) -> Call:
    """The call that the gate opened for this request: a dependency of endpoints."""
    call = request.scope["state"]["call"]
    assert isinstance(call, Call), "the gate stands before every endpoint"
    return call


async def _one(answer: Answer) -> AsyncGenerator[tuple[int, Delta], None]:
    async for delta in answer:
        yield 0, delta


async def _several(answers: Sequence[Answer]) -> AsyncGenerator[tuple[int, Delta], None]:
    """Deltas of ``answers`` as they come. A slow reader lets few wait here: the rest merge."""
    queue: asyncio.Queue[tuple[int, Delta]] = asyncio.Queue(maxsize=len(answers))

    async def read(index: int, answer: Answer) -> None:
        async for delta in answer:
            await queue.put((index, delta))

    tasks = [asyncio.create_task(read(*numbered)) for numbered in enumerate(answers)]
    try:
        while True:
            yield await queue.get()
    finally:
        for task in tasks:
            task.cancel()
