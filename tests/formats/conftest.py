"""Tiny models and a tiny tokenizer, and a GGUF writer independent of the reader under test."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType

from puna.model.config import LlamaConfig
from puna.model.llama import Llama
from puna.tokenizer import Tokenizer

TEXTS = [
    "The llama grazes on the high grassland, 4,000 metres above the sea.",
    "In 2024 there were about 3,900,000 llamas; don't count them twice!",
    "Ein Lama frisst Gras. Une lama mange de l'herbe.\n\n\tdef f(x): return x",
]

_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


@pytest.fixture(scope="session")
def texts() -> list[str]:
    return TEXTS


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.train(TEXTS * 4, vocab_size=384, n_special=32)


@pytest.fixture
def tiny_llama(tokenizer: Tokenizer) -> Callable[..., Llama]:
    """Builds a Llama with random weights; arguments replace fields of its configuration."""

    def build(**changes: Any) -> Llama:
        fields: dict[str, Any] = {
            "vocab_size": tokenizer.vocab_size,
            "dim": 64,
            "n_layers": 2,
            "n_heads": 4,
            "n_kv_heads": 2,
            "ffn_dim": 96,
            "context": 512,
        }
        model = Llama(LlamaConfig.parse(fields | changes, where="test"))
        model.init_weights(seed=7)
        generator = torch.Generator().manual_seed(7)
        with torch.no_grad():  # norms of all ones would hide their being mixed up
            for name, parameter in model.named_parameters():
                if "norm" in name:
                    parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        return model.eval()

    return build


@pytest.fixture
def ids() -> torch.Tensor:
    return torch.randint(0, 300, (2, 40), generator=torch.Generator().manual_seed(3))


GgufWriter = Callable[..., Path]


@pytest.fixture
def write_gguf(tmp_path: Path, tokenizer: Tokenizer) -> GgufWriter:
    """Writes a Llama and a tokenizer as GGUF; ``metadata`` replaces, None removes a key."""

    def write(
        model: Llama,
        *,
        kind: GGMLQuantizationType = GGMLQuantizationType.F32,
        metadata: dict[str, Any] | None = None,
        tensors: dict[str, np.ndarray] | None = None,
    ) -> Path:
        path = tmp_path / "tiny.gguf"
        values = _llama_metadata(model.config) | _tokenizer_metadata(tokenizer, tmp_path)
        writer = gguf.GGUFWriter(path, "llama")
        for key, value in (values | (metadata or {})).items():
            if value is not None:
                _add_value(writer, key, value)
        for name, tensor in model.state_dict().items():
            array = _interleaved(name, tensor.numpy(), model.config)
            packed = kind if array.ndim == 2 else GGMLQuantizationType.F32
            writer.add_tensor(
                _gguf_name(name), gguf.quants.quantize(array, packed), raw_dtype=packed
            )
        for name, array in (tensors or {}).items():
            writer.add_tensor(name, array)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path

    return write


def _add_value(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    kind = gguf.GGUFValueType.get_type(value)
    sub = gguf.GGUFValueType.get_type(value[0]) if isinstance(value, list) else None
    writer.add_key_value(key, value, kind, sub_type=sub)


def _llama_metadata(config: LlamaConfig) -> dict[str, Any]:
    return {
        "llama.block_count": config.n_layers,
        "llama.context_length": config.context,
        "llama.embedding_length": config.dim,
        "llama.feed_forward_length": config.ffn_dim,
        "llama.attention.head_count": config.n_heads,
        "llama.attention.head_count_kv": config.n_kv_heads,
        "llama.attention.key_length": config.head_dim,
        "llama.attention.layer_norm_rms_epsilon": config.norm_eps,
        "llama.rope.freq_base": config.rope_theta,
        "llama.rope.dimension_count": config.head_dim,
    }


def _tokenizer_metadata(tokenizer: Tokenizer, folder: Path) -> dict[str, Any]:
    tokenizer.save(folder)
    saved = json.loads((folder / "tokenizer.json").read_text())
    config = json.loads((folder / "tokenizer_config.json").read_text())
    ids = dict(saved["model"]["vocab"])
    special = {token["content"]: token["id"] for token in saved["added_tokens"]}
    ids |= special
    tokens = sorted(ids, key=lambda token: ids[token])
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": "llama-bpe",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [3 if token in special else 1 for token in tokens],
        "tokenizer.ggml.merges": [
            merge if isinstance(merge, str) else " ".join(merge)
            for merge in saved["model"]["merges"]
        ],
        "tokenizer.ggml.bos_token_id": tokenizer.bos_id,
        "tokenizer.ggml.eos_token_id": tokenizer.eot_id,
        "tokenizer.ggml.padding_token_id": tokenizer.pad_id,
        "tokenizer.chat_template": config["chat_template"],
    }


def _gguf_name(name: str) -> str:
    stem = name.removesuffix(".weight")
    if not stem.startswith("model.layers."):
        return f"{_NAMES[stem]}.weight"
    _, _, layer, part = stem.split(".", 3)
    return f"blk.{layer}.{_NAMES[part]}.weight"


def _interleaved(name: str, array: np.ndarray, config: LlamaConfig) -> np.ndarray:
    """Rows of q and k as GGUF orders them: a head's row i, then its row i + head_dim / 2."""
    if not name.endswith(("q_proj.weight", "k_proj.weight")):
        return array
    half = config.head_dim // 2
    order = [
        head * config.head_dim + pair + side * half
        for head in range(array.shape[0] // config.head_dim)
        for pair in range(half)
        for side in (0, 1)
    ]
    return np.ascontiguousarray(array[order])
