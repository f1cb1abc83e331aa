"""Adapters that PEFT wrote are read as PEFT means them; all else is refused in one line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import LlamaForCausalLM

from puna.core.errors import UsageError
from puna.formats import save_model
from puna.formats.peft import load_lora
from puna.model.llama import Llama
from puna.tokenizer import Tokenizer

Build = Callable[..., Llama]
FIRST = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
EVERYWHERE = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


@pytest.fixture
def write(tiny_llama: Build, tokenizer: Tokenizer, tmp_path: Path) -> Callable[..., Path]:
    """Has PEFT write a random adapter; arguments are its settings."""

    def adapter(**settings: Any) -> Path:
        save_model(tmp_path / "model", tiny_llama(), tokenizer)
        fields = {"r": 4, "lora_alpha": 6, "target_modules": EVERYWHERE, **settings}
        base = LlamaForCausalLM.from_pretrained(tmp_path / "model")
        changed = get_peft_model(base, LoraConfig(**fields))
        generator = torch.Generator().manual_seed(2)
        with torch.no_grad():
            for name, parameter in changed.named_parameters():
                if ".lora_" in name:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator))
        changed.save_pretrained(tmp_path / "adapter")
        return tmp_path / "adapter"

    return adapter


@pytest.mark.parametrize(
    ("settings", "n_products"),
    [
        ({}, 14),
        ({"use_rslora": True}, 14),
        ({"target_modules": r".*\.1\.self_attn\.[qv]_proj"}, 2),
        ({"target_modules": "all-linear", "layers_to_transform": None}, 14),
        ({"layers_to_transform": [0], "exclude_modules": ["k_proj"]}, 6),
        ({"init_lora_weights": "gaussian", "lora_dropout": 0.1}, 14),
        (
            {
                "rank_pattern": {"up_proj": 2, r"layers\.0\.self_attn\.[qk]_proj": 5},
                "alpha_pattern": {r"1\.mlp\..*": 3, "q_proj": 1},
            },
            14,
        ),
    ],
    ids=["all", "rslora", "expression", "all-linear", "some layers", "gaussian", "patterns"],
)
def test_changes_are_those_that_peft_merges_into_the_weights(
    write: Callable[..., Path], settings: dict[str, Any], n_products: int
) -> None:
    folder = write(**settings)
    changes = load_lora(folder)
    assert len(changes) == n_products
    base = LlamaForCausalLM.from_pretrained(folder.parent / "model")
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    after = PeftModel.from_pretrained(base, folder).merge_and_unload().state_dict()
    for name, weight in before.items():
        product = name.removesuffix(".weight")
        found = after[name] - weight
        if product in changes:
            expected = changes[product].up_or @ changes[product].down_ri
            assert expected.abs().mean() > 0.1
            # the peer's sum with the weight rounds at 1e-6 of values up to some tens
            torch.testing.assert_close(found, expected, atol=3e-5, rtol=0)
        else:
            assert not found.any(), name


def edit(folder: Path, **changes: Any) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def drop_key(folder: Path) -> None:
    path = folder / "adapter_config.json"
    found = json.loads(path.read_text())
    del found["lora_alpha"]
    path.write_text(json.dumps(found))


def tensors(folder: Path, **changes: torch.Tensor | None) -> None:
    path = folder / "adapter_model.safetensors"
    held = load_file(path) | changes
    save_file({name: each for name, each in held.items() if each is not None}, path)


def cut(folder: Path) -> None:
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:-10])


def pickled(folder: Path) -> None:
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "adapter_config.json").unlink(), r"holds no adapter_config\.json"),
        (
            lambda f: (f / "adapter_config.json").write_text("{"),
            r"adapter_config\.json, line 1: not valid JSON",
        ),
        (drop_key, r"adapter_config\.json: the key 'lora_alpha' is missing"),
        (lambda f: edit(f, r=0), r"adapter_config\.json: 'r' is 0"),
        (lambda f: edit(f, lora_alpha="much"), r"'lora_alpha' is 'much'"),
        (lambda f: edit(f, r=8), r"_proj has matrices of shapes .* says rank 8"),
        (lambda f: edit(f, rank_pattern={"(": 1}), r"the pattern '\(' is broken"),
        (lambda f: edit(f, peft_type="PREFIX_TUNING"), r"'peft_type' is 'PREFIX_TUNING'"),
        (lambda f: edit(f, bias="all"), r"'bias' is 'all': only 'none' is supported"),
        (lambda f: edit(f, use_dora=True), r"'use_dora' is True, which is not supported"),
        (lambda f: edit(f, modules_to_save=["lm_head"]), r"'modules_to_save' is \['lm_head'\]"),
        (lambda f: edit(f, init_lora_weights="pissa"), r"'init_lora_weights' is 'pissa'"),
        (cut, r"adapter_model\.safetensors is truncated or damaged"),
        (pickled, r"adapter_model\.bin is a pickle, which can run code"),
        (
            lambda f: (f / "adapter_model.safetensors").unlink(),
            r"holds no adapter_model\.safetensors",
        ),
        (lambda f: save_file({}, f / "adapter_model.safetensors"), r"holds no tensors"),
        (lambda f: tensors(f, **{FIRST: None}), r"layers\.0\.self_attn\.q_proj lacks its lora_A"),
        (lambda f: tensors(f, **{FIRST: torch.ones(4)}), r"q_proj has matrices of shapes \(4,\)"),
        (
            lambda f: tensors(f, **{"base_model.model.lm_head.lora_A.weight": torch.ones(4, 4)}),
            r"'base_model\.model\.lm_head\.lora_A\.weight' is no LoRA of a product in a block",
        ),
    ],
)
def test_what_is_broken_or_more_than_lora_is_explained_in_one_line(
    write: Callable[..., Path], damage: Callable[[Path], None], said: str
) -> None:
    folder = write(target_modules=["q_proj", "down_proj"])
    damage(folder)
    with pytest.raises(UsageError, match=said) as caught:
        load_lora(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"use_dora": True}, "'use_dora' is True"),
        ({"bias": "lora_only"}, "'bias' is 'lora_only'"),
        ({"lora_bias": True}, "'lora_bias' is True"),
        ({"modules_to_save": ["lm_head"]}, "'modules_to_save' is"),
        ({"target_modules": ["q_proj", "lm_head"]}, "lm_head.* is no LoRA of a product"),
        ({"target_modules": ["embed_tokens"]}, "embed_tokens.* is no LoRA of a product"),
        ({"trainable_token_indices": [1, 2]}, "'trainable_token_indices' is"),
        ({"init_lora_weights": "olora"}, "'init_lora_weights' is 'olora'"),
    ],
)
def test_what_peft_does_beyond_lora_is_refused(
    write: Callable[..., Path], settings: dict[str, Any], said: str
) -> None:
    with pytest.raises(UsageError, match=said):
        load_lora(write(**settings))
