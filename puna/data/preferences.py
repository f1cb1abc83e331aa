"""A user's own preferences: a conversation with a better and a worse last answer."""

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from puna.core.errors import UsageError
from puna.core.random import stable_seed
from puna.data.chats import parse_messages
from puna.data.records import Record, near_keys, read_records
from puna.tokenizer import Message

PAIR_ROWS = (
    'a row is {"prompt": "Hi", "chosen": "Hello!", "rejected": "What?"}, or whole conversations: '
    '{"chosen": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello!"}], '
    '"rejected": [...]}, or (HH-RLHF) {"chosen": "\\n\\nHuman: Hi\\n\\nAssistant: Hello!", '
    '"rejected": "..."}'
)
"""A row of each form, for messages about data without one."""
_SPEAKERS = {"Human": "user", "Assistant": "assistant"}
_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


@dataclass(frozen=True)
class NamedPair:
    """Two answers to one prompt.

    Attributes:
        name: where it is from, for messages to the user.
        prompt: the conversation before the answer.
        chosen: the better answer.
        rejected: the worse one.
    """

    name: str
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str

    def drawn(self, seed: int) -> int:
        """A number that this prompt always gets: pairs of one prompt stand on one side."""
        return stable_seed(seed, "held out pair", *self.prompt)


class UnfitPair(UsageError):
    """A row that is well written but says no preference between two answers to one prompt."""


def read_pairs(path: Path, unfit: Callable[[UnfitPair], None] | None = None) -> Iterator[NamedPair]:
    """Pairs of a file or folder that `read_records` reads: ``chosen`` and ``rejected``.

    Each is an answer to ``prompt`` (a text or messages), or a whole conversation: messages, or a
    dialogue as HH-RLHF writes it (``\\n\\nHuman: ... \\n\\nAssistant: ...``). Of two conversations
    what they share is the prompt.

    Args:
        unfit: called with what is wrong with a row whose answers are equal, or which differs
            before the last answer; the row is left out. By default it is an error.

    Raises `UsageError` naming the file, and the line or row of what is wrong.
    """
    for record in read_records(path, PAIR_ROWS):
        try:
            yield _pair(record)
        except UnfitPair as error:
            if unfit is None:
                raise
            unfit(error)


def _pair(record: Record) -> NamedPair:
    where = record.where
    if not {"chosen", "rejected"} <= record.fields.keys():
        keys = near_keys(record.fields, ("prompt", "chosen", "rejected"))
        raise UsageError(f"{where}: no pair of answers ({keys}): {PAIR_ROWS}")
    opening = _opening(record)
    chosen, rejected = (_whole(record, key, opening) for key in ("chosen", "rejected"))
    if chosen[:-1] != rejected[:-1]:
        raise UnfitPair(f"{where}: chosen and rejected differ before their last answer")
    if {chosen[-1].role, rejected[-1].role} != {"assistant"}:
        raise UnfitPair(f"{where}: chosen and rejected must end with an assistant's answer")
    if chosen[-1].content.strip() == rejected[-1].content.strip():
        raise UnfitPair(f"{where}: chosen and rejected are equal: a pair must differ")
    return NamedPair(where, chosen[:-1], chosen[-1].content, rejected[-1].content)


def _opening(record: Record) -> tuple[Message, ...]:
    prompt = record.fields.get("prompt")
    if prompt is None:
        return ()
    if isinstance(prompt, str):
        return _dialogue(prompt) or (Message("user", prompt),)
    return parse_messages(record.fields, record.where, "prompt")


def _whole(record: Record, key: str, opening: tuple[Message, ...]) -> tuple[Message, ...]:
    """The conversation up to the answer ``key``."""
    given, where = record.fields.get(key), record.where
    if isinstance(given, list):
        messages = parse_messages(record.fields, where, key)
        # Some sets repeat the prompt in both conversations.
        return messages if messages[: len(opening)] == opening else (*opening, *messages)
    if not isinstance(given, str):
        raise UsageError(f'{where}: expected a text or messages in "chosen" and "rejected"')
    if opening:
        return (*opening, Message("assistant", given))
    dialogue = _dialogue(given)
    if len(dialogue) < 2:
        raise UsageError(f'{where}: a pair of answers needs a "prompt", a text or messages')
    return dialogue


def _dialogue(text: str) -> tuple[Message, ...]:
    """The turns of a dialogue in HH-RLHF's form; none where the text has another."""
    parts = _TURN.split(text)
    if parts[0].strip():
        return ()
    turns = zip(parts[1::2], parts[2::2], strict=True)
    return tuple(Message(_SPEAKERS[speaker], said.strip()) for speaker, said in turns)
