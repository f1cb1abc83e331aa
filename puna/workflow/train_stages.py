"""The stages that train: pretraining, instruction tuning, preferences.

Each leaves ``model/``, a Hugging Face folder, and keeps checkpoints below `SCRATCH` until it ends.
"""

from pathlib import Path
from typing import Any

from puna.alignment import (
    Comparison,
    DPOObjective,
    PairRows,
    encode_pair,
    reference_logprobs,
)
from puna.core.devices import default_device
from puna.core.errors import UsageError
from puna.core.events import EventLog
from puna.core.random import stable_seed
from puna.data import NamedPair, PackedRows, read_documents, read_pairs
from puna.data.generators import generate_pairs
from puna.formats import load_model, save_model
from puna.formats.peft import save_adapter
from puna.model import Llama, merge
from puna.model.lora import lora_layers
from puna.pretraining import encode_documents
from puna.tokenizer import Tokenizer
from puna.training import LoopConfig, RowSource, next_token, train
from puna.training.loop import AfterStep, Objective, Source, compute_dtype
from puna.workflow.corpus_stages import TRAIN, Exercises
from puna.workflow.recipe import DPOStage, PretrainStage
from puna.workflow.stage import SCRATCH

ADAPTER = "adapter"  # below a stage's folder: what LoRA trained, as PEFT writes it


def train_and_save(
    model: Llama,
    tokenizer: Tokenizer,
    objective: Objective,
    source: Source,
    loop: LoopConfig,
    row_length: int,
    events: EventLog,
    folder: Path,
    *,
    after_step: AfterStep | None = None,
    base: str | Path = "",
) -> dict[str, Any]:
    """Train and leave ``model/``; of a model with an adapter also ``adapter/``, then merged.

    Args:
        row_length: tokens a token may attend to, for the FLOP count.
        after_step: see `train`.
        base: what an adapter changes.
    """
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
        after_step=after_step,
    )
    merged = _merge_adapter(model, folder, str(base), events) if _has_adapter(model) else {}
    save_model(folder / "model", model, tokenizer)
    return {
        "steps": progress.step,
        "tokens": progress.tokens,
        "train_seconds": round(progress.seconds, 2),
        "tokens_per_s": round(progress.tokens / progress.seconds, 1),
        "parameters": model.config.n_params(),
        **merged,
    }


def _has_adapter(model: Llama) -> bool:
    return any(True for _ in lora_layers(model))


def _merge_adapter(model: Llama, folder: Path, base: str, events: EventLog) -> dict[str, Any]:
    """Keep the adapter in a folder of its own, and add it to the weights."""
    save_adapter(folder / ADAPTER, model, base)
    report = merge(model)
    events.emit("note", text=str(report))
    worst = report.worst
    return {"merge_error": worst.relative, "merge_error_of_change": worst.of_change}


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
    facts = train_and_save(
        model, tokenizer, next_token, source, config.loop, config.row_length, events, folder
    )
    return facts | {"tokens_by_source": tokens_of, "epochs": round(epochs, 3)}


def run_dpo(
    config: DPOStage, seed: int, base: Path, drawn: Exercises, events: EventLog,
    folder: Path,
) -> dict[str, Any]:  # fmt: skip
    """Teach preferences; the model it starts from is the frozen reference."""
    model, tokenizer = load_model(base, device=default_device())
    pairs = _pairs(config, seed, drawn, tokenizer, events)
    model.compute_dtype = compute_dtype(config.loop, model.device)
    reference = reference_logprobs(model, pairs, folder / SCRATCH)
    events.emit("note", text=f"{len(pairs):,} pairs, reference log-probabilities kept")
    source = RowSource(
        PairRows(pairs, reference, config.dpo), stable_seed(seed, "dpo"), config.loop
    )
    facts = train_and_save(
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


def _pairs(
    config: DPOStage, seed: int, drawn: Exercises, tokenizer: Tokenizer, events: EventLog
) -> list[Comparison]:
    """Pairs of the generators and of the user's files, as tokens."""
    made = generate_pairs(
        seed, config.generated_pairs, drawn.countries, drawn.kinds, held_out=False
    )
    named = [NamedPair(f"pair {i}", p.prompt, p.chosen, p.rejected) for i, p in enumerate(made)]
    unfit: list[UsageError] = []
    for path in config.files:
        named += read_pairs(path, unfit.append)
    if unfit:
        text = f"{len(unfit):,} pairs are left out, the first: {unfit[0]}"
        events.emit("warning", text=text)
    encoded, too_long = [], 0
    for pair in named:
        sides = (pair.prompt, pair.chosen, pair.rejected)
        try:
            encoded.append(encode_pair(tokenizer, *sides, config.row_length, pair.name))
        except UsageError:
            if config.too_long == "error":
                raise
            too_long += 1
    if too_long:
        text = f"{too_long:,} pairs are left out: longer than {config.row_length} tokens"
        events.emit("warning", text=text)
    if not encoded:
        raise UsageError("no pair is left to learn from: raise row_length or give more")
    return encoded
