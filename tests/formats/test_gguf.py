from collections.abc import Callable
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
import torch
from gguf import GGMLQuantizationType
from transformers import AutoTokenizer

from puna.core.errors import UsageError
from puna.formats import load_model, save_model
from puna.formats.gguf import derive_scaling
from puna.formats.gguf_file import GgufFile
from puna.model.config import LlamaConfig, RopeScaling, llama_config
from puna.model.llama import Llama
from puna.model.rope import rope_frequencies
from puna.tokenizer import Tokenizer

Build = Callable[..., Llama]
Write = Callable[..., Path]


def factors_of(config: LlamaConfig) -> np.ndarray:
    """What llama.cpp's converter writes as rope_freqs.weight: divisors of the frequencies."""
    plain = rope_frequencies(config.model_copy(update={"rope_scaling": None}))
    return (plain / rope_frequencies(config)).numpy()


@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_embeddings": True}, {"n_kv_heads": 4}, {"head_dim": 32}],
    ids=["untied", "tied", "as many key heads", "wide heads"],
)
@torch.no_grad()
def test_a_llama_written_as_gguf_loads_with_equal_logits(
    changes: dict[str, Any], tiny_llama: Build, write_gguf: Write, ids: torch.Tensor
) -> None:
    model = tiny_llama(**changes)
    loaded, _ = load_model(write_gguf(model))
    assert loaded.config == model.config
    assert torch.equal(loaded(ids), model(ids))


def test_packed_weights_are_those_gguf_unpacks(tiny_llama: Build, write_gguf: Write) -> None:
    model = tiny_llama()
    loaded, _ = load_model(write_gguf(model, kind=GGMLQuantizationType.Q8_0))
    for name, weight in model.state_dict().items():
        if weight.ndim == 2:  # blocks lie along rows, so the order of rows does not matter
            packed = gguf.quants.quantize(weight.numpy(), GGMLQuantizationType.Q8_0)
            unpacked = gguf.quants.dequantize(packed, GGMLQuantizationType.Q8_0)
            assert np.array_equal(loaded.state_dict()[name].numpy(), unpacked)


def test_its_tokenizer_gives_the_same_ids_and_chat(
    tiny_llama: Build, write_gguf: Write, tokenizer: Tokenizer, texts: list[str]
) -> None:
    _, read = load_model(write_gguf(tiny_llama()))
    assert [read.encode(text) for text in texts] == [tokenizer.encode(text) for text in texts]
    assert read.chat == tokenizer.chat
    assert read.stop_ids == tokenizer.stop_ids
    assert (read.bos_id, read.eot_id, read.pad_id) == (
        tokenizer.bos_id,
        tokenizer.eot_id,
        tokenizer.pad_id,
    )


@pytest.mark.parametrize(("stated", "opened"), [(None, True), (True, True), (False, False)])
def test_texts_open_with_bos_where_the_file_says_so(
    stated: bool | None, opened: bool, tiny_llama: Build, write_gguf: Write, tmp_path: Path
) -> None:
    model, tokenizer = load_model(
        write_gguf(tiny_llama(), metadata={"tokenizer.ggml.add_bos_token": stated})
    )
    save_model(tmp_path / "folder", model, tokenizer)
    ids = AutoTokenizer.from_pretrained(tmp_path / "folder").encode("A llama")
    assert ids == tokenizer.encode("A llama", bos=opened)


@torch.no_grad()
def test_llama_31_scaling_is_derived_from_its_factors(
    tiny_llama: Build, write_gguf: Write, ids: torch.Tensor
) -> None:
    model = tiny_llama(rope_scaling={"factor": 8.0})
    factors = {"rope_freqs.weight": factors_of(model.config)}
    loaded, _ = load_model(write_gguf(model, tensors=factors))
    assert loaded.config == model.config
    assert torch.equal(loaded(ids), model(ids))


@pytest.mark.parametrize("size", ["llama3.2-1b", "llama3.2-3b", "llama3.1-8b"])
def test_the_scaling_of_published_models_is_derived_exactly(size: str) -> None:
    config = llama_config(size)
    plain = config.model_copy(update={"rope_scaling": None})
    assert derive_scaling(plain, factors_of(config), "here") == config.rope_scaling


@pytest.mark.parametrize(("factor", "high", "context"), [(4.0, 8.0, 4096), (16.0, 2.5, 32768)])
def test_another_scaling_of_the_same_rule_is_fitted(
    factor: float, high: float, context: int
) -> None:
    scaling = RopeScaling(factor=factor, high_freq_factor=high, original_context=context)
    config = llama_config("llama3-8b", rope_scaling=scaling)
    plain = config.model_copy(update={"rope_scaling": None})
    derived = derive_scaling(plain, factors_of(config), "here")
    assert derived is not None
    assert derived.factor == pytest.approx(factor)
    assert derived.high_freq_factor == pytest.approx(high, rel=1e-4)
    assert derived.original_context == pytest.approx(context, rel=1e-3)


def test_factors_of_one_mean_no_scaling() -> None:
    ones = np.ones(64, dtype=np.float32)
    assert derive_scaling(llama_config("llama3-8b"), ones, "here") is None


@pytest.mark.parametrize("length", [64, 32])
def test_factors_of_another_rule_are_refused(length: int) -> None:
    factors = np.linspace(1, 3, length, dtype=np.float32)
    with pytest.raises(UsageError, match=r"^here: rope_freqs\.weight follows no Llama 3\.1"):
        derive_scaling(llama_config("llama3-8b"), factors, "here")


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"general.architecture": "gemma"}, "architecture 'gemma' is not supported"),
        ({"llama.block_count": None}, "the key llama.block_count is missing"),
        (
            {"llama.attention.head_count_kv": [2, 2]},
            "llama.attention.head_count_kv is not a number",
        ),
        ({"llama.block_count": 2**30}, "asks for 1073741824 layers"),
        (
            {"llama.block_count": 3},
            "'model.layers.2.input_layernorm.weight' (and 8 more) is missing",
        ),
        ({"llama.feed_forward_length": 128}, "expected (128, 64)"),
        ({"llama.expert_count": 8}, "mixtures of experts"),
        ({"llama.rope.scaling.type": "yarn"}, "RoPE scaling 'yarn' is not supported"),
        ({"llama.rope.dimension_count": 8}, "llama.rope.dimension_count differs from head_dim 16"),
        ({"split.count": 3}, "llama-gguf-split --merge"),
    ],
)
def test_another_model_is_refused_in_one_line(
    metadata: dict[str, Any], said: str, tiny_llama: Build, write_gguf: Write
) -> None:
    path = write_gguf(tiny_llama(), metadata=metadata)
    with pytest.raises(UsageError) as caught:
        load_model(path)
    message = str(caught.value)
    assert said in message
    assert str(path) in message
    assert "\n" not in message


def test_a_value_of_another_kind_is_refused_or_left_unread(
    tiny_llama: Build, write_gguf: Write
) -> None:
    path = write_gguf(tiny_llama())
    for key in GgufFile.open(path).metadata:
        for value in ([1, 2], "x", -1):
            try:
                load_model(write_gguf(tiny_llama(), metadata={key: value}))
            except UsageError as error:
                assert str(error).isprintable()  # noqa: PT017


def test_a_tokenizer_larger_than_the_embedding_is_refused(
    tiny_llama: Build, write_gguf: Write
) -> None:
    with pytest.raises(UsageError, match="the tokenizer has 384 tokens, the model 300 rows"):
        load_model(write_gguf(tiny_llama(vocab_size=300)))


def test_biases_are_named_as_unexpected(tiny_llama: Build, write_gguf: Write) -> None:
    bias = {"blk.0.attn_q.bias": np.zeros(64, dtype=np.float32)}
    with pytest.raises(UsageError, match=r"unexpected tensor 'blk\.0\.attn_q\.bias'"):
        load_model(write_gguf(tiny_llama(), tensors=bias))


def test_a_truncated_file_is_named(tiny_llama: Build, write_gguf: Write) -> None:
    path = write_gguf(tiny_llama())
    path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(UsageError, match=r"tiny\.gguf is truncated at the tensor .*fetch the file"):
        load_model(path)
