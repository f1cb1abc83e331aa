import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from puna.core.errors import UsageError
from puna.formats import load_model, save_model
from puna.formats.resolve import convert_smollm2, smollm2_folder
from puna.model.llama import Llama
from puna.tokenizer import Message, Tokenizer

Build = Callable[..., Llama]
SmolLM2 = tuple[Llama, Tokenizer]
PASSAGE = (
    "The llama is a domesticated South American camelid, widely used as a meat and pack animal by "
    "Andean cultures since 1450. In 2024, 3.9 million of them grazed above 4,000 metres."
)


@pytest.fixture(scope="module")
def smollm2() -> SmolLM2:
    return load_model("smollm2")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    return tmp_path / "hf" / "hub"


@pytest.fixture
def cached_repo(hub: Path, tiny_llama: Build, tokenizer: Tokenizer) -> Path:
    """A repo as huggingface_hub lays it out: files are links into blobs."""
    repo = hub / "models--andes--tiny-llama"
    save_model(repo / "blobs", tiny_llama(), tokenizer)
    for revision in ("old", "new"):
        (repo / "snapshots" / revision).mkdir(parents=True)
        for blob in (repo / "blobs").iterdir():
            (repo / "snapshots" / revision / blob.name).symlink_to(blob)
    (repo / "snapshots" / "old" / "config.json").unlink()
    (repo / "refs").mkdir()
    (repo / "refs" / "main").write_text("new")
    return repo


def test_smollm2_has_its_published_shape(smollm2: SmolLM2) -> None:
    config = smollm2[0].config
    assert (config.n_layers, config.dim, config.n_heads, config.n_kv_heads) == (30, 576, 9, 3)
    assert (config.ffn_dim, config.vocab_size, config.context) == (1536, 49_152, 8192)
    assert (config.rope_theta, config.norm_eps) == (100_000.0, 1e-5)
    assert config.tie_embeddings
    assert config.n_params() == 134_515_008


def test_the_cached_smollm2_is_what_converting_gives_now(tmp_path: Path) -> None:
    # When this fails the conversion has changed: raise _CONVERSION in puna/formats/resolve.py.
    model, tokenizer = convert_smollm2()
    tokenizer.save(tmp_path)
    for file in tmp_path.iterdir():
        assert file.read_bytes() == (smollm2_folder() / file.name).read_bytes()
    cached = load_file(smollm2_folder() / "model.safetensors")
    assert all(torch.equal(cached[name], tensor) for name, tensor in model.state_dict().items())


@torch.no_grad()
def test_smollm2_gives_the_logits_transformers_computes(smollm2: SmolLM2) -> None:
    model, tokenizer = smollm2
    ids = torch.tensor([tokenizer.encode(PASSAGE)])
    peer = AutoModelForCausalLM.from_pretrained(smollm2_folder(), dtype=torch.float32)
    expected = peer(ids).logits
    assert (model(ids) - expected).abs().max() <= 1e-4 * expected.abs().max()


@torch.no_grad()
def test_smollm2_knows_the_capital_of_france(smollm2: SmolLM2) -> None:
    # Rows of q and k in the wrong order, or weights off by a block, give babble here.
    model, tokenizer = smollm2
    logits = model(torch.tensor([tokenizer.encode("The capital city of France is")]))
    assert tokenizer.decode([int(logits[0, -1].argmax())]) == " Paris"


def test_smollm2_splits_every_digit_as_it_was_trained(smollm2: SmolLM2) -> None:
    tokenizer = smollm2[1]
    assert [tokenizer.decode([i]) for i in tokenizer.encode("2024")] == ["2", "0", "2", "4"]
    peer = AutoTokenizer.from_pretrained(smollm2_folder())
    assert peer.encode(PASSAGE) == tokenizer.encode(PASSAGE)


def test_smollm2_greets_with_its_own_system_prompt(smollm2: SmolLM2) -> None:
    tokenizer = smollm2[1]
    message = Message("user", "What eats grass?")
    ids = tokenizer.chat.encode(tokenizer, [message], add_generation_prompt=True).ids
    assert tokenizer.decode(ids) == (
        "<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
        "<|im_end|>\n<|im_start|>user\nWhat eats grass?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert tokenizer.special_id("<|im_end|>") == 2
    assert 2 in tokenizer.stop_ids


def test_a_cached_repo_id_opens_the_snapshot_of_main(cached_repo: Path) -> None:
    model, _ = load_model("andes/tiny-llama")
    assert model.config.dim == 64


def test_a_cached_repo_without_main_opens_its_newest_snapshot(cached_repo: Path) -> None:
    shutil.rmtree(cached_repo / "refs")
    shutil.rmtree(cached_repo / "snapshots" / "old")
    assert load_model("andes/tiny-llama")[0].config.dim == 64


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("smolm2", r"did you mean smollm2\?"),
        ("andes/tiny-lama", r"did you mean andes/tiny-llama\?"),
        ("meta-llama/Llama-3.3-70B-Instruct", "check the path"),
    ],
)
def test_another_name_is_answered_with_what_it_may_be(
    name: str, near: str, cached_repo: Path
) -> None:
    with pytest.raises(UsageError, match=near) as caught:
        load_model(name)
    message = str(caught.value)
    assert "MODEL may be a model folder, a GGUF file, a Hugging Face repo id" in message
    assert "\n" not in message


def test_a_mistyped_path_is_answered_with_its_neighbour(hub: Path, tmp_path: Path) -> None:
    (tmp_path / "tuned-model").mkdir()
    with pytest.raises(UsageError, match=r"did you mean .*/tuned-model\?"):
        load_model(tmp_path / "tuned-modle")


def test_a_file_that_is_no_gguf_is_named(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no model")
    with pytest.raises(UsageError, match=r"notes\.txt is not a GGUF file"):
        load_model(tmp_path / "notes.txt")
