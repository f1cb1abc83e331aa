"""The stage that tunes a model on chats, full or with an adapter."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from puna.alignment import ChatSource
from puna.alignment.rejection import SFT_ROWS
from puna.alignment.sft import Item
from puna.core.files import sha256_value
from puna.core.random import stream
from puna.core.wheels import WheelUnavailable
from puna.data import (
    Conversation,
    Document,
    NamedChat,
    read_chats,
    read_conversations,
    read_documents,
)
from puna.model import LoraConfig
from puna.pretraining import document_tokens
from puna.tokenizer import Message, Tokenizer
from puna.training import next_token
from puna.training.look import set_dtype
from puna.training.loop import compute_dtype
from puna.workflow.stages.chats import ChatStage, tuning_chats
from puna.workflow.stages.corpus import TRAIN, VALIDATION
from puna.workflow.stages.training import Given, adapt, open_base, sampled_files, train_and_save


class SFTStage(ChatStage):
    """Tuning on chats; only the answers are trained."""

    from_sample: bool = False
    """Whether the best answers of a round's sampling are learned from."""
    from_safety: bool = False
    """Whether the chats of stages.safety are learned from, refusals among them."""
    dialogue_repeats: int = Field(default=0, ge=0)
    """How often the human-written dialogues of the source ``dialogues-en`` are shown."""
    replay: float = Field(default=0.0, ge=0, lt=1)
    """Share of the tokens that are pretraining documents, against forgetting; needs stages.data."""
    lora: LoraConfig | None = None
    """Train an adapter instead of all weights."""

    @model_validator(mode="after")
    def _one_kind_of_share(self) -> Self:
        if (self.from_sample or self.from_safety) and any(file.weight for file in self.files):
            name = "from_sample" if self.from_sample else "from_safety"
            raise ValueError(f"{name} has no weight beside files that have one: drop theirs")
        return self

    def chats_beside_files(self) -> dict[str, bool]:
        """Also the dialogues, and what was sampled."""
        more = {"dialogue_repeats": self.dialogue_repeats > 0, "from_sample": self.from_sample}
        more["from_safety"] = self.from_safety
        return super().chats_beside_files() | more

    def needs(self) -> list[str]:
        """The corpus, to repeat its documents and not to show the held-out ones; best answers."""
        more = {"sample": self.from_sample, "safety": self.from_safety}
        return ["data", *(stage for stage, asked in more.items() if asked)]

    def circumstances(self) -> list[str]:
        """The dialogues, which are missing where their wheel cannot be had."""
        talks = conversations() if self.dialogue_repeats else []
        return [sha256_value([talk.key for talk in talks])]


def run_sft(config: SFTStage, given: Given, folder: Path) -> dict[str, Any]:
    """Tune the base model on chats, only the answers trained, and on replayed documents."""
    model, tokenizer = open_base(config, given, config.lora, config.loop.layout)
    replay = None
    best = sampled_files(given, SFT_ROWS) if config.from_sample else []
    best += sampled_files(given, SFT_ROWS, "safety") if config.from_safety else []
    sampled = [ChatSource(read_chats(path, "messages"), may_hold_out=True) for path in best]
    talks = _dialogues(tokenizer, config.row_length, given.data) if config.dialogue_repeats else []
    if config.replay and given.data:
        documents = read_documents(given.data / TRAIN)
        replay = partial(_replayed, tokenizer, documents, config.replay, given.seed)
    chats = tuning_chats(
        config, given, tokenizer, folder,
        sources=sampled, more=talks * config.dialogue_repeats, replay=replay,
    )  # fmt: skip
    adapt(model, config.lora, given)
    set_dtype(model, compute_dtype(config.loop, model.device))
    chats.first_look(model)
    facts = train_and_save(
        model, tokenizer, next_token, chats.source, config.loop, config.row_length, given.events,
        folder, after_step=chats.watch, base=given.base,
    )  # fmt: skip
    return facts | chats.facts | chats.held_out_facts(model)


def conversations() -> list[Conversation]:
    """The human-written conversations; none where their wheel cannot be had."""
    try:
        return read_conversations()
    except WheelUnavailable:
        return []


def _dialogues(tokenizer: Tokenizer, max_tokens: int, data: Path | None) -> list[NamedChat]:
    """The conversations that fit a row and that the validation text does not hold."""
    held_out = read_documents(data / VALIDATION) if data else []
    unseen = "\n".join(document.text for document in held_out)
    roles = ("user", "assistant")
    chats = [
        NamedChat(c.key, tuple(Message(roles[i % 2], turn) for i, turn in enumerate(c.turns)))
        for c in conversations()
        if not all(turn in unseen for turn in c.turns)
    ]
    return [c for c in chats if len(tokenizer.chat.encode(tokenizer, c.messages).ids) <= max_tokens]


def _replayed(
    tokenizer: Tokenizer, documents: Sequence[Document], share: float, seed: int, n_tokens: int
) -> Iterator[Item]:
    """Documents drawn by the seed, wholly trained, as a share of all tokens beside ``n_tokens``."""
    left = n_tokens * share / (1 - share)
    for place in stream(seed, "replay").permutation(len(documents)):
        if left <= 0:
            break
        ids = document_tokens(tokenizer, [documents[int(place)].text])[0]
        yield ids, [True] * len(ids)
        left -= len(ids)
