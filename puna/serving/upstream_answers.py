"""Another server's answers on their way through the safeguard.

Where there is a safeguard, only fields known to hold judged text pass: what the model says, thinks
and calls. Log-probabilities, audio and fields unknown here would carry text past it.
"""

import time
from collections.abc import Sequence
from typing import Any

from puna.inference import Delta
from puna.inference.request import Finish
from puna.safety import Subject
from puna.serving.answers import guard_of
from puna.serving.call import Call
from puna.serving.guard import Filtered

_SAID = ("content", "reasoning_content", "reasoning", "refusal")
"""Fields of a message with text of the model."""
_HEAD = ("id", "object", "created", "model", "system_fingerprint")
_MOST_CALLS = 128  # of tools, in one answer
_REASONS = ("stop", "length", "tool_calls", "function_call", "content_filter")


class Answers:
    """All answers to one request.

    Args:
        call: of the client.
        subjects: the prompts, admitted; none where there is no safeguard.
        chat: whether answers are messages, else texts.
        n: answers to each prompt.
    """

    def __init__(self, call: Call, subjects: Sequence[Subject], *, chat: bool, n: int) -> None:
        self._call = call
        self._subjects = list(subjects)
        self._chat = chat
        self._n = n
        self._choices: dict[int, _Choice] = {}
        self._head: dict[str, Any] = {}

    @property
    def done(self) -> bool:
        """Whether every answer was cut by the safeguard."""
        expected = self._n * max(1, len(self._subjects))
        return len(self._choices) == expected and all(c.cut for c in self._choices.values())

    async def whole(self, answer: Any) -> dict[str, Any]:
        """A whole answer as far as it may leave."""
        value = answer if isinstance(answer, dict) else {}
        self._count(value)
        if not self._call.guarded:
            return value
        made = {key: value[key] for key in (*_HEAD, "usage") if key in value}
        return made | {"choices": [await self._judged(c) for c in _choices_of(value)]}

    async def _judged(self, choice: dict[str, Any]) -> dict[str, Any]:
        found = self._choice(choice)
        if not self._chat:
            text = await found.push("text", _text(choice.get("text")))
            text += (await found.end(choice.get("finish_reason")))["text"]
            return found.shown({"text": text})
        message = choice.get("message")
        message = message if isinstance(message, dict) else {}
        delta = await found.message(message)
        for key, text in (await found.end(choice.get("finish_reason"))).items():
            delta = _joined(delta, key, text)
        for call in delta.get("tool_calls", []):
            call.pop("index", None)
        shown = {"role": "assistant", "content": None} | delta
        if found.cut:
            shown.pop("tool_calls", None)  # half a call is none
        return found.shown({"message": shown})

    async def chunks(self, chunk: dict[str, Any]) -> list[dict[str, Any]]:
        """A streamed chunk as far as it may leave: none while all of it is held."""
        self._count(chunk)
        if chunk.get("choices") and not isinstance(chunk.get("usage"), dict):
            self._charge(self._call.record.prompt_tokens, self._call.record.generated_tokens + 1)
        if not self._call.guarded:
            return [chunk]
        if "error" in chunk:
            return [{"error": chunk["error"]}]
        self._head = {key: chunk[key] for key in _HEAD if key in chunk} or self._head
        made = [await self._streamed(choice) for choice in _choices_of(chunk)]
        shown = [choice for choice in made if choice is not None]
        extra = {"usage": chunk["usage"]} if "usage" in chunk else {}
        if not shown and not chunk.get("usage"):
            return []
        return [self._head | {"choices": shown} | extra]

    async def rest(self) -> list[dict[str, Any]]:
        """What is left of answers whose end the other server did not send."""
        made = []
        for choice in self._choices.values():
            if not choice.over:
                made.append(choice.shown(self._piece(await choice.end("stop"))))
        return [self._head | {"choices": made}] if made else []

    async def _streamed(self, choice: dict[str, Any]) -> dict[str, Any] | None:
        found = self._choice(choice)
        if found.over:
            return None
        if self._chat:
            delta = choice.get("delta")
            piece: dict[str, Any] = {
                "delta": await found.message(delta if isinstance(delta, dict) else {})
            }
        else:
            piece = {"text": await found.push("text", _text(choice.get("text")))}
        reason = choice.get("finish_reason")
        if reason is not None or found.cut:
            for key, text in (await found.end(reason)).items():
                if self._chat:
                    piece["delta"] = _joined(piece["delta"], key, text)
                else:
                    piece["text"] += text
        if not found.over and not any(piece.values()):
            return None
        return found.shown(piece)

    def _piece(self, rest: dict[str, str]) -> dict[str, Any]:
        if not self._chat:
            return {"text": rest.get("text", "")}
        delta: dict[str, Any] = {}
        for key, text in rest.items():
            delta = _joined(delta, key, text)
        return {"delta": delta}

    def _choice(self, choice: dict[str, Any]) -> "_Choice":
        index = choice.get("index")
        index = index if isinstance(index, int) and 0 <= index < 4096 else 0
        if index not in self._choices:
            subject = self._subjects[min(index // self._n, len(self._subjects) - 1)]
            self._choices[index] = _Choice(self._call, subject, index)
        return self._choices[index]

    def _count(self, value: dict[str, Any]) -> None:
        """Note the tokens that the other server counted, and charge them to the client's key."""
        record, usage = self._call.record, value.get("usage")
        if record.ttft_s is None:
            record.ttft_s = time.perf_counter() - self._call.started
        if not isinstance(usage, dict):
            return
        read, written = (usage.get(key) for key in ("prompt_tokens", "completion_tokens"))
        self._charge(*(n if isinstance(n, int) and n >= 0 else 0 for n in (read, written)))

    def _charge(self, read: int, written: int) -> None:
        """Tokens read and written so far; of a stream, until it says so itself, one a chunk."""
        record, holder = self._call.record, self._call.holder
        if holder is not None:
            before = record.prompt_tokens + record.generated_tokens
            holder.tokens.spend(max(0, read + written - before))
        record.prompt_tokens, record.generated_tokens = read, written


class _Choice:
    """One answer: each of its texts has a filter of its own."""

    def __init__(self, call: Call, subject: Subject, index: int) -> None:
        self._call = call
        self._subject = subject
        self._index = index
        self._filters: dict[str, Filtered] = {}
        self._reason: str | None = None
        self.cut = False
        self.over = False

    async def push(self, key: str, text: str) -> str:
        """What of a piece of the text ``key`` may leave."""
        if self.cut or not text:
            return ""
        return await self._pass(key, Delta(text=text))

    async def message(self, message: dict[str, Any]) -> dict[str, Any]:
        """What of a message, or of a piece of it, may leave."""
        made: dict[str, Any] = {"role": "assistant"} if message.get("role") else {}
        for key in _SAID:
            if key in message and (text := await self.push(key, _text(message[key]))):
                made[key] = text
        calls = message.get("tool_calls")
        for place, call in enumerate(calls if isinstance(calls, list) else ()):
            if isinstance(call, dict) and (shown := await self._call_piece(call, place)):
                made.setdefault("tool_calls", []).append(shown)
        return made

    async def end(self, reason: Any) -> dict[str, str]:
        """The answer is complete; the rest of its texts that may leave, by key."""
        rest = {"text": ""} if not self._filters or "text" in self._filters else {}
        finish: Finish = "length" if reason == "length" else "stop"
        for key in self._filters:
            if not self.cut:
                rest[key] = await self._pass(key, Delta(finish=finish))
        self.over = True
        self._reason = reason if reason in _REASONS else "stop"
        self._call.record.finish = "content_filter" if self.cut else self._reason
        if not self.cut:
            for output in list(self._filters.values())[:1]:
                self._call.judged(self._index, output.verdict)
        return rest

    def shown(self, piece: dict[str, Any]) -> dict[str, Any]:
        """A choice with this piece, and at its end why it ended and what the safeguard thinks."""
        choice = {"index": self._index, **piece, "logprobs": None, "finish_reason": None}
        if self.over:
            choice["finish_reason"] = "content_filter" if self.cut else self._reason
            guard = guard_of(self._call.verdict(self._index))
            choice |= {} if guard is None else {"puna": guard}
        return choice

    async def _pass(self, key: str, delta: Delta) -> str:
        if key not in self._filters:
            made = self._call.output_filter(self._subject)
            assert made is not None, "only guarded answers are taken apart"
            self._filters[key] = made
        output = self._filters[key]
        released = await self._call.wait(output.push(delta))
        if output.verdict.decision == "block":
            self.cut = True
            self._call.judged(self._index, output.verdict)
        return released.text

    async def _call_piece(self, call: dict[str, Any], place: int) -> dict[str, Any] | None:
        """A piece of a tool's call; its arguments are text like any other."""
        index = call.get("index", place)
        function = call.get("function")
        if not isinstance(index, int) or not 0 <= index < _MOST_CALLS:
            return None
        function = function if isinstance(function, dict) else {}
        name = function.get("name")
        text = await self.push(f"call {index}", _text(function.get("arguments")))
        opened = isinstance(name, str) and bool(name)
        if not opened and not text:
            return None
        shown: dict[str, Any] = {"index": index, "function": {"arguments": text}}
        if opened:
            shown["function"]["name"] = str(name)[:200]
            shown |= {"id": str(call.get("id", ""))[:200], "type": "function"}
        return shown


def _joined(delta: dict[str, Any], key: str, text: str) -> dict[str, Any]:
    """A message with the rest of one of its texts."""
    if not text:
        return delta
    if not key.startswith("call "):
        return delta | {key: (delta.get(key) or "") + text}
    index = int(key.removeprefix("call "))
    calls = [dict(call) for call in delta.get("tool_calls", [])]
    for call in calls:
        if call["index"] == index:
            call["function"] = call["function"] | {
                "arguments": call["function"]["arguments"] + text
            }
            return delta | {"tool_calls": calls}
    return delta | {"tool_calls": [*calls, {"index": index, "function": {"arguments": text}}]}


def _choices_of(value: dict[str, Any]) -> list[dict[str, Any]]:
    choices = value.get("choices")
    return [c for c in choices if isinstance(c, dict)] if isinstance(choices, list) else []


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""
