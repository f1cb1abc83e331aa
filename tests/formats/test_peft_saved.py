"""Adapters that Puna saves: PEFT computes the same with them, so does Puna, and it serves them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import LlamaForCausalLM

from puna.core.errors import UsageError
from puna.formats import peft as module
from puna.formats import save_model
from puna.formats.peft import load_adapter, load_lora, save_adapter
from puna.inference.adapters import Adapters
from puna.model import LoraConfig, add_lora, merge
from puna.model.llama import Llama
from puna.tokenizer import Tokenizer

Build = Callable[..., Llama]
KINDS: dict[str, dict[str, Any]] = {
    "lora": {},
    "rslora": {"rslora": True, "rank": 8},
    "dora": {"dora": True},
    "dora with rslora": {"dora": True, "rslora": True},
    "some products": {"targets": [r"layers\.1\.mlp\..*", "q_proj"], "dropout": 0.1},
    "patterns": {
        "patterns": {r"layers\.0\..*": {"rank": 3}, "up_proj": {"alpha": 1, "rank": 2}},
        "rslora": True,
    },
}


def adapted(build: Build, **changes: Any) -> Llama:
    model = build()
    add_lora(model, LoraConfig.parse({"rank": 4, "alpha": 6} | changes, where="test"), seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


@pytest.mark.parametrize("kind", KINDS)
def test_peft_computes_the_same_with_it(
    tiny_llama: Build, tokenizer: Tokenizer, ids: torch.Tensor, tmp_path: Path, kind: str
) -> None:
    save_model(tmp_path / "model", tiny_llama(), tokenizer)
    ours = adapted(tiny_llama, **KINDS[kind])
    save_adapter(tmp_path / "adapter", ours, str(tmp_path / "model"))
    base = LlamaForCausalLM.from_pretrained(tmp_path / "model")
    peer = PeftModel.from_pretrained(base, tmp_path / "adapter").eval()
    with torch.no_grad():
        logits, plain = ours(ids), tiny_llama()(ids)
        assert (logits - plain).abs().max() > 0.1
        # sums of fp32 products in another order
        torch.testing.assert_close(peer(ids).logits, logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
def test_loaded_again_it_is_the_same_and_can_be_trained_on(
    tiny_llama: Build, ids: torch.Tensor, tmp_path: Path, kind: str
) -> None:
    ours = adapted(tiny_llama, **KINDS[kind])
    save_adapter(tmp_path / "adapter", ours, "base")
    again = tiny_llama()
    load_adapter(tmp_path / "adapter", again)
    with torch.no_grad():
        assert torch.equal(again(ids), ours(ids))
    trained = {name for name, p in ours.named_parameters() if p.requires_grad}
    assert {name for name, p in again.named_parameters() if p.requires_grad} == trained
    save_adapter(tmp_path / "again", again, "base")
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "again" / name).read_bytes() == (
            tmp_path / "adapter" / name
        ).read_bytes()


@pytest.mark.parametrize("kind", ["lora", "rslora", "patterns"])
def test_the_changes_the_server_reads_are_those_that_merging_makes(
    tiny_llama: Build, tmp_path: Path, kind: str
) -> None:
    ours = adapted(tiny_llama, **KINDS[kind])
    save_adapter(tmp_path / "adapter", ours, "base")
    merge(ours)
    base = dict(tiny_llama().named_parameters())
    changes = load_lora(tmp_path / "adapter")
    assert len(changes) == 14
    for product, change in changes.items():
        found = ours.get_parameter(f"{product}.weight") - base[f"{product}.weight"]
        torch.testing.assert_close(found, change.up_or @ change.down_ri, atol=1e-6, rtol=1e-5)


def test_the_engine_serves_it_beside_the_model(
    tiny_llama: Build, ids: torch.Tensor, tmp_path: Path
) -> None:
    ours, plain = adapted(tiny_llama), tiny_llama()
    save_adapter(tmp_path / "adapter", ours, "base")
    adapters = Adapters()
    adapters.attach(plain)
    adapters.load("mine", tmp_path / "adapter")
    with torch.no_grad(), adapters.used_by_rows(["mine", "mine"]):
        torch.testing.assert_close(plain(ids), ours(ids), atol=1e-5, rtol=1e-5)


def test_dora_is_refused_beside_a_running_model(tiny_llama: Build, tmp_path: Path) -> None:
    save_adapter(tmp_path / "adapter", adapted(tiny_llama, dora=True), "base")
    with pytest.raises(UsageError, match=r"'use_dora' is True, .* merge it into the model"):
        load_lora(tmp_path / "adapter")


def test_the_folder_says_what_it_was_made_for(tiny_llama: Build, tmp_path: Path) -> None:
    model = adapted(tiny_llama, **KINDS["patterns"])
    save_adapter(tmp_path / "adapter", model, "meta-llama/Llama-3.2-1B")
    found = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert found["base_model_name_or_path"] == "meta-llama/Llama-3.2-1B"
    assert (found["use_rslora"], found["use_dora"]) == (True, False)
    assert len(found["target_modules"]) == 7
    assert found["rank_pattern"]["model.layers.1.mlp.up_proj"] == 2


def test_a_failed_save_leaves_the_former_adapter_whole(
    tiny_llama: Build, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save_adapter(tmp_path / "adapter", adapted(tiny_llama), "base")
    before = (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes()

    def fails(*args: Any, **settings: Any) -> None:
        raise OSError("broken disk")

    monkeypatch.setattr(module, "save_file", fails)
    with pytest.raises(OSError, match="broken disk"):
        save_adapter(tmp_path / "adapter", adapted(tiny_llama, rank=2), "other")
    assert (tmp_path / "adapter" / "adapter_model.safetensors").read_bytes() == before
    assert sorted(item.name for item in tmp_path.iterdir()) == ["adapter"]


def test_a_model_without_an_adapter_has_none_to_save(tiny_llama: Build, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no adapter to save"):
        save_adapter(tmp_path / "adapter", tiny_llama(), "base")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"n_layers": 1}, r"the model has no model\.layers\.1\.mlp\.down_proj"),
        ({"ffn_dim": 80}, r"down_proj is changed from 96 inputs to 64 outputs, .* 80 and 64"),
    ],
)
def test_an_adapter_of_another_model_is_refused(
    tiny_llama: Build, tmp_path: Path, changes: dict[str, int], said: str
) -> None:
    save_adapter(tmp_path / "adapter", adapted(tiny_llama), "base")
    other = tiny_llama(**changes)
    with pytest.raises(UsageError, match=said):
        load_adapter(tmp_path / "adapter", other)
    assert all(p.requires_grad for p in other.parameters())


@pytest.mark.parametrize(
    ("use_dora", "said"),
    [(True, "lacks its lora_magnitude_vector"), (False, "has lengths of DoRA")],
)
def test_lengths_without_dora_and_dora_without_lengths_are_refused(
    tiny_llama: Build, tmp_path: Path, use_dora: bool, said: str
) -> None:
    save_adapter(tmp_path / "adapter", adapted(tiny_llama, dora=not use_dora), "base")
    path = tmp_path / "adapter" / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_dora": use_dora}))
    with pytest.raises(UsageError, match=said):
        load_adapter(tmp_path / "adapter", tiny_llama())
