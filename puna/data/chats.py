"""A user's own chats, in the forms in which they are passed around, and which are held out."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from puna.core.errors import UsageError
from puna.core.random import stable_seed
from puna.data.records import Record, near_keys, read_records
from puna.data.tokens import Ints
from puna.tokenizer import Message, Tool, ToolCall

ChatForm = Literal["auto", "messages", "sharegpt", "alpaca"]
CHAT_ROWS = (
    'a row is {"messages": [{"role": "user", "content": "Hi"}, '
    '{"role": "assistant", "content": "Hello!"}]}, or (ShareGPT) {"conversations": '
    '[{"from": "human", "value": "Hi"}, {"from": "gpt", "value": "Hello!"}]}, or (Alpaca) '
    '{"instruction": "Greet me", "output": "Hello!"}'
)
"""A row of each form, for messages about data without one."""
MOST_HELD_OUT = 500
"""Chats that are held out at most: more would make the loss hardly surer, and cost time."""

_SHAREGPT_ROLES = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
    "tool": "tool",
    "observation": "tool",
    "function_response": "tool",
}


@dataclass(frozen=True)
class NamedChat:
    """A conversation to learn from.

    Attributes:
        name: where it is from, for messages to the user: ``"my.jsonl, line 3"``.
        messages: ends with the assistant's answer or not.
        tools: functions the assistant may call.
        builtin_tools: names of tools the model knows from its training.
    """

    name: str
    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    builtin_tools: tuple[str, ...] = ()

    def drawn(self, seed: int) -> int:
        """A number that this text always gets from ``seed``, whatever the chat's name."""
        text = json.dumps(self.tools, sort_keys=True) if self.tools else ""
        return stable_seed(seed, "held out chat", *self.messages, text)


def read_chats(path: Path, form: ChatForm = "auto") -> Iterator[NamedChat]:
    """Conversations of a file or folder that `read_records` reads.

    Args:
        form: how a row says its conversation; ``auto`` takes what the first row looks like.

    Raises:
        UsageError: names the file, and the line or row of what is wrong.
    """
    for record in read_records(path, CHAT_ROWS):
        if form == "auto":
            form = _form_of(record)
        messages = _PARSERS[form](record)
        tools = _tools(record)
        builtin = record.fields.get("builtin_tools") or []
        yield NamedChat(record.where, messages, tools, tuple(map(str, builtin)))


def _form_of(record: Record) -> ChatForm:
    fields = record.fields
    if "messages" in fields:
        return "messages"
    if "conversations" in fields:
        return "sharegpt"
    if "instruction" in fields:
        return "alpaca"
    if "chosen" in fields and "rejected" in fields:
        raise UsageError(f"{record.where}: these are preferences, not chats: tune on them with dpo")
    keys = near_keys(fields, ("messages", "conversations", "instruction"))
    raise UsageError(f"{record.where}: no known form of a chat ({keys}): {CHAT_ROWS}")


def _parse_messages(record: Record) -> tuple[Message, ...]:
    return parse_messages(record.fields, record.where)


def parse_messages(record: Any, where: str, key: str = "messages") -> tuple[Message, ...]:
    """The conversation of ``{"messages": [...]}``; raises `UsageError` naming ``where``."""
    given = record.get(key) if isinstance(record, dict) else None
    if not isinstance(given, list) or not given:
        raise UsageError(f'{where}: expected an object with a list in "{key}"')
    return tuple(_message(message, where) for message in given)


def _message(message: Any, where: str) -> Message:
    fields = message if isinstance(message, dict) else {}
    role, content = fields.get("role"), _text(fields.get("content"))
    calls = tuple(_call(call, where) for call in fields.get("tool_calls") or [])
    if content is None and calls:
        content = ""
    if not isinstance(role, str) or content is None:
        raise UsageError(f'{where}: each message needs a string in "role" and in "content"')
    return Message(
        "system" if role == "developer" else role, content, calls, _switch(fields, where)
    )


def _text(content: Any) -> str | None:
    """A content given whole or as parts of text; None for anything else."""
    if isinstance(content, list):
        parts = [part.get("text") if isinstance(part, dict) else None for part in content]
        texts = [part for part in parts if isinstance(part, str)]
        return "".join(texts) if len(texts) == len(parts) else None
    return content if isinstance(content, str) else None


def _switch(fields: Mapping[str, Any], where: str) -> bool | None:
    """Whether a turn is trained: ``"train": false``, or OpenAI's ``"weight": 0``."""
    given = [fields[key] for key in ("train", "weight") if fields.get(key) is not None]
    if not given:
        return None
    if given[0] not in (0, 1):
        raise UsageError(f'{where}: "train" is true or false, "weight" 0 or 1; not {given[0]!r}')
    return bool(given[0])


def _call(call: Any, where: str) -> ToolCall:
    inner = call.get("function", call) if isinstance(call, dict) else {}
    name, arguments = inner.get("name"), inner.get("arguments", {})
    if isinstance(arguments, dict):
        arguments = json.dumps(arguments, ensure_ascii=False)
    if not isinstance(name, str) or not isinstance(arguments, str):
        raise UsageError(f'{where}: a tool call needs "name" and "arguments"')
    return ToolCall(name, arguments)


def _tools(record: Record) -> tuple[Tool, ...]:
    """Definitions, given as a list or as its JSON text (which Parquet needs to keep it whole)."""
    given = record.fields.get("tools") or []
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except ValueError as error:
            raise UsageError(f'{record.where}: "tools" is not valid JSON: {error}') from error
    if not isinstance(given, list) or not all(isinstance(tool, dict) for tool in given):
        raise UsageError(f'{record.where}: "tools" must be a list of definitions')
    return tuple(given)


def _parse_sharegpt(record: Record) -> tuple[Message, ...]:
    given, where = record.fields.get("conversations"), record.where
    if not isinstance(given, list) or not given:
        raise UsageError(f'{where}: expected an object with a list in "conversations"')
    if isinstance(given[0], dict) and "role" in given[0]:
        return parse_messages(record.fields, where, "conversations")
    system = record.fields.get("system")
    opening = [Message("system", system)] if isinstance(system, str) and system else []
    return (*opening, *(_sharegpt_turn(turn, where) for turn in given))


def _sharegpt_turn(turn: Any, where: str) -> Message:
    fields = turn if isinstance(turn, dict) else {}
    speaker, value = fields.get("from"), fields.get("value")
    if not isinstance(speaker, str) or not isinstance(value, str):
        raise UsageError(f'{where}: each turn needs a string in "from" and in "value"')
    if speaker == "function_call":
        try:
            call = _call(json.loads(value), where)
        except ValueError as error:
            raise UsageError(f"{where}: a function_call holds no JSON: {error}") from error
        return Message("assistant", "", (call,), _switch(fields, where))
    if speaker not in _SHAREGPT_ROLES:
        known = ", ".join((*_SHAREGPT_ROLES, "function_call"))
        raise UsageError(f"{where}: a turn is from '{speaker}': use {known}")
    return Message(_SHAREGPT_ROLES[speaker], value, (), _switch(fields, where))


def _parse_alpaca(record: Record) -> tuple[Message, ...]:
    """The instruction with its input below it is the question, as for a chat model."""
    fields = record.fields
    texts = [fields.get(key) or "" for key in ("system", "instruction", "input")]
    answer = fields.get("output")
    if not isinstance(answer, str) or not all(isinstance(text, str) for text in texts):
        raise UsageError(f'{record.where}: expected strings in "instruction" and "output"')
    system, *question = texts
    opening = [Message("system", system)] if system else []
    asked = "\n\n".join(text for text in question if text)
    return (*opening, Message("user", asked), Message("assistant", answer))


_PARSERS = {"messages": _parse_messages, "sharegpt": _parse_sharegpt, "alpaca": _parse_alpaca}


def held_out(drawn: Ints, fraction: float, most: int = MOST_HELD_OUT) -> npt.NDArray[np.bool_]:
    """Which chats are held out: those with the least numbers that `NamedChat.drawn` gave.

    About ``fraction`` of the different ones, ``most`` at most. With two or more, at least one
    stands on each side; equal chats stand together.
    """
    distinct = np.unique(drawn)
    wanted = min(max(1, round(len(distinct) * fraction)), most, len(distinct) - 1)
    if wanted < 1:
        return np.zeros(len(drawn), dtype=np.bool_)
    return np.asarray(drawn <= distinct[wanted - 1])
