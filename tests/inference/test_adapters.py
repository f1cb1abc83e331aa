"""LoRA adapters of single requests, held to PEFT on transformers."""

import json
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tiny_engine import Build, greedy, run
from transformers import AutoModelForCausalLM

from puna.core.errors import UsageError
from puna.formats import save_model
from puna.inference import Engine, Generation, Request, Sampling, generate
from puna.model import Llama
from puna.tokenizer import Tokenizer

PRODUCTS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
PROMPTS = [[5, 6, 7], [40, 41, 42, 43, 44, 45, 46, 47, 48, 49], [9]]
N = 8


@pytest.fixture(scope="module")
def base_folder(
    model: Llama, tokenizer: Tokenizer, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    folder = tmp_path_factory.mktemp("base") / "model"
    save_model(folder, model, tokenizer)
    return folder


@pytest.fixture(scope="module")
def adapters(base_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two adapters: one on every product, one of another rank on two of them, with rsLoRA."""
    settings = {
        "all": LoraConfig(r=4, lora_alpha=8, target_modules=PRODUCTS),
        "some": LoraConfig(
            r=3, lora_alpha=5, target_modules=["k_proj", "up_proj"], use_rslora=True
        ),
    }
    folders = {}
    for seed, (name, config) in enumerate(settings.items()):
        torch.manual_seed(seed)
        peer = get_peft_model(AutoModelForCausalLM.from_pretrained(base_folder), config)
        for key, parameter in peer.named_parameters():
            if "lora_" in key:
                parameter.data.normal_(0, 0.3)
        folders[name] = tmp_path_factory.mktemp("adapters") / name
        peer.save_pretrained(folders[name])
    return folders


@pytest.fixture(scope="module")
def peer_texts(base_folder: Path, adapters: dict[str, Path]) -> dict[str | None, list[list[int]]]:
    """Greedy text of the peer for each prompt, by adapter."""
    found: dict[str | None, list[list[int]]] = {}
    for name in (None, *adapters):
        peer = AutoModelForCausalLM.from_pretrained(base_folder, dtype=torch.float32)
        if name is not None:
            peer = PeftModel.from_pretrained(peer, adapters[name])
        found[name] = []
        for prompt in PROMPTS:
            ids = list(prompt)
            for _ in range(N):
                with torch.no_grad():
                    ids.append(int(peer(torch.tensor([ids])).logits[0, -1].argmax()))
            found[name].append(ids[len(prompt) :])
    return found


def ask(engine: Engine, names: list[str | None]) -> list[Generation]:
    sampling = Sampling(max_new_tokens=N)
    return generate(
        engine, [Request(prompt, sampling, adapter=name) for name in names for prompt in PROMPTS]
    )


@pytest.mark.parametrize(
    "settings",
    [{}, {"packed_copy": True}, {"packed_copy": True, "compile": True}, {"chunk_tokens": 8}],
    ids=["shared", "joined", "compiled", "chunked"],
)
def test_rows_with_different_adapters_in_one_batch_write_the_peers_texts(
    build: Build,
    adapters: dict[str, Path],
    peer_texts: dict[str | None, list[list[int]]],
    settings: dict[str, object],
) -> None:
    engine = build(**settings)
    for name, folder in adapters.items():
        engine.load_adapter(name, folder)
    names = [None, *adapters]
    together = [generation.ids for generation in ask(engine, names)]
    assert together == [text for name in names for text in peer_texts[name]]
    # Again, alone, from the prefix cache: pages of one adapter must not serve another.
    for name in reversed(names):
        assert [generation.ids for generation in ask(engine, [name])] == peer_texts[name]
    assert peer_texts["all"] != peer_texts[None] != peer_texts["some"]


def test_adapters_come_and_go_while_the_model_stays(
    build: Build, adapters: dict[str, Path], peer_texts: dict[str | None, list[list[int]]]
) -> None:
    engine = build()
    engine.load_adapter("x", adapters["all"])
    assert [g.ids for g in ask(engine, ["x"])] == peer_texts["all"]
    with pytest.raises(UsageError, match="loaded already"):
        engine.load_adapter("x", adapters["some"])
    engine.unload_adapter("x")
    engine.load_adapter("x", adapters["some"])
    assert engine.adapters == ("x",)
    assert [g.ids for g in ask(engine, ["x", None])] == peer_texts["some"] + peer_texts[None]
    engine.unload_adapter("x")
    with pytest.raises(UsageError, match="no adapter 'x'"):
        ask(engine, ["x"])


def test_an_adapter_in_use_stays(build: Build, adapters: dict[str, Path]) -> None:
    engine = build()
    engine.load_adapter("x", adapters["some"])
    request = Request([1, 2], Sampling(max_new_tokens=5), adapter="x")
    handle = engine.submit(request)
    with pytest.raises(UsageError, match="still use"):
        engine.unload_adapter("x")
    engine.cancel(handle)
    engine.unload_adapter("x")
    assert run(engine, [greedy([1, 2], 3)]) == [run(build(), [greedy([1, 2], 3)])[0]]


def test_adapters_stay_when_the_weights_are_replaced(
    build: Build, model: Llama, adapters: dict[str, Path], peer_texts: dict[str | None, list]
) -> None:
    engine = build()
    engine.load_adapter("x", adapters["all"])
    engine.load_weights(model)
    assert [g.ids for g in ask(engine, ["x"])] == peer_texts["all"]


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"use_dora": True}, "'use_dora'"),
        ({"bias": "all"}, "'bias'"),
        ({"peft_type": "IA3"}, "'peft_type'"),
        ({"r": 0}, "'r'"),
        ({"r": 5}, "rank 5"),
        ({"init_lora_weights": "pissa"}, "'init_lora_weights'"),
    ],
)
def test_an_adapter_that_is_more_than_lora_is_refused(
    build: Build, adapters: dict[str, Path], tmp_path: Path, change: dict[str, object], part: str
) -> None:
    for item in adapters["all"].iterdir():
        (tmp_path / item.name).write_bytes(item.read_bytes())
    path = tmp_path / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(UsageError, match=part):
        build().load_adapter("x", tmp_path)


def test_an_adapter_of_another_shape_a_pickle_and_an_empty_folder_are_refused(
    build: Build, adapters: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=r"adapter_config\.json"):
        build().load_adapter("x", tmp_path)
    (tmp_path / "adapter_config.json").write_bytes(
        (adapters["all"] / "adapter_config.json").read_bytes()
    )
    (tmp_path / "adapter_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(UsageError, match="pickle"):
        build().load_adapter("x", tmp_path)
    tensors = load_file(adapters["all"] / "adapter_model.safetensors")
    wide = {
        name: torch.cat((tensor, tensor), 1) if ".lora_A." in name else tensor
        for name, tensor in tensors.items()
    }
    save_file(wide, tmp_path / "adapter_model.safetensors")
    with pytest.raises(UsageError, match="made for it"):
        build().load_adapter("x", tmp_path)
