"""A user's own chats: JSONL with ``messages``, one conversation a line."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.core.errors import UsageError
from puna.core.random import stable_seed
from puna.tokenizer import Message


@dataclass(frozen=True)
class NamedChat:
    """A conversation to learn from.

    Attributes:
        name: where it is from, for messages to the user: ``"my.jsonl, line 3"``.
        messages: ends with the assistant's answer or not; only assistants' answers are trained.
    """

    name: str
    messages: tuple[Message, ...]


def read_chats(path: Path) -> list[NamedChat]:
    """Conversations of a JSONL file: ``{"messages": [{"role": ..., "content": ...}, ...]}``.

    Raises:
        UsageError: names the file, and the line of a broken record.
    """
    try:
        content = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise UsageError(f"no such file: {path}") from error
    except IsADirectoryError as error:
        raise UsageError(f"{path} is a folder: name a JSONL file") from error
    except UnicodeDecodeError as error:
        raise UsageError(f"{path} is not UTF-8 text (byte {error.start}): convert it") from error
    lines = enumerate(content.split("\n"), start=1)
    chats = [_chat(line, f"{path}, line {number}") for number, line in lines if line.strip()]
    if not chats:
        raise UsageError(f'{path} holds no chats: write one {{"messages": [...]}} a line')
    return chats


def _chat(line: str, where: str) -> NamedChat:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UsageError(f"{where}: not valid JSON: {error.msg}") from error
    return NamedChat(where, parse_messages(record, where))


def parse_messages(record: Any, where: str) -> tuple[Message, ...]:
    """The conversation of ``{"messages": [...]}``; raises `UsageError` naming ``where``."""
    messages = record.get("messages") if isinstance(record, dict) else None
    if not isinstance(messages, list) or not messages:
        raise UsageError(f'{where}: expected an object with a list in "messages"')
    return tuple(_message(message, where) for message in messages)


def _message(message: Any, where: str) -> Message:
    role = message.get("role") if isinstance(message, dict) else None
    content = message.get("content") if isinstance(message, dict) else None
    if not isinstance(role, str) or not isinstance(content, str):
        raise UsageError(f'{where}: each message needs a string in "role" and in "content"')
    return Message(role, content)


def split_chats(
    chats: list[NamedChat], fraction: float, seed: int
) -> tuple[list[NamedChat], list[NamedChat]]:
    """(training, held out): about ``fraction`` of the chats held out by a hash of their text.

    With two different chats or more, at least one stands on each side; equal chats stand together.
    """

    def drawn(messages: tuple[Message, ...]) -> int:
        return stable_seed(seed, "held out chat", *messages)

    distinct = sorted({chat.messages for chat in chats}, key=drawn)
    n_held_out = min(max(1, round(len(distinct) * fraction)), len(distinct) - 1)
    held_out = set(distinct[:n_held_out])
    return (
        [chat for chat in chats if chat.messages not in held_out],
        [chat for chat in chats if chat.messages in held_out],
    )
