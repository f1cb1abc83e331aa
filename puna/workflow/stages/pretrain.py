"""The stage that trains fresh weights on the corpus, and what any stage that reads it shares."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

from pydantic import Field, model_validator

from puna.core.config import Config
from puna.core.devices import default_device
from puna.core.events import EventLog
from puna.core.random import stable_seed
from puna.data import PackedRows, TokenFile, read_documents
from puna.formats.average import average_models
from puna.model import Llama, LlamaConfig, llama_config
from puna.parallel import here
from puna.parallel.build import fresh_spread
from puna.pretraining import encode_documents
from puna.pretraining.curriculum import CurriculumRun, Texts
from puna.pretraining.recipe import Curriculum
from puna.tokenizer import Tokenizer
from puna.training import LoopConfig, RowSource, next_token
from puna.workflow.stage import SCRATCH
from puna.workflow.stages.corpus import TRAIN, VALIDATION
from puna.workflow.stages.training import leave_model, train_and_save


class ModelShape(Config):
    """A published size, or the shape itself."""

    size: str = ""
    """A published size such as ``llama3.2-1b``; empty when the shape is given below."""
    dim: int = Field(default=0, ge=0)
    """Width of the residual stream."""
    n_layers: int = Field(default=0, ge=0)
    """Number of blocks."""
    n_heads: int = Field(default=0, ge=0)
    """Query heads."""
    n_kv_heads: int = Field(default=0, ge=0)
    """Key and value heads."""
    ffn_dim: int = Field(default=0, ge=0)
    """Width inside the feed-forward."""
    tie_embeddings: bool = True
    """Whether the head is the embedding; a published size brings its own."""
    rope_theta: float = Field(default=0.0, ge=0)
    """Base of RoPE; 0 takes Llama 3's 500,000."""
    context: int = Field(default=0, ge=0)
    """Longest sequence; 0 takes the size's own, or 8,192."""

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        shape = (self.dim, self.n_layers, self.n_heads, self.n_kv_heads, self.ffn_dim)
        if self.size and any(shape):
            raise ValueError("give either size or dim, n_layers, n_heads, n_kv_heads, ffn_dim")
        if not self.size and not all(shape):
            raise ValueError("give size, or all of dim, n_layers, n_heads, n_kv_heads, ffn_dim")
        return self

    def build(self, vocab_size: int) -> LlamaConfig:
        """The model's configuration for a vocabulary."""
        optional = {"rope_theta": self.rope_theta, "context": self.context}
        changes: dict[str, Any] = {k: v for k, v in optional.items() if v}
        changes["vocab_size"] = vocab_size
        if self.size:
            return llama_config(self.size, **changes)
        names = ("dim", "n_layers", "n_heads", "n_kv_heads", "ffn_dim", "tie_embeddings")
        shape = {name: getattr(self, name) for name in names}
        return LlamaConfig.parse(shape | changes, where="stages.pretrain.model")


class CorpusTraining(Config):
    """Next-token training on the corpus."""

    row_length: int = Field(ge=8)
    """Tokens in a packed row."""
    loop: LoopConfig
    """How it is optimised."""
    curriculum: Curriculum | None = None
    """Ramps, mixes, long context and anneal in place of one batch size, length and mix. With it
    ``loop.steps`` is the cosine's length; ``row_length`` and ``loop.batch_rows`` are not used."""


class PretrainStage(CorpusTraining):
    """Next-token training from fresh weights."""

    model: ModelShape
    """Shape of the model."""


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
    if config.loop.layout.only_replicas:
        model, tokenizer = fresh_model(config, seed, tokenizer_folder)
    else:
        tokenizer = Tokenizer.from_folder(tokenizer_folder)
        shape = config.model.build(tokenizer.vocab_size)
        model = fresh_spread(shape, config.loop.layout, stable_seed(seed, "init"))
    return train_on_corpus(config, seed, data, model, tokenizer, events, folder)


def train_on_corpus(
    config: CorpusTraining, seed: int, data: Path, model: Llama, tokenizer: Tokenizer,
    events: EventLog, folder: Path, base: str | Path = "",
    trained: Callable[[], None] = lambda: None,
) -> dict[str, Any]:  # fmt: skip
    """Train a model on the documents of ``data`` and leave it.

    ``base``, empty for fresh weights, and ``trained`` as in `train_and_save`.
    """
    if config.curriculum is not None:
        return _run_curriculum(
            config, config.curriculum, seed, data, model, tokenizer, events, folder, base, trained
        )
    kept = folder / SCRATCH / "tokens"
    tokens, tokens_of = here().on_first(
        lambda: encode_documents(tokenizer, read_documents(data / TRAIN), kept)
    )
    rows = PackedRows(tokens, config.row_length)
    epochs = config.loop.steps * config.loop.batch_rows / len(rows)
    events.emit(
        "note",
        text=f"{model.config.n_params():,} parameters, {sum(tokens_of.values()):,} tokens in "
        f"{len(rows):,} rows, {epochs:.2f} epochs",
    )
    source = RowSource(rows, seed, config.loop)
    facts = train_and_save(
        model, tokenizer, next_token, source, config.loop, config.row_length, events, folder,
        base=base, trained=trained,
    )  # fmt: skip
    return facts | {"tokens_by_source": tokens_of, "epochs": round(epochs, 3)}


def _run_curriculum(
    config: CorpusTraining, curriculum: Curriculum, seed: int, data: Path, model: Llama,
    tokenizer: Tokenizer, events: EventLog, folder: Path, base: str | Path,
    trained: Callable[[], None],
) -> dict[str, Any]:  # fmt: skip
    """Train phase after phase; leaves the average of the anneal where it has one."""
    scratch, mesh = folder / SCRATCH, here()

    def encoded(name: str) -> tuple[TokenFile, list[str]]:
        documents = read_documents(data / name)
        tokens, _ = encode_documents(tokenizer, documents, scratch / f"tokens-{Path(name).stem}")
        return tokens, [document.source for document in documents]

    tokens, sources = mesh.on_first(lambda: encoded(TRAIN))
    held_out, _ = mesh.on_first(lambda: encoded(VALIDATION))
    shared = mesh.on_first(lambda: scratch)
    run = CurriculumRun(
        curriculum, config.loop, Texts(tokens, sources, held_out), seed, shared, events,
        folder.name, keeps_reach=bool(base),
    )  # fmt: skip
    progress = run.run(model, tokenizer)
    trained()
    models = run.averaged()
    if len(models) > 1:
        facts = leave_model(
            model, tokenizer, progress, events, folder,
            save=lambda target, _model, _tokenizer: average_models(models, target),
        )  # fmt: skip
    else:
        facts = leave_model(model, tokenizer, progress, events, folder)
    return facts | run.facts() | {"averaged": len(models)}
