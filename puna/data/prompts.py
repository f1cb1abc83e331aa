"""A user's own prompts: conversations that wait for an answer, and what it will be judged by."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from puna.core.errors import UsageError
from puna.core.random import stable_seed
from puna.data.chats import parse_messages
from puna.data.records import Record, near_keys, read_records
from puna.tokenizer import Message

PROMPT_ROWS = (
    'a row is {"question": "2 + 2?", "answer": "4"}, or {"prompt": "Greet me"}, or {"messages": '
    '[{"role": "user", "content": "Hi"}]}; other keys are for your function'
)
"""A row of each form, for messages about data without one."""
_KEYS = ("messages", "prompt", "question")


@dataclass(frozen=True)
class NamedPrompt:
    """A conversation to be answered.

    Attributes:
        name: where it is from, for messages to the user: ``"my.jsonl, line 3"``.
        messages: ends with the user's turn.
        record: the row it is from, which a scoring function is given with each answer.
    """

    name: str
    messages: tuple[Message, ...]
    record: Mapping[str, Any]

    def drawn(self, seed: int) -> int:
        """A number that these messages always get from ``seed``: equal ones stand on one side."""
        return stable_seed(seed, "held out prompt", *self.messages)


def read_prompts(path: Path) -> Iterator[NamedPrompt]:
    """Prompts of a file or folder that `read_records` reads.

    A row holds ``messages`` that end with the user's turn, or ``prompt`` (a text or messages), or
    ``question`` (a text); its other fields are for the scoring function.

    Raises `UsageError` naming the file, and the line or row of what is wrong.
    """
    for record in read_records(path, PROMPT_ROWS):
        yield NamedPrompt(record.where, _messages(record), record.fields)


def _messages(record: Record) -> tuple[Message, ...]:
    where, fields = record.where, record.fields
    key = next((key for key in _KEYS if key in fields), None)
    if key is None:
        raise UsageError(f"{where}: no prompt ({near_keys(fields, _KEYS)}): {PROMPT_ROWS}")
    given = fields[key]
    if isinstance(given, str) and key != "messages":
        if not given.strip():
            raise UsageError(f'{where}: "{key}" is empty: give what the user asks')
        return (Message("user", given),)
    messages = parse_messages(fields, where, key)
    if messages[-1].role not in ("user", "tool", "ipython"):
        raise UsageError(
            f'{where}: "{key}" ends with a turn of {messages[-1].role}: end it with the user\'s '
            "turn, the model answers that"
        )
    return messages
