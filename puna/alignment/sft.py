"""Supervised fine-tuning: chats as packed rows in which only the answers are trained.

The objective is the one of pretraining (`puna.training.next_token`); what differs is the mask.
"""

from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np

from puna.core.errors import UsageError
from puna.data import Group, NamedChat, TokenFile, held_out, write_tokens
from puna.data.tokens import Ints
from puna.tokenizer import Message, Tokenizer

TooLong = Literal["error", "cut", "drop"]
"""What becomes of a chat that is longer than a row."""
Item = tuple[list[int], list[bool]]
_KEPT_TO_SHOW = 256  # of the first chats, for samples of the model's answers


def encode_chat(
    tokenizer: Tokenizer, chat: NamedChat, max_tokens: int, too_long: TooLong = "error"
) -> Item | None:
    """Tokens of a chat and which of them are trained; None where ``too_long`` leaves it out.

    A chat that is cut keeps its beginning, and is left out when nothing of it would be trained.

    Raises `UsageError` naming the chat when nothing in it is trained or it exceeds ``max_tokens``.
    """
    try:
        tokens = tokenizer.chat.encode(
            tokenizer, chat.messages, tools=chat.tools, builtin_tools=chat.builtin_tools
        )
    except UsageError as error:
        raise UsageError(f"{chat.name}: {error}") from error
    if not any(tokens.trained):
        raise UsageError(
            f"{chat.name}: no token is trained: add an assistant's message, or train one"
        )
    if len(tokens.ids) > max_tokens:
        if too_long == "error":
            raise UsageError(
                f"{chat.name}: {len(tokens.ids)} tokens exceed the row length of {max_tokens}: "
                "raise row_length, or set too_long to cut or drop"
            )
        if too_long == "drop" or not any(tokens.trained[:max_tokens]):
            return None
    return tokens.ids[:max_tokens], tokens.trained[:max_tokens]


@dataclass(frozen=True)
class ChatSource:
    """Chats that are mixed as one."""

    chats: Iterable[NamedChat]
    weight: float | None = None
    """Share of the tokens against the other sources with a weight; None: each chat once a pass."""
    may_hold_out: bool = False
    """Whether some of them are held out."""


@dataclass
class ChatCounts:
    """What was met while chats were encoded."""

    chats: int = 0
    tokens: int = 0
    trained_tokens: int = 0
    trained_ends: int = 0
    """Ends of turn that are trained."""
    cut: int = 0
    """Chats of which only the beginning fits a row."""
    dropped: int = 0
    """Chats left out, being longer than a row."""


@dataclass(frozen=True)
class ChatSet:
    """All chats of a tuning as one token file, and which of them is for what."""

    tokens: TokenFile
    groups: list[Group]
    """What is trained: the items of each source, then the replayed documents."""
    held_out: Ints
    """The items that are kept for validation."""
    counts: ChatCounts
    questions: list[tuple[Message, ...]]
    """Conversations without their last answer, held out where there are such."""


def write_chats(
    folder: Path,
    tokenizer: Tokenizer,
    sources: Sequence[ChatSource],
    *,
    row_length: int,
    seed: int,
    too_long: TooLong = "error",
    held_out_fraction: float = 0.05,
    replay: Callable[[int], Iterable[Item]] | None = None,
) -> ChatSet:
    """Encode chats into a token file, one at a time, so that they may exceed memory.

    Args:
        folder: of the token file.
        seed: of which chats are held out.
        held_out_fraction: of the sources that may hold out, by their text.
        replay: given the chats' number of tokens, gives items that are trained besides.

    Raises `UsageError` naming the chat that cannot be learned from.
    """
    writer = _Writer(tokenizer, row_length, seed, too_long)
    tokens = write_tokens(folder, writer.items(sources, replay), tokenizer.vocab_size)
    source_of, drawn = (
        np.frombuffer(writer.source_of, np.int64),
        np.frombuffer(writer.drawn, np.int64),
    )
    candidates = np.flatnonzero(np.isin(source_of, _holding(sources)))
    aside = candidates[held_out(drawn[candidates], held_out_fraction)]
    kept = np.setdiff1d(np.arange(len(source_of)), aside)
    groups = [
        Group(kept[source_of[kept] == number], source.weight)
        for number, source in enumerate([*sources, ChatSource(())])
    ]
    return ChatSet(tokens, groups, aside, writer.counts, writer.questions(set(aside.tolist())))


def _holding(sources: Sequence[ChatSource]) -> list[int]:
    return [number for number, source in enumerate(sources) if source.may_hold_out]


@dataclass
class _Writer:
    """Encodes chats and remembers of each only two numbers."""

    tokenizer: Tokenizer
    row_length: int
    seed: int
    too_long: TooLong
    counts: ChatCounts = field(default_factory=ChatCounts)
    source_of: "array[int]" = field(default_factory=lambda: array("q"))
    drawn: "array[int]" = field(default_factory=lambda: array("q"))
    first: dict[int, tuple[Message, ...]] = field(default_factory=dict)

    def items(
        self, sources: Sequence[ChatSource], replay: Callable[[int], Iterable[Item]] | None
    ) -> Iterator[Item]:
        for number, source in enumerate(sources):
            for chat in source.chats:
                item = encode_chat(self.tokenizer, chat, self.row_length, self.too_long)
                if item is None:
                    self.counts.dropped += 1
                    continue
                self._count(chat, item)
                self._note(number, chat.drawn(self.seed))
                yield item
        if not self.counts.chats:
            raise UsageError(f"no chat fits a row of {self.row_length} tokens: raise row_length")
        for item in replay(self.counts.tokens) if replay else ():
            self._note(len(sources), 0)
            yield item

    def _note(self, source: int, drawn: int) -> None:
        self.source_of.append(source)
        self.drawn.append(drawn)

    def _count(self, chat: NamedChat, item: Item) -> None:
        ids, trained = np.asarray(item[0]), np.asarray(item[1])
        counts = self.counts
        if len(self.first) < _KEPT_TO_SHOW and chat.messages[-1].role == "assistant":
            self.first[len(self.drawn)] = chat.messages[:-1]
        counts.chats += 1
        counts.tokens += len(ids)
        counts.trained_tokens += int(trained.sum())
        counts.trained_ends += int((trained & (ids == self.tokenizer.eot_id)).sum())
        # A whole chat closes its last turn; one that was cut does not.
        counts.cut += len(ids) == self.row_length and not self._ends(ids)

    def _ends(self, ids: Ints) -> bool:
        closing = len(self.tokenizer.encode(self.tokenizer.chat.separator)) + 1
        return int(ids[-closing]) in self.tokenizer.stop_ids

    def questions(self, aside: set[int]) -> list[tuple[Message, ...]]:
        """Openings of the held-out chats among the first ones; of any where none is held out."""
        openings = {at: messages for at, messages in self.first.items() if messages}
        unseen = [messages for at, messages in openings.items() if at in aside]
        return unseen or list(openings.values())
