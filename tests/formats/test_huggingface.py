import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig
from transformers import LlamaConfig as PeerConfig
from transformers import LlamaForCausalLM as PeerLlama

from puna.core.errors import UsageError
from puna.formats import load_model, save_model
from puna.model.llama import Llama
from puna.tokenizer import Message, Tokenizer

Build = Callable[..., Llama]
SCALING = {"factor": 8.0, "original_context": 128}
SHARD = "model.layers.1.mlp.down_proj.weight"
# fp32 sums in another order differ by parts in 1e7; logits are below 10.
TOLERANCE = {"rtol": 0.0, "atol": 2e-6}


@pytest.fixture
def folder(tiny_llama: Build, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    save_model(tmp_path / "whole", tiny_llama(), tokenizer)
    return tmp_path / "whole"


@pytest.fixture
def sharded(tiny_llama: Build, tokenizer: Tokenizer, tmp_path: Path) -> Path:
    save_model(tmp_path / "shards", tiny_llama(), tokenizer, max_shard_bytes=50_000)
    return tmp_path / "shards"


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    "changes",
    [{}, {"tie_embeddings": True}, {"rope_scaling": SCALING}, {"head_dim": 32}],
    ids=["untied", "tied", "stretched", "wide heads"],
)
@torch.no_grad()
def test_transformers_computes_the_same_logits_from_a_written_folder(
    changes: dict[str, Any],
    tiny_llama: Build,
    tokenizer: Tokenizer,
    ids: torch.Tensor,
    tmp_path: Path,
) -> None:
    model = tiny_llama(**changes)
    save_model(tmp_path / "model", model, tokenizer)
    peer, report = AutoModelForCausalLM.from_pretrained(
        tmp_path / "model", output_loading_info=True
    )
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    torch.testing.assert_close(peer(ids).logits, model(ids), **TOLERANCE)


@torch.no_grad()
def test_a_folder_that_transformers_wrote_gives_the_same_logits(
    tokenizer: Tokenizer, ids: torch.Tensor, tmp_path: Path
) -> None:
    shape = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 96}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    torch.manual_seed(0)
    peer = PeerLlama(PeerConfig(vocab_size=tokenizer.vocab_size, **shape, **heads)).eval()
    peer.save_pretrained(tmp_path, max_shard_size="60KB")
    assert (tmp_path / "model.safetensors.index.json").exists()
    tokenizer.save(tmp_path)
    model, _ = load_model(tmp_path)
    torch.testing.assert_close(model(ids), peer(ids).logits, **TOLERANCE)


def test_transformers_tokenizes_and_renders_chats_as_puna_does(
    folder: Path, tokenizer: Tokenizer, texts: list[str]
) -> None:
    peer = AutoTokenizer.from_pretrained(folder)
    for text in texts:
        assert peer.encode(text, add_special_tokens=False) == tokenizer.encode(text)
        assert peer.decode(tokenizer.encode(text)) == text
    said = [("system", "Be brief."), ("user", " What eats grass? "), ("assistant", "Llamas.")]
    messages = [Message(role, content) for role, content in said]
    rendered = peer.apply_chat_template(
        [{"role": role, "content": content} for role, content in said], return_dict=False
    )
    assert list(rendered) == tokenizer.chat.encode(tokenizer, messages).ids


def test_generation_stops_at_the_stop_ids_in_transformers_too(
    folder: Path, tokenizer: Tokenizer
) -> None:
    assert GenerationConfig.from_pretrained(folder).eos_token_id == sorted(tokenizer.stop_ids)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saving_and_loading_gives_the_same_model(
    dtype: torch.dtype,
    tiny_llama: Build,
    tokenizer: Tokenizer,
    texts: list[str],
    tmp_path: Path,
) -> None:
    model = tiny_llama().to(dtype)
    save_model(tmp_path / "model", model, tokenizer)
    loaded, read = load_model(tmp_path / "model", dtype=dtype)
    assert loaded.config == model.config
    assert read.encode(texts[0]) == tokenizer.encode(texts[0])
    state = loaded.state_dict()
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    assert PeerConfig.from_pretrained(tmp_path / "model").dtype == dtype


def test_shards_keep_to_their_size_and_read_back_equal(
    sharded: Path, folder: Path, tiny_llama: Build
) -> None:
    files = sorted(sharded.glob("*.safetensors"))
    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    held = {path.name: load_file(path) for path in files}
    assert len(files) > 2
    assert set(index["weight_map"].values()) == set(held)
    for tensors in held.values():
        assert len(tensors) == 1 or sum(t.nbytes for t in tensors.values()) <= 50_000
    total = sum(t.nbytes for tensors in held.values() for t in tensors.values())
    assert index["metadata"]["total_size"] == total
    whole, shards = load_model(folder)[0].state_dict(), load_model(sharded)[0].state_dict()
    assert all(torch.equal(tensor, shards[name]) for name, tensor in whole.items())


def test_a_subclass_is_built_as_itself(folder: Path) -> None:
    class Alpaca(Llama):
        pass

    assert type(load_model(folder, cls=Alpaca)[0]) is Alpaca


def test_the_loaded_model_does_not_depend_on_its_file(folder: Path, ids: torch.Tensor) -> None:
    model, _ = load_model(folder)
    with torch.no_grad():
        before = model(ids)
        (folder / "model.safetensors").write_bytes(b"")
        assert torch.equal(model(ids), before)


def test_a_head_stored_beside_a_tied_embedding_and_old_rope_buffers_are_left_out(
    tiny_llama: Build, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model = tiny_llama(tie_embeddings=True)
    save_model(tmp_path / "old", model, tokenizer)
    path = tmp_path / "old" / "model.safetensors"
    tensors = load_file(path)
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()
    tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = torch.ones(8)
    save_file(tensors, path)
    assert load_model(tmp_path / "old")[0].state_dict().keys() == model.state_dict().keys()


def remove_shard(folder: Path) -> None:
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    (folder / index["weight_map"][SHARD]).unlink()


def truncate_shard(folder: Path) -> None:
    path = sorted(folder.glob("*.safetensors"))[0]
    path.write_bytes(path.read_bytes()[:-100])


def misplace_tensor(folder: Path) -> None:
    places = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    other = next(place for place in places.values() if place != places[SHARD])
    edit(folder / "model.safetensors.index.json", weight_map=places | {SHARD: other})


def forget_tensor(folder: Path) -> None:
    places = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    del places[SHARD]
    edit(folder / "model.safetensors.index.json", weight_map=places)


def leave_folder(folder: Path) -> None:
    edit(folder / "model.safetensors.index.json", weight_map={SHARD: "../other.safetensors"})


def empty_index(folder: Path) -> None:
    edit(folder / "model.safetensors.index.json", weight_map={})


def more_layers(folder: Path) -> None:
    edit(folder / "config.json", num_hidden_layers=3)


def wider(folder: Path) -> None:
    edit(folder / "config.json", intermediate_size=128)


def smaller_vocabulary(folder: Path) -> None:
    edit(folder / "config.json", vocab_size=100)


def only_pickles(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"\x80\x04.")


def only_gguf(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()
    (folder / "tiny.gguf").touch()


def no_weights(folder: Path) -> None:
    for path in folder.glob("model*"):
        path.unlink()


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (remove_shard, r"the shard model-0000\d-of-0000\d\.safetensors is missing"),
        (truncate_shard, r"model-00001-of-0000\d\.safetensors is truncated or damaged"),
        (misplace_tensor, rf"lacks the tensor '{SHARD}' that model\.safetensors\.index\.json"),
        (forget_tensor, rf"the tensor '{SHARD}' is missing"),
        (leave_folder, r"names '\.\./other\.safetensors', which is no plain file name"),
        (empty_index, r"has no weight_map"),
        (more_layers, r"'model\.layers\.2\.input_layernorm\.weight' \(and 8 more\) is missing"),
        (wider, r"gate_proj\.weight' has shape \(96, 64\), expected \(128, 64\)"),
        (smaller_vocabulary, r"the tokenizer has 384 tokens, the model 100 rows"),
        (only_pickles, r"pytorch_model\.bin is a pickle, which can run code .*save_pretrained"),
        (only_gguf, r"name the file .*tiny\.gguf"),
        (no_weights, r"holds no model\.safetensors"),
    ],
)
def test_a_damaged_folder_is_explained_in_one_line(
    damage: Callable[[Path], None], said: str, sharded: Path
) -> None:
    damage(sharded)
    with pytest.raises(UsageError, match=said) as caught:
        load_model(sharded)
    assert "\n" not in str(caught.value)


def test_a_save_that_fails_leaves_the_former_folder_whole(
    folder: Path, tiny_llama: Build, monkeypatch: pytest.MonkeyPatch, tokenizer: Tokenizer
) -> None:
    before = (folder / "model.safetensors").read_bytes()

    def fail(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("puna.formats.huggingface.save_file", fail)
    with pytest.raises(Exception, match="the disk is full"):
        save_model(folder, tiny_llama(), tokenizer)
    assert (folder / "model.safetensors").read_bytes() == before
    assert [item.name for item in folder.parent.iterdir()] == [folder.name]


def test_a_tokenizer_larger_than_the_model_is_not_saved(
    tiny_llama: Build, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match="the tokenizer has 384 tokens, the model 100 rows"):
        save_model(tmp_path / "model", tiny_llama(vocab_size=100), tokenizer)


def test_a_copied_folder_is_the_same_model(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "copy")
    first, second = load_model(folder)[0], load_model(str(tmp_path / "copy"))[0]
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
