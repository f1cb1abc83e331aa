"""The typed events of a streamed response, and the response they add up to."""

import secrets
import time
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from typing import Any

from puna.inference import Delta
from puna.serving.answers import AnswerText, MadeCall, chat_logprob, guard_of
from puna.serving.call import Call
from puna.serving.errors import ApiError
from puna.serving.hub import Served
from puna.serving.sse import Deltas, Frame, event
from puna.tokenizer.tools import Arguments, CallStart, Text

Json = dict[str, Any]


class ResponseWriter:
    """Writes one response, whole or as events.

    Args:
        call: of the request.
        served: the model.
        answer: reads the engine's deltas.
        settings: fields of the response that the request decides.
        n_prompt: tokens of the prompt.
        with_logprobs: whether text comes with log-probabilities.
    """

    def __init__(
        self,
        call: Call,
        served: Served,
        answer: AnswerText,
        settings: Json,
        *,
        n_prompt: int,
        with_logprobs: bool,
    ) -> None:
        self._call = call
        self._served = served
        self._answer = answer
        self._n_prompt = n_prompt
        self._with_logprobs = with_logprobs
        self._head = {
            "id": f"resp_{call.request_id}",
            "object": "response",
            "created_at": int(time.time()),
        } | settings
        self._output: list[_Item] = []
        self._number = 0

    async def whole(self, deltas: Deltas) -> Json:
        """The response in one piece."""
        async with aclosing(deltas):
            async for _, delta in deltas:
                for _ in self._events_of(delta):
                    pass  # they build the items as they go
        return self._finished()

    async def events(self, deltas: Deltas) -> AsyncGenerator[bytes, None]:
        """The response as events."""
        for name in ("response.created", "response.in_progress"):
            yield self._event(name, {"response": self._response("in_progress")})
        try:
            async with aclosing(deltas):
                async for _, delta in deltas:
                    for item in self._events_of(delta):
                        yield item
        except ApiError as error:
            failure = {"code": "server_error", "message": error.message}
            failed = self._response("failed") | {"error": failure}
            yield self._event("response.failed", {"response": failed})
            return
        finished = self._finished()
        yield self._event(f"response.{finished['status']}", {"response": finished})

    def _events_of(self, delta: Delta) -> Iterator[bytes]:
        """The events of one delta of the engine."""
        answer = self._answer
        pieces = answer.take(delta)
        n_begun = len(answer.calls) - sum(isinstance(piece, CallStart) for piece in pieces)
        for piece in pieces:
            match piece:
                case Text():
                    yield from self._text(piece.text)
                case CallStart():
                    yield from self._end_item("completed")
                    yield from self._begin(_CallItem(answer.calls[n_begun]))
                    n_begun += 1
                case Arguments():
                    yield from self._more(piece.text)
        if answer.finish is not None:
            text_last = not self._output or isinstance(self._output[-1], _MessageItem)
            if not self._output or (text_last and self._with_logprobs and answer.logprobs):
                yield from self._text("")
            whole = answer.finish in ("stop", "tool_calls")
            yield from self._end_item("completed" if whole else "incomplete")

    def _text(self, text: str) -> Iterator[bytes]:
        if not self._output or not isinstance(self._output[-1], _MessageItem):
            if self._output and not text.strip():
                return  # blanks between calls are no message
            yield from self._end_item("completed")
            yield from self._begin_message()
        item = self._output[-1]
        assert isinstance(item, _MessageItem), "it was just begun"
        logprobs = self._new_logprobs()
        item.logprobs += logprobs
        if not logprobs:
            yield from self._more(text)
            return
        item.text += text
        place = self._place(item) | {"content_index": 0}
        yield self._event(
            "response.output_text.delta", place | {"delta": text, "logprobs": logprobs}
        )

    def _new_logprobs(self) -> list[Json]:
        entries, self._answer.logprobs = self._answer.logprobs, []
        if not self._with_logprobs:
            return []
        return [chat_logprob(self._served.tokenizer, entry) for entry in entries]

    def _begin_message(self) -> Iterator[bytes]:
        item = _MessageItem()
        yield from self._begin(item)
        place = self._place(item) | {"content_index": 0}
        yield self._event("response.content_part.added", place | {"part": item.part()})

    def _begin(self, item: "_Item") -> Iterator[bytes]:
        self._output.append(item)
        at = len(self._output) - 1
        yield self._event(
            "response.output_item.added", {"output_index": at, "item": item.shown("in_progress")}
        )
        item.frame = self._frame(item)

    def _more(self, text: str) -> Iterator[bytes]:
        """More text of the newest item: its frame has a hole for the number and the text."""
        item = self._output[-1]
        item.text += text
        assert item.frame is not None, "every item that began has one"
        yield item.frame.fill(text, self._next())

    def _frame(self, item: "_Item") -> Frame:
        place: Json = self._place(item)
        if isinstance(item, _MessageItem):
            place |= {"content_index": 0, "logprobs": []}
        data = {"type": item.delta_event} | place
        data |= {"delta": Frame.HOLE, "sequence_number": Frame.HOLE}
        return Frame(data, item.delta_event)

    def _end_item(self, status: str) -> Iterator[bytes]:
        if not self._output or self._output[-1].status != "in_progress":
            return
        item = self._output[-1]
        item.status = status
        place = self._place(item)
        for name, data in item.ending():
            yield self._event(name, place | data)
        at = place["output_index"]
        yield self._event(
            "response.output_item.done", {"output_index": at, "item": item.shown(status)}
        )

    def _place(self, item: "_Item") -> Json:
        return {"item_id": item.id, "output_index": len(self._output) - 1}

    def _next(self) -> int:
        self._number += 1
        return self._number - 1

    def _event(self, name: str, data: Json) -> bytes:
        return event({"type": name} | data | {"sequence_number": self._next()}, name)

    def _finished(self) -> Json:
        """The response at its end; a delta may have ended it before any text came."""
        finish = self._answer.finish
        if finish in ("stop", "tool_calls"):
            return self._response("completed") | {"completed_at": int(time.time())}
        reason = "max_output_tokens" if finish == "length" else "content_filter"
        return self._response("incomplete") | {"incomplete_details": {"reason": reason}}

    def _response(self, status: str) -> Json:
        guard = guard_of(self._call.verdict(0))
        return (
            self._head
            | {
                "status": status,
                "output": [item.shown(item.status) for item in self._output],
                "usage": None if status == "in_progress" else self._usage(),
                "completed_at": None,
                "error": None,
                "incomplete_details": None,
            }
            | ({} if guard is None else {"puna": guard})
        )

    def _usage(self) -> Json:
        answer = self._answer
        cached = {"cached_tokens": answer.n_cached, "cache_write_tokens": 0}
        return {
            "input_tokens": self._n_prompt,
            "input_tokens_details": cached,
            "output_tokens": answer.n_tokens,
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": self._n_prompt + answer.n_tokens,
        }


class _MessageItem:
    """The text of the answer."""

    delta_event = "response.output_text.delta"

    def __init__(self) -> None:
        self.id = f"msg_{secrets.token_hex(12)}"
        self.status = "in_progress"
        self.text = ""
        self.logprobs: list[Json] = []
        self.frame: Frame | None = None

    def part(self) -> Json:
        """Its content."""
        return {
            "type": "output_text",
            "text": self.text,
            "annotations": [],
            "logprobs": self.logprobs,
        }

    def shown(self, status: str) -> Json:
        """As an item of the output."""
        content = [self.part()] if self.text or status != "in_progress" else []
        return {
            "type": "message",
            "id": self.id,
            "role": "assistant",
            "status": status,
            "content": content,
        }

    def ending(self) -> Iterator[tuple[str, Json]]:
        """Events that close it, before the item's own."""
        text = {"content_index": 0, "text": self.text, "logprobs": self.logprobs}
        yield "response.output_text.done", text
        yield "response.content_part.done", {"content_index": 0, "part": self.part()}


class _CallItem:
    """A call."""

    delta_event = "response.function_call_arguments.delta"

    def __init__(self, made: MadeCall) -> None:
        self.id = f"fc_{secrets.token_hex(12)}"
        self.status = "in_progress"
        self.text = ""
        self.frame: Frame | None = None
        self._made = made

    def shown(self, status: str) -> Json:
        """As an item of the output."""
        return {
            "type": "function_call",
            "id": self.id,
            "call_id": self._made.id,
            "name": self._made.name,
            "arguments": self.text,
            "status": status,
        }

    def ending(self) -> Iterator[tuple[str, Json]]:
        """Events that close it, before the item's own."""
        yield (
            "response.function_call_arguments.done",
            {"name": self._made.name, "arguments": self.text},
        )


_Item = _MessageItem | _CallItem
