"""The recipe: one YAML file that says a model's whole life."""

from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from puna.alignment import DPOConfig, TooLong
from puna.core.config import Config, apply_overrides, load_yaml
from puna.core.errors import UsageError
from puna.data import ChatForm, CorpusConfig
from puna.data.generators import GeneratedText
from puna.data.generators.kinds import WEIGHTS
from puna.inference import Sampling
from puna.model import LlamaConfig, LoraConfig, llama_config
from puna.training import LoopConfig
from puna.workflow.track import Tracker

SEARCHED_PER_KIND = 200  # held-out questions looked for in the training text


class DataStage(Config):
    """Which text the model reads."""

    corpus: CorpusConfig
    """Sources, cleaning, deduplication, split."""
    generated: GeneratedText = GeneratedText()
    """Documents made by the generators."""


class TokenizerStage(Config):
    """The tokenizer trained on that text."""

    vocab_size: int = Field(ge=300)
    """Tokens in all, the special ones included."""
    digit_group: int = Field(default=3, ge=1, le=3)
    """Digits that may share a token; Llama 3 has 3, small models add better with 1."""
    n_special: int = Field(default=256, ge=10, le=256)
    """Special tokens, Llama 3's named ones first; the rest are reserved."""


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


class PretrainStage(Config):
    """Next-token training from fresh weights."""

    model: ModelShape
    """Shape of the model."""
    row_length: int = Field(ge=8)
    """Tokens in a packed row."""
    loop: LoopConfig
    """How it is optimised."""


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


class SFTStage(Config):
    """Tuning on chats; only the answers are trained."""

    base: str = ""
    """Model to start from; empty takes the stage before."""
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
    chat_format: Literal["auto", "llama3", "llama3.1", "llama3.2", "chatml"] = "auto"
    """How chats are written; ``auto`` takes what the model's folder says."""
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


class DPOStage(Config):
    """Preferences: make the better of two answers more likely."""

    generated_pairs: int = Field(default=0, ge=0)
    """Pairs made by the generators."""
    files: tuple[Path, ...] = ()
    """Preferences of your own: ``chosen`` and ``rejected``, with or without ``prompt``."""
    too_long: Literal["error", "drop"] = "error"
    """What becomes of a pair longer than a row."""
    row_length: int = Field(ge=8)
    """Longest conversation, in tokens."""
    dpo: DPOConfig = DPOConfig()
    """The method's own knobs."""
    loop: LoopConfig
    """How it is optimised."""

    @model_validator(mode="after")
    def _some_pairs(self) -> Self:
        if not (self.files or self.generated_pairs):
            raise ValueError("no pairs: set files or generated_pairs")
        return self


class EvaluateStage(Config):
    """What is measured before and after each stage."""

    questions_per_kind: int = Field(default=40, ge=1, le=SEARCHED_PER_KIND)
    """Held-out generated questions of each kind; these are looked for in the training text."""
    pairs: int = Field(default=300, ge=2)
    """Held-out preference pairs."""
    max_new_tokens: int = Field(default=48, ge=1)
    """Longest answer."""
    sample_prompts: tuple[str, ...] = ()
    """Beginnings for the model to continue, shown in the report."""
    sample_questions: tuple[str, ...] = ()
    """Questions shown with their answers in the report."""
    sampling: Sampling = Sampling(max_new_tokens=80, temperature=0.7, top_p=0.9)
    """How the samples are drawn; the scored answers are greedy."""


class Stages(Config):
    """The stages, in the order they run; leave one out and it is not run."""

    data: DataStage | None = None
    tokenizer: TokenizerStage | None = None
    pretrain: PretrainStage | None = None
    sft: SFTStage | None = None
    dpo: DPOStage | None = None
    evaluate: EvaluateStage | None = None

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.tokenizer and not self.data:
            raise ValueError("stages.tokenizer learns from text: add stages.data")
        if self.pretrain and not self.tokenizer:
            raise ValueError("stages.pretrain needs tokens: add stages.tokenizer and stages.data")
        if self.sft and not (self.pretrain or self.sft.base):
            raise ValueError("stages.sft has no model: set stages.sft.base or add stages.pretrain")
        if self.sft and self.sft.base and self.pretrain:
            raise ValueError("stages.sft.base and stages.pretrain both give a model: drop one")
        if self.sft and self.sft.replay and not self.data:
            raise ValueError("stages.sft.replay repeats documents: add stages.data")
        if self.dpo and not self.sft:
            raise ValueError("stages.dpo tunes the model of stages.sft: add it")
        return self


class Recipe(Config):
    """A run: its name, its seed, its stages."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the folder below ``runs/``."""
    seed: int = Field(default=0, ge=0)
    """Fixes everything drawn at random, order of the data included."""
    track: Tracker = "none"
    """Also report to ``wandb`` or ``tensorboard``."""
    kinds: dict[str, PositiveFloat] = WEIGHTS
    """How often the generators draw each kind of exercise; a kind not named is not drawn."""
    stages: Stages
    """What is done, in order."""


def load_recipe(path: Path, overrides: list[str]) -> Recipe:
    """Read and validate a recipe file with ``key=value`` overrides; raises `UsageError`."""
    return Recipe.parse(apply_overrides(load_yaml(path), overrides), where=str(path))


def find_recipe(name: str) -> Path:
    """Path of a recipe file, or of a shipped one by its name; raises `UsageError`."""
    path = Path(name)
    if path.exists():
        return path
    shipped = {item.stem: item for item in shipped_recipes()}
    if name in shipped:
        return shipped[name]
    raise UsageError(f"no such recipe: {name}: name a YAML file or one of {', '.join(shipped)}")


def shipped_recipes() -> list[Path]:
    """The recipes that come with Puna."""
    return sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
