"""The shape of a Llama, and the published sizes as rows of one table."""

from typing import Any, Self

from pydantic import Field, model_validator

from puna.core.config import Config
from puna.core.errors import UsageError

LLAMA3_VOCAB_SIZE = 128_256  # 128,000 merges + 256 special tokens


class RopeScaling(Config):
    """Llama 3.1's stretching of RoPE to contexts longer than the trained one."""

    factor: float = Field(ge=1)
    """Wavelengths above ``original_context / low_freq_factor`` are multiplied by this."""
    low_freq_factor: float = Field(default=1.0, gt=0)
    """Sets the longest wavelength that is still only partly stretched."""
    high_freq_factor: float = Field(default=4.0, gt=0)
    """Wavelengths below ``original_context / high_freq_factor`` are kept."""
    original_context: int = Field(default=8192, gt=0)
    """Context length of the original training, in tokens."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.high_freq_factor <= self.low_freq_factor:
            raise ValueError("high_freq_factor must be greater than low_freq_factor")
        return self


class LlamaConfig(Config):
    """Everything that fixes the function a Llama computes."""

    vocab_size: int = Field(default=LLAMA3_VOCAB_SIZE, gt=0)
    """Rows of the embedding and of the head."""
    dim: int = Field(gt=0)
    """Width of the residual stream."""
    n_layers: int = Field(gt=0)
    """Number of blocks."""
    n_heads: int = Field(gt=0)
    """Query heads."""
    n_kv_heads: int = Field(gt=0)
    """Key and value heads; each serves ``n_heads / n_kv_heads`` query heads."""
    ffn_dim: int = Field(gt=0)
    """Width inside the SwiGLU feed-forward."""
    head_dim: int = Field(default=0, ge=0)
    """Width of one head; 0 means ``dim / n_heads``."""
    norm_eps: float = Field(default=1e-5, gt=0)
    """Epsilon of RMSNorm."""
    rope_theta: float = Field(default=500_000.0, gt=0)
    """Base of the RoPE frequencies."""
    rope_scaling: RopeScaling | None = None
    """Llama 3.1's scaling, or none."""
    context: int = Field(default=8192, gt=0)
    """Longest sequence, in tokens."""
    tie_embeddings: bool = False
    """Whether the head is the embedding."""

    @model_validator(mode="before")
    @classmethod
    def _fill_head_dim(cls, values: Any) -> Any:
        if isinstance(values, dict) and not values.get("head_dim"):
            dim, heads = values.get("dim"), values.get("n_heads")
            if isinstance(dim, int) and isinstance(heads, int) and heads > 0:
                if dim % heads:
                    raise ValueError(f"dim {dim} is not a multiple of n_heads {heads}")
                values = {**values, "head_dim": dim // heads}
        return values

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}"
            )
        if self.head_dim % 2:
            raise ValueError(f"head_dim {self.head_dim} is odd: RoPE rotates pairs")
        return self

    def n_params(self) -> int:
        """Exact number of parameters; a tied head is counted once."""
        attention = self.dim * self.head_dim * (2 * self.n_heads + 2 * self.n_kv_heads)
        block = attention + 3 * self.dim * self.ffn_dim + 2 * self.dim
        embeddings = self.vocab_size * self.dim * (1 if self.tie_embeddings else 2)
        return embeddings + self.n_layers * block + self.dim

    def flops_per_token(self, context: int) -> float:
        """Training FLOPs (forward and backward) per token at a mean attended length.

        6 per weight that multiplies (the embedding look-up does not) plus attention's
        12 * layers * heads * head_dim per attended position ("PaLM", appendix B).
        """
        look_up = 0 if self.tie_embeddings else self.vocab_size * self.dim
        norms = (2 * self.n_layers + 1) * self.dim
        weights = self.n_params() - look_up - norms
        return 6 * weights + 12 * self.n_layers * self.n_heads * self.head_dim * context


_COLUMNS = ("n_layers", "dim", "n_heads", "n_kv_heads", "ffn_dim", "tie_embeddings")
_SIZES: dict[str, tuple[tuple[int, int, int, int, int, bool], float | None]] = {
    # name: (columns above, RoPE factor); "The Llama 3 Herd of Models" table 3 and the model cards
    "llama3.2-1b": ((16, 2048, 32, 8, 8192, True), 32),
    "llama3.2-3b": ((28, 3072, 24, 8, 8192, True), 32),
    "llama3-8b": ((32, 4096, 32, 8, 14336, False), None),
    "llama3.1-8b": ((32, 4096, 32, 8, 14336, False), 8),
    "llama3-70b": ((80, 8192, 64, 8, 28672, False), None),
    "llama3.1-70b": ((80, 8192, 64, 8, 28672, False), 8),
    "llama3.3-70b": ((80, 8192, 64, 8, 28672, False), 8),
    "llama3.1-405b": ((126, 16384, 128, 8, 53248, False), 8),
}
SIZES = tuple(_SIZES)


def published_size(name: str) -> str | None:
    """The size that a model's name stands for; None where it names none.

    ``meta-llama/Llama-3.1-8B-Instruct`` is ``llama3.1-8b``; a name that gives only the generation
    and a number, such as ``llama3-405b``, is the release that has it.
    """
    plain = name.rsplit("/", 1)[-1].lower().removeprefix("meta-").replace("llama-", "llama")
    for size in SIZES:
        if plain.startswith(size):
            return size
    family, _, number = plain.partition("-")
    alike = [size for size in SIZES if size.split("-")[1] == number.split("-")[0]]
    return alike[0] if family == "llama3" and alike else None


def llama_config(size: str, **changes: Any) -> LlamaConfig:
    """The configuration of a published size, e.g. ``llama_config("llama3.1-8b")``.

    ``changes`` replace fields (``vocab_size=32_000``). Raises `UsageError` for an unknown size.
    """
    if size not in _SIZES:
        raise UsageError(f"unknown model size '{size}': choose one of {', '.join(SIZES)}")
    row, factor = _SIZES[size]
    fields: dict[str, Any] = dict(zip(_COLUMNS, row, strict=True))
    if factor is not None:
        fields |= {"context": 131_072, "rope_scaling": {"factor": factor}}
    return LlamaConfig.parse(fields | changes, where=size)
