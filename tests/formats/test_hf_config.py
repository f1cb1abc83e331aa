import json
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import LlamaConfig as PeerConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from puna.core.errors import UsageError
from puna.formats import load_config
from puna.formats.hf_config import config_json
from puna.model.config import SIZES, llama_config
from puna.model.rope import rope_frequencies

LLAMA_32_1B: dict[str, Any] = {  # as Meta published it, less what does not fix the function
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "head_dim": 64,
    "hidden_act": "silu",
    "hidden_size": 2048,
    "intermediate_size": 8192,
    "max_position_embeddings": 131072,
    "num_attention_heads": 32,
    "num_hidden_layers": 16,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {
        "factor": 32.0,
        "high_freq_factor": 4.0,
        "low_freq_factor": 1.0,
        "original_max_position_embeddings": 8192,
        "rope_type": "llama3",
    },
    "rope_theta": 500000.0,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}


def write(folder: Path, content: dict[str, Any]) -> Path:
    (folder / "config.json").write_text(json.dumps(content))
    return folder


def written(folder: Path, size: str) -> Path:
    config = llama_config(size)
    return write(folder, config_json(config, dtype="bfloat16", bos_id=1, eos_ids=[2, 3], pad_id=4))


def test_the_published_file_of_llama_32_1b_gives_the_table_row(tmp_path: Path) -> None:
    assert load_config(write(tmp_path, LLAMA_32_1B)) == llama_config("llama3.2-1b")


@pytest.mark.parametrize("size", SIZES)
def test_a_written_configuration_reads_back_equal(size: str, tmp_path: Path) -> None:
    assert load_config(written(tmp_path, size)) == llama_config(size)


@pytest.mark.parametrize("size", ["llama3-8b", "llama3.2-3b"])
def test_transformers_computes_the_same_rope_from_it(size: str, tmp_path: Path) -> None:
    peer = PeerConfig.from_pretrained(written(tmp_path, size))
    frequencies = LlamaRotaryEmbedding(peer).inv_freq
    assert torch.equal(frequencies, rope_frequencies(llama_config(size)))
    assert (peer.eos_token_id, peer.pad_token_id, peer.dtype) == ([2, 3], 4, torch.bfloat16)


@pytest.mark.parametrize("size", ["llama3-8b", "llama3.2-3b"])
def test_what_transformers_5_saves_with_rope_parameters_reads_equal(
    size: str, tmp_path: Path
) -> None:
    PeerConfig.from_pretrained(written(tmp_path, size)).save_pretrained(tmp_path)
    saved = json.loads((tmp_path / "config.json").read_text())
    assert "rope_parameters" in saved
    assert "rope_theta" not in saved
    assert load_config(tmp_path) == llama_config(size)


def test_absent_keys_take_the_defaults_of_transformers(tmp_path: Path) -> None:
    shape = ["hidden_size", "num_attention_heads", "num_hidden_layers", "intermediate_size"]
    kept = {key: LLAMA_32_1B[key] for key in ["model_type", "vocab_size", *shape]}
    config = load_config(write(tmp_path, kept))
    peer = PeerConfig(**kept)
    assert config.n_kv_heads == peer.num_key_value_heads
    assert config.head_dim == peer.head_dim
    assert config.norm_eps == peer.rms_norm_eps
    assert config.context == peer.max_position_embeddings
    assert config.tie_embeddings == peer.tie_word_embeddings
    assert config.rope_theta == peer.rope_parameters["rope_theta"]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"]},
            "'qwen2' is not supported",
        ),
        ({"architectures": ["LlamaForSequenceClassification"]}, "LlamaForSequenceClassification"),
        ({"attention_bias": True}, "'attention_bias' is True"),
        ({"mlp_bias": True}, "'mlp_bias' is True"),
        ({"hidden_act": "gelu"}, "'hidden_act' is 'gelu'"),
        ({"quantization_config": {"bits": 4}}, "'quantization_config'"),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "RoPE type 'yarn'"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "RoPE type 'linear'"),
        ({"rope_scaling": {"rope_type": "llama3"}}, "'factor'"),
        ({"rope_scaling": "llama3"}, "not keys"),
        ({"partial_rotary_factor": 0.5}, "partial RoPE"),
        ({"hidden_size": "wide"}, "'dim' is 'wide'"),
        ({"num_key_value_heads": 5}, "n_kv_heads"),
    ],
)
def test_another_architecture_is_refused_in_one_line(
    change: dict[str, Any], said: str, tmp_path: Path
) -> None:
    with pytest.raises(UsageError) as caught:
        load_config(write(tmp_path, LLAMA_32_1B | change))
    message = str(caught.value)
    assert said in message
    assert "config.json" in message
    assert "\n" not in message


@pytest.mark.parametrize("value", [[1, 2], {"a": 1}, "x", -1, 0, True, 1e30, 2**80])
def test_a_value_of_another_kind_is_refused_or_left_unread(value: Any, tmp_path: Path) -> None:
    for key in LLAMA_32_1B:
        try:
            load_config(write(tmp_path, LLAMA_32_1B | {key: value}))
        except UsageError as error:
            assert str(error).isprintable()  # noqa: PT017


def test_a_missing_key_is_named(tmp_path: Path) -> None:
    content = {key: value for key, value in LLAMA_32_1B.items() if key != "hidden_size"}
    with pytest.raises(UsageError, match="'hidden_size' is missing"):
        load_config(write(tmp_path, content))


@pytest.mark.parametrize("content", [b'{"model_type": ', b"[1, 2]", b"\xff\xfe", b"[" * 100_000])
def test_a_broken_file_is_named(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_bytes(content)
    with pytest.raises(UsageError, match=r"config\.json.*fetch the file again"):
        load_config(tmp_path)


def test_a_folder_without_config_is_no_model_folder(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"holds no config\.json"):
        load_config(tmp_path)
