"""``/v1/completions``: plain texts to go on with, whole or streamed, with log-probabilities."""

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Annotated, Any

from fastapi import APIRouter, Depends
from fastapi.responses import JSONResponse, Response
from pydantic import Field, StringConstraints

from puna.inference import Delta, Request, TokenLogprob
from puna.serving.answers import AnswerText, FinishReason, guard_of, number, token_text, usage_of
from puna.serving.call import Call, call_of
from puna.serving.chat import FINGERPRINT
from puna.serving.errors import ApiError
from puna.serving.hub import Served
from puna.serving.prompts import Given, Prompt, cleaned, prompts_of
from puna.serving.sampling import requests_of, sampling_of, structure_of
from puna.serving.schemas import (
    MOST_CHOICES,
    STREAM,
    WHOLE,
    Extension,
    Part,
    SamplingFields,
    StreamOptions,
    Usage,
)
from puna.serving.sse import DONE, Deltas, EventStream, Frame, begun, event
from puna.tokenizer import StreamDecoder, Tokenizer

router = APIRouter(tags=["OpenAI"])
MOST_ANSWERS = 2048
DEFAULT_TOKENS = 16
"""New tokens where the request does not say, as in OpenAI's protocol."""


class CompletionRequest(SamplingFields):
    """Texts to go on with."""

    prompt: Prompt = Field(examples=["The llama"])
    """A text, texts, the tokens of a text, or those of several."""
    max_tokens: Annotated[int, Field(ge=0, le=10_000_000), WHOLE] | None = None
    """Most new tokens, 16 by default; 0 only reads the prompt."""
    echo: bool | None = None
    """Give the prompt back before the new text."""
    logprobs: Annotated[int, Field(ge=0, le=20), WHOLE] | None = None
    """Log-probabilities of the tokens and of this many most probable ones."""
    best_of: Annotated[int, Field(ge=1, le=MOST_CHOICES), WHOLE] | None = None
    """Not supported above ``n``."""
    suffix: Annotated[str, StringConstraints(max_length=100_000)] | None = None
    """Not supported."""
    stream_options: StreamOptions | None = None
    add_special_tokens: bool | None = None
    """Open texts with the model's begin token, where it has one (as by default)."""


class CompletionLogprobs(Part):
    """Log-probabilities, one entry for each token; of the first token of a prompt there is none."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    """Tokens' texts with theirs; the token itself is among them."""
    text_offset: list[int]
    """Where each token begins in the choice's text."""


class CompletionChoice(Part):
    """One of the answers; those to the i-th prompt begin at index i * n."""

    index: int
    text: str
    logprobs: CompletionLogprobs | None = None
    finish_reason: FinishReason | None
    puna: Extension | None = None


class Completion(Part):
    """The answers."""

    id: str
    object: str = "text_completion"
    created: int
    model: str
    choices: list[CompletionChoice]
    usage: Usage
    system_fingerprint: str


@router.post(
    "/v1/completions",
    response_model=Completion,
    responses=STREAM,
    operation_id="create_completion",
)
async def create_completion(
    body: CompletionRequest, call: Annotated[Call, Depends(call_of)]
) -> Response:
    """Go on with texts. Fields not listed here are ignored."""
    served = call.hub.get(body.model)
    body = body.model_copy(update={"prompt": await cleaned(body.prompt, call)})
    completion = _Completion(body, call, served)
    deltas = call.generate(served, await completion.requests())
    if body.stream:
        return EventStream(completion.events(await begun(deltas)))
    return JSONResponse(await completion.whole(deltas))


class _Completion:
    """One request: what it asks of the engine, and how its answers are written."""

    def __init__(self, body: CompletionRequest, call: Call, served: Served) -> None:
        if body.suffix:
            raise ApiError(400, "this model cannot fill in before a suffix", param="suffix")
        if body.best_of is not None and body.best_of != (body.n or 1):
            raise ApiError(400, "best_of is not supported: leave it out", param="best_of")
        self._body = body
        self._call = call
        self._served = served
        self._n = body.n or 1
        self._prompts = prompts_of(
            body.prompt, served.tokenizer, bos=body.add_special_tokens is not False
        )
        if self._n * len(self._prompts) > MOST_ANSWERS:
            raise ApiError(400, f"more than {MOST_ANSWERS} answers: send fewer", param="prompt")
        self._choices = [
            _Choice(served.tokenizer, prompt, body)
            for prompt in self._prompts
            for _ in range(self._n)
        ]
        self._head = {
            "id": f"cmpl-{call.request_id}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": body.model,
            "system_fingerprint": FINGERPRINT,
        }

    async def requests(self) -> list[Request]:
        """For the engine: ``n`` for each prompt."""
        body = self._body
        limit = DEFAULT_TOKENS if body.max_tokens is None else body.max_tokens
        sampling = sampling_of(
            body,
            max_new_tokens=limit,
            logprobs=body.logprobs,
            prompt_logprobs=bool(body.echo) and body.logprobs is not None,
        )
        return await requests_of(
            self._served,
            [prompt.ids for prompt in self._prompts],
            sampling,
            n=self._n,
            structure=structure_of(body.structured_outputs),
        )

    async def whole(self, deltas: Deltas) -> dict[str, Any]:
        """The answers in one piece."""
        parts: list[list[dict[str, Any]]] = [[] for _ in self._choices]
        async with aclosing(deltas):
            async for index, delta in deltas:
                parts[index].append(self._choices[index].take(delta))
        choices = [self._joined(index, choice) for index, choice in enumerate(parts)]
        return self._head | {"choices": choices, "usage": self._usage()}

    def _joined(self, index: int, parts: list[dict[str, Any]]) -> dict[str, Any]:
        choice = {
            "index": index,
            "text": "".join(part["text"] for part in parts),
            "logprobs": None,
            "finish_reason": parts[-1]["finish_reason"],
        }
        if self._body.logprobs is not None:
            found = [part["logprobs"] for part in parts]
            choice["logprobs"] = {key: [x for one in found for x in one[key]] for key in found[0]}
        return choice | self._guard(index)

    def _guard(self, index: int) -> dict[str, Any]:
        guard = guard_of(self._call.verdict(index))
        return {} if guard is None else {"puna": guard}

    def _usage(self) -> dict[str, Any]:
        firsts = self._choices[:: self._n]
        n_prompt = sum(len(prompt.ids) for prompt in self._prompts)
        n_new = sum(choice.answer.n_tokens for choice in self._choices)
        return usage_of(n_prompt, sum(choice.answer.n_cached for choice in firsts), n_new)

    async def events(self, deltas: Deltas) -> AsyncGenerator[bytes, None]:
        """The answers as events."""
        options = self._body.stream_options
        with_usage = bool(options and options.include_usage)
        head: dict[str, Any] = self._head | ({"usage": None} if with_usage else {})
        bare = {"logprobs": None, "finish_reason": None}
        texts = [
            Frame(head | {"choices": [{"index": n, "text": Frame.HOLE} | bare]})
            for n in range(len(self._choices))
        ]
        async with aclosing(deltas):
            async for index, delta in deltas:
                part = self._choices[index].take(delta)
                if part["finish_reason"] is None and part["logprobs"] is None:
                    if part["text"]:
                        yield texts[index].fill(part["text"])
                    continue
                last = part["finish_reason"] is not None
                choice = {"index": index} | part | (self._guard(index) if last else {})
                yield event(head | {"choices": [choice]})
        if with_usage:
            yield event(head | {"choices": [], "usage": self._usage()})
        yield DONE


class _Choice:
    """One answer as it grows, with what echo puts before it."""

    def __init__(self, tokenizer: Tokenizer, prompt: Given, body: CompletionRequest) -> None:
        self.answer = AnswerText()
        self._tokenizer = tokenizer
        self._prompt = prompt
        self._echo = bool(body.echo)
        self._with_logprobs = body.logprobs is not None
        self._decoder = StreamDecoder(tokenizer, skip_special=True)
        self._offset = 0
        self._begun = False

    def take(self, delta: Delta) -> dict[str, Any]:
        """What is new: text, log-probabilities, the reason of the end."""
        self.answer.take(delta)
        text = delta.text
        entries: list[tuple[int, TokenLogprob | None]] = []
        if self._echo and not self._begun:
            text = self._prompt.text + text
            known = delta.prompt_logprobs or ()
            entries += zip(self._prompt.ids, known, strict=True) if known else ()
        self._begun = True
        entries += [(entry.id, entry) for entry in delta.logprobs]
        logprobs = self._shown(entries) if self._with_logprobs else None
        return {"text": text, "logprobs": logprobs, "finish_reason": self.answer.finish}

    def _shown(self, entries: Sequence[tuple[int, TokenLogprob | None]]) -> dict[str, Any]:
        shown: dict[str, list[Any]] = {
            name: [] for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset")
        }
        for token, entry in entries:
            shown["tokens"].append(token_text(self._tokenizer, token))
            shown["token_logprobs"].append(None if entry is None else number(entry.logprob))
            shown["top_logprobs"].append(None if entry is None else self._top(entry))
            shown["text_offset"].append(self._offset)
            self._offset += len(self._decoder.push(token))
        return shown

    def _top(self, entry: TokenLogprob) -> dict[str, float]:
        pairs = [*entry.top, (entry.id, entry.logprob)]
        return {token_text(self._tokenizer, token): number(logprob) for token, logprob in pairs}
