"""The training mask of a conversation in colour, for eyes that check a template."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby, pairwise

from rich.text import Text

from puna.tokenizer.chat import ChatTokens
from puna.tokenizer.tokenizer import Tokenizer

STYLES = {
    "answer, trained": "black on green",
    "end of turn, trained": "black on yellow",
    "text, not trained": "default",
    "special token, not trained": "bright_black",
}


@dataclass(frozen=True)
class MessageCount:
    """Tokens of one message, its header included."""

    role: str
    tokens: int
    trained: int


@dataclass(frozen=True)
class MaskView:
    """What to print: the conversation, what the colours mean, and the figures."""

    text: Text
    legend: Text
    counts: list[MessageCount]


def show_mask(tokenizer: Tokenizer, chat: ChatTokens) -> MaskView:
    """Colour ``chat`` by its mask; control characters are spelled out, never sent to a terminal."""
    text = Text()
    kinds = [_kind(tokenizer, chat, at) for at in range(len(chat.ids))]
    for kind, run in groupby(range(len(kinds)), key=lambda at: kinds[at]):
        decoded = tokenizer.decode([chat.ids[at] for at in run])
        text.append(_visible(decoded), style=STYLES[kind])
    legend = Text("  ").join(Text(f" {kind} ", style=style) for kind, style in STYLES.items())
    return MaskView(text, legend, list(_count(tokenizer, chat)))


def _kind(tokenizer: Tokenizer, chat: ChatTokens, at: int) -> str:
    if chat.trained[at]:
        return "answer, trained" if chat.content[at] else "end of turn, trained"
    special = chat.ids[at] in tokenizer.special_ids
    return "special token, not trained" if special else "text, not trained"


def _visible(text: str) -> str:
    return "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)


def _count(tokenizer: Tokenizer, chat: ChatTokens) -> Iterator[MessageCount]:
    header = tokenizer.special_id(tokenizer.chat.header[0])
    starts = [at for at, id in enumerate(chat.ids) if id == header]
    for start, end in pairwise([*starts, len(chat.ids)]):
        plain = tokenizer.decode(chat.ids[start:end], skip_special=True)
        yield MessageCount(plain.split("\n")[0], end - start, sum(chat.trained[start:end]))
