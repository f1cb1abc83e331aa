"""A Llama out of a GGUF file: metadata to configuration, packed tensors to Hugging Face's names."""

import math
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from puna.core.errors import UsageError
from puna.formats.gguf_file import GgufFile
from puna.formats.gguf_tokenizer import write_tokenizer
from puna.formats.weights import Model, build_model, check_vocabulary
from puna.model.config import LlamaConfig, RopeScaling
from puna.model.rope import rope_frequencies
from puna.tokenizer import Tokenizer

ROPE_FACTORS = "rope_freqs.weight"
_OUTSIDE = {
    "token_embd.weight": "model.embed_tokens.weight",
    "output_norm.weight": "model.norm.weight",
    "output.weight": "lm_head.weight",
}
_IN_BLOCK = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}


def load_gguf(
    file: GgufFile, *, dtype: torch.dtype, device: torch.device | str, cls: type[Model]
) -> tuple[Model, Tokenizer]:
    """The model and tokenizer a GGUF file holds, its tensors dequantised.

    Raises `UsageError` for another architecture, or a tokenizer or tensor type not supported.
    """
    config = gguf_config(file)
    sources = {_hugging_face_name(name): name for name in file.tensors if name != ROPE_FACTORS}
    shapes = {name: file.tensors[source].shape for name, source in sources.items()}

    def read(name: str) -> Tensor:
        array = file.array(sources[name])
        if name.endswith("q_proj.weight"):
            array = _halves(array, config.n_heads)
        elif name.endswith("k_proj.weight"):
            array = _halves(array, config.n_kv_heads)
        return torch.from_numpy(np.require(array, requirements=["C", "W"]))

    tokenizer = gguf_tokenizer(file)
    check_vocabulary(tokenizer, config.vocab_size, file.name)
    model = build_model(cls, config, shapes, read, dtype=dtype, device=device, where=file.name)
    return model, tokenizer


def gguf_tokenizer(file: GgufFile) -> Tokenizer:
    """The tokenizer a GGUF file holds; raises `UsageError` for one not supported."""
    with tempfile.TemporaryDirectory(prefix="puna-") as folder:
        write_tokenizer(file, Path(folder))
        return Tokenizer.from_folder(Path(folder))


def gguf_config(file: GgufFile) -> LlamaConfig:
    """The configuration a GGUF file's metadata states; raises `UsageError` when it is no Llama."""
    _check_architecture(file)
    dim, heads = _number(file, "embedding_length"), _number(file, "attention.head_count")
    vocabulary = file.tensors.get("token_embd.weight")
    fields = {
        "vocab_size": vocabulary.shape[0] if vocabulary else _number(file, "vocab_size"),
        "dim": dim,
        "n_layers": _number(file, "block_count"),
        "n_heads": heads,
        "n_kv_heads": _number(file, "attention.head_count_kv", heads),
        "ffn_dim": _number(file, "feed_forward_length"),
        "head_dim": _number(file, "attention.key_length", 0),
        "norm_eps": _shortest(_number(file, "attention.layer_norm_rms_epsilon")),
        "rope_theta": _shortest(_number(file, "rope.freq_base", 10_000.0)),
        "context": _number(file, "context_length"),
        "tie_embeddings": "output.weight" not in file.tensors,
    }
    config = LlamaConfig.parse(fields, where=file.name)
    for key in ("rope.dimension_count", "attention.value_length"):
        if _number(file, key, config.head_dim) != config.head_dim:
            raise UsageError(f"{file.name}: llama.{key} differs from head_dim {config.head_dim}")
    if ROPE_FACTORS not in file.tensors:
        return config
    scaling = derive_scaling(config, file.array(ROPE_FACTORS), file.name)
    return config.model_copy(update={"rope_scaling": scaling})


def derive_scaling(config: LlamaConfig, factors: np.ndarray, where: str) -> RopeScaling | None:
    """The Llama 3.1 parameters that give these divisors of the RoPE frequencies.

    Args:
        config: the configuration without scaling.
        factors: divisor of each pair's frequency: (head_dim / 2,).
        where: begins the error.

    Only ratios of the original context to the two frequency factors matter to the function, so
    ``low_freq_factor`` is taken as 1, as in every published model. Raises `UsageError` when the
    divisors follow another rule or leave the parameters open.
    """
    if np.all(factors == 1):
        return None
    unscaled = rope_frequencies(config).double().numpy()
    candidates = [RopeScaling(factor=max(1.0, float(factors.max())))]
    candidates += _fitted_scaling(unscaled, factors)
    for scaling in candidates:
        scaled = rope_frequencies(config.model_copy(update={"rope_scaling": scaling})).numpy()
        # 1e-4: the divisors are fp32 numbers, and interpolation cancels a few of their digits
        if len(scaled) == len(factors) and np.allclose(unscaled / factors, scaled, rtol=1e-4):
            return scaling
    raise UsageError(
        f"{where}: {ROPE_FACTORS} follows no Llama 3.1 scaling: use the Hugging Face folder of "
        "this model"
    )


def _fitted_scaling(frequencies: np.ndarray, factors: np.ndarray) -> list[RopeScaling]:
    """Solve for context and high factor from the pairs that are partly stretched."""
    factor = float(factors.max())
    between = (factors > 1 + 1e-6) & (factors < factor * (1 - 1e-6))
    if len(factors) != len(frequencies) or between.sum() < 2:
        return []
    smooth = (1 / factors[between] - 1 / factor) / (1 - 1 / factor)
    # smooth = (context / wavelength - 1) / (high - 1), a line in 1 / wavelength
    slope, start = np.polyfit(frequencies[between] / (2 * math.pi), smooth, 1)
    if slope <= 0 or start >= 0:
        return []
    context, high = round(-slope / start), 1 - 1 / start
    return [RopeScaling(factor=factor, high_freq_factor=high, original_context=context)]


def _check_architecture(file: GgufFile) -> None:
    found = str(file.metadata.get("general.architecture"))
    if found != "llama":
        raise UsageError(f"{file.name}: architecture {found!r} is not supported: use a Llama")
    if _number(file, "expert_count", 0):
        raise UsageError(f"{file.name}: mixtures of experts are not supported: use a dense Llama")
    if str(file.metadata.get("split.count", 1)) not in ("0", "1"):
        raise UsageError(
            f"{file.name} is one part of a split model: join the parts with "
            "'llama-gguf-split --merge'"
        )
    scaling = str(file.metadata.get("llama.rope.scaling.type", "none"))
    if scaling != "none":
        raise UsageError(
            f"{file.name}: RoPE scaling {scaling!r} is not supported: only Llama 3.1's is"
        )


def _number(file: GgufFile, key: str, default: float | None = None) -> Any:
    value = file.metadata.get(f"llama.{key}", default)
    if not isinstance(value, int | float):
        problem = "is missing" if value is None else "is not a number"
        raise UsageError(f"{file.name}: the key llama.{key} {problem}: convert the model again")
    return value


def _shortest(value: float) -> float:
    """The decimal number an fp32 value was written from: 1e-5, not 9.999999747e-06."""
    return float(str(np.float32(value)))


def _hugging_face_name(name: str) -> str:
    """Hugging Face's name of a tensor; an unknown one is kept, to be named in the error."""
    if name in _OUTSIDE:
        return _OUTSIDE[name]
    match name.split("."):
        case ["blk", layer, part, "weight"] if part in _IN_BLOCK:
            return f"model.layers.{layer}.{_IN_BLOCK[part]}.weight"
    return name


def _halves(array: np.ndarray, n_heads: int) -> np.ndarray:
    """Rows of each head from GGUF's order (pair by pair) to half-split (firsts, then seconds)."""
    pairs = array.reshape(n_heads, -1, 2, array.shape[1])
    return pairs.swapaxes(1, 2).reshape(array.shape)
