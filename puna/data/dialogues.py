"""Short conversations, as turns for tuning and as text for pretraining."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

import yaml

from puna.core.wheels import Wheel, list_members, read_member
from puna.data.document import Document, Source

DIALOGUES = Wheel(
    "chatterbot-corpus",
    "1.3.3",
    "86de5300afb9a80826386339d3bec79c0a72eb0358abb8327e2ecef5ae0ce154",
)
FOLDER = "chatterbot_corpus/data/english/"
DOCUMENT_CHARS = 1_500  # an exchange has about 100 characters: too little to be a document

# In these topics what follows the first turn is a list of answers to it, not a conversation.
_ALTERNATIVES = frozenset({"computers", "emotion"})
# Its programs lost their indices: "arr[i], arr = arr, arr[i]".
_BROKEN = frozenset({"coding"})


@dataclass(frozen=True)
class Conversation:
    """Turns that alternate between a user, who begins, and an assistant, who ends.

    Attributes:
        key: unique among the conversations, e.g. ``"science/12"``.
        turns: an even number of texts.
    """

    key: str
    turns: tuple[str, ...]

    @property
    def topic(self) -> str:
        """E.g. ``"science"``."""
        return self.key.partition("/")[0]


def read_conversations() -> list[Conversation]:
    """The English conversations, by topic, each once; raises `WheelUnavailable`.

    The topic ``coding`` is left out (its programs are damaged), as is a last turn of the user
    that nobody answers.
    """
    found: dict[tuple[str, ...], Conversation] = {}
    for member in list_members(DIALOGUES):
        topic = PurePosixPath(member).stem
        if member.startswith(FOLDER) and topic not in _BROKEN:
            listed = yaml.load(read_member(DIALOGUES, member), yaml.CSafeLoader)["conversations"]
            exchanges = [turns for turns in listed if isinstance(turns, list)]
            pairs = (pair for turns in exchanges for pair in _as_dialogues(topic, turns))
            for number, turns in enumerate(pairs):
                found.setdefault(turns, Conversation(f"{topic}/{number}", turns))
    return list(found.values())


def _as_dialogues(topic: str, turns: list[object]) -> Iterator[tuple[str, ...]]:
    said = tuple(" ".join(str(turn).split(" ")).strip() for turn in turns)
    if topic in _ALTERNATIVES:
        yield from ((said[0], answer) for answer in said[1:])
    else:
        yield said[: len(said) // 2 * 2]


def dialogue_text(turns: tuple[str, ...]) -> str:
    """Turns as a written dialogue, one speaker a line."""
    speakers = ("User", "Assistant")
    return "\n".join(f"{speakers[i % 2]}: {turn}" for i, turn in enumerate(turns))


def read_dialogues(source: Source) -> list[Document]:
    """Conversations of one topic, gathered into documents of about `DOCUMENT_CHARS`."""
    documents: list[Document] = []
    gathered: list[str] = []
    conversations = read_conversations()
    following = [*(c.topic for c in conversations[1:]), None]
    for conversation, next_topic in zip(conversations, following, strict=True):
        gathered.append(dialogue_text(conversation.turns))
        if sum(map(len, gathered)) >= DOCUMENT_CHARS or next_topic != conversation.topic:
            documents.append(Document("\n\n".join(gathered), source.name, conversation.key))
            gathered = []
    return documents
