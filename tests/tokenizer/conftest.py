"""Tokenizers to test: Llama 3's own, a small trained one, and one shaped like SmolLM2's."""

import argparse
import inspect
import json
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
from tokenizers import Tokenizer as Backend

from puna.core.wheels import Wheel, fetch
from puna.tokenizer import Tokenizer

LLAMA_MODELS = Wheel(
    "llama-models", "0.3.0", "7f77f78ff13fca09f70d76a376aff6414cd901623fb9d57e69c2f8367a73032f"
)
SMOLLM2_TEMPLATE = (  # as SmolLM2-135M-Instruct ships it
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face"
    "<|im_end|>\n' }}{% endif %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + "
    "'<|im_end|>' + '\n'}}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Some 300 kB that every Python has: source of its own library."""
    return [inspect.getsource(module) for module in (argparse, inspect, json.decoder, zipfile)]


@pytest.fixture(scope="session")
def small(texts: list[str]) -> Tokenizer:
    return Tokenizer.train(texts, 600, n_special=16)


@pytest.fixture(scope="session")
def small_folder(small: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    small.save(folder)
    return folder


@pytest.fixture(scope="session")
def smol_folder(texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with SmolLM2's traits: digits apart, special tokens first, bytes missing, an
    ``unk_token`` that is special, its template and names."""
    folder = tmp_path_factory.mktemp("smol")
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>"]
    backend = Backend(models.BPE(unk_token="<|endoftext|>"))
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(False)]
    )
    backend.decoder = decoders.ByteLevel()
    printable = [c for c in pre_tokenizers.ByteLevel.alphabet() if c != "Ą"]  # Ą spells byte 4
    trainer = trainers.BpeTrainer(
        vocab_size=600,
        special_tokens=[AddedToken(name, normalized=False) for name in special],
        initial_alphabet=printable,
        show_progress=False,
    )
    backend.train_from_iterator(texts, trainer)
    backend.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {
        "bos_token": "<|im_start|>",
        "eos_token": "<|im_end|>",
        "pad_token": "<|im_end|>",
        "unk_token": "<|endoftext|>",
        "chat_template": SMOLLM2_TEMPLATE,
        "tokenizer_class": "PreTrainedTokenizerFast",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def smol(smol_folder: Path) -> Tokenizer:
    return Tokenizer.from_folder(smol_folder)


@pytest.fixture(scope="session")
def llama_models_site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Meta's package, unpacked and importable as ``llama_models`` during the session."""
    site = tmp_path_factory.mktemp("site")
    with zipfile.ZipFile(fetch(LLAMA_MODELS)) as archive:
        wanted = [name for name in archive.namelist() if name.startswith("llama_models/")]
        archive.extractall(site, wanted)
    sys.path.append(str(site))
    yield site
    sys.path.remove(str(site))


@pytest.fixture(scope="session")
def llama3_file(llama_models_site: Path) -> Path:
    return llama_models_site / "llama_models" / "llama3" / "tokenizer.model"


@pytest.fixture(scope="session")
def llama3(llama3_file: Path) -> Tokenizer:
    return Tokenizer.from_tiktoken(llama3_file)


@pytest.fixture(scope="session")
def llama3_folder(llama3: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("llama3")
    llama3.save(folder)
    return folder


@pytest.fixture(scope="session")
def meta(llama3_file: Path) -> Any:
    """Meta's own tokenizer."""
    from llama_models.llama3.tokenizer import Tokenizer as MetaTokenizer

    return MetaTokenizer(llama3_file)
