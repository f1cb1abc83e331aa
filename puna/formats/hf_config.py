"""``config.json`` of Hugging Face's Llama, to `LlamaConfig` and back."""

import json
from pathlib import Path
from typing import Any

from puna.core.errors import UsageError
from puna.model.config import LlamaConfig, RopeScaling
from puna.model.llama import Llama

CONFIG = "config.json"
_REQUIRED = {
    "vocab_size": "vocab_size",
    "hidden_size": "dim",
    "num_hidden_layers": "n_layers",
    "num_attention_heads": "n_heads",
    "intermediate_size": "ffn_dim",
}
_OPTIONAL: dict[str, tuple[str, Any]] = {  # with the defaults of transformers' LlamaConfig
    "num_key_value_heads": ("n_kv_heads", None),
    "head_dim": ("head_dim", 0),
    "rms_norm_eps": ("norm_eps", 1e-6),
    "max_position_embeddings": ("context", 2048),
    "tie_word_embeddings": ("tie_embeddings", False),
}
_DEFAULT_THETA = 10_000.0
_ONLY_VALUE: dict[str, Any] = {  # keys that change the function: what Puna's Llama computes
    "hidden_act": "silu",
    "attention_bias": False,
    "mlp_bias": False,
    "quantization_config": None,
}


def load_config(folder: Path, architecture: str = Llama.architecture) -> LlamaConfig:
    """The configuration of the Hugging Face model folder ``folder``.

    Reads both ways of writing RoPE: ``rope_theta`` with ``rope_scaling`` (transformers 4), and
    ``rope_parameters`` (transformers 5). Raises `UsageError` for a file that is missing, broken, or
    another architecture than the one named.
    """
    where = str(folder / CONFIG)
    found = read_json(folder / CONFIG)
    _check_architecture(found, architecture, where)
    fields: dict[str, Any] = {}
    for key, field in _REQUIRED.items():
        if key not in found:
            raise UsageError(f"{where}: the key '{key}' is missing: fetch the model again")
        fields[field] = found[key]
    for key, (field, default) in _OPTIONAL.items():
        fields[field] = default if found.get(key) is None else found[key]
    if fields["n_kv_heads"] is None:
        fields["n_kv_heads"] = fields["n_heads"]
    return LlamaConfig.parse(fields | _read_rope(found, fields["context"], where), where=where)


def config_json(
    config: LlamaConfig,
    *,
    dtype: str,
    bos_id: int | None,
    eos_ids: list[int],
    pad_id: int | None,
    architecture: str = Llama.architecture,
) -> dict[str, Any]:
    """The content of ``config.json``, in the form that transformers 4.43 and later read.

    RoPE and the data type are written in the older form, which newer releases also read.
    """
    scaling = config.rope_scaling
    return {
        "architectures": [architecture],
        "model_type": "llama",
        **{key: getattr(config, field) for key, field in _REQUIRED.items()},
        **{key: getattr(config, field) for key, (field, _) in _OPTIONAL.items()},
        "rope_theta": config.rope_theta,
        "rope_scaling": None if scaling is None else _scaling_json(scaling),
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "attention_dropout": 0.0,
        "initializer_range": 0.02,
        "use_cache": True,
        "torch_dtype": dtype,
        "bos_token_id": bos_id,
        "eos_token_id": eos_ids,
        "pad_token_id": pad_id,
    }


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object; raises `UsageError` when the file is missing or holds none."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UsageError(f"{path.parent} holds no {path.name}: name a model folder") from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, json.JSONDecodeError) else ""
        raise UsageError(f"{path}{line}: not valid JSON: fetch the file again") from error
    if not isinstance(value, dict):
        raise UsageError(f"{path}: expected a JSON object: fetch the file again")
    return value


def _check_architecture(found: dict[str, Any], architecture: str, where: str) -> None:
    architectures = found.get("architectures") or [architecture]
    if found.get("model_type") != "llama" or architectures != [architecture]:
        raise UsageError(
            f"{where}: architecture {architectures} of model type {found.get('model_type')!r} is "
            f"not supported here: use a {architecture}"
        )
    for key, value in _ONLY_VALUE.items():
        if found.get(key, value) not in (value, None):
            raise UsageError(
                f"{where}: '{key}' is {found[key]!r}, only {value!r} is supported: use a Llama"
            )


def _read_rope(found: dict[str, Any], context: Any, where: str) -> dict[str, Any]:
    rope = found.get("rope_scaling") or found.get("rope_parameters") or {}
    if not isinstance(rope, dict):
        raise UsageError(f"{where}: RoPE's parameters are {rope!r}, not keys: fetch the file again")
    kind = rope.get("rope_type", rope.get("type", "default"))
    theta = rope.get("rope_theta", found.get("rope_theta", _DEFAULT_THETA))
    partial = rope.get("partial_rotary_factor", found.get("partial_rotary_factor", 1))
    if kind not in ("default", "llama3") or partial not in (1, None):
        detail = f"RoPE type '{kind}'" if partial in (1, None) else f"partial RoPE ({partial})"
        raise UsageError(
            f"{where}: {detail} is not supported: Puna computes the types 'default' and 'llama3'"
        )
    if kind == "default":
        return {"rope_theta": theta}
    stated = {
        "factor": rope.get("factor"),
        "low_freq_factor": rope.get("low_freq_factor"),
        "high_freq_factor": rope.get("high_freq_factor"),
        "original_context": rope.get("original_max_position_embeddings", context),
    }
    return {"rope_theta": theta, "rope_scaling": RopeScaling.parse(stated, where=where)}


def _scaling_json(scaling: RopeScaling) -> dict[str, Any]:
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_context,
    }
