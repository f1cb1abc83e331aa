"""The bytes foretold beside the bytes a process takes, and what each setting does to them."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from puna.model import LlamaConfig, LoraConfig, llama_config
from puna.training import LoopConfig
from puna.training.estimate import estimate

SHAPE = {"dim": 512, "n_layers": 8, "n_heads": 8, "n_kv_heads": 4, "ffn_dim": 1408}
CONFIG = {**SHAPE, "vocab_size": 8192, "context": 512}
LOOP = {"steps": 2, "batch_rows": 4, "learning_rate": 1e-4, "precision": "fp32"}
# A process of its own trains two steps: the most it held, less what it held before the model.
MEASURE = """
import json, re, sys, tempfile
from pathlib import Path
import numpy as np, torch
from puna.core.events import EventLog
from puna.data import PackedRows, write_tokens
from puna.model import Llama, LlamaConfig, LoraConfig, add_lora
from puna.training import LoopConfig, RowSource, next_token, train

def held(key):
    return 1024 * int(re.search(rf"{key}:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])

config, loop, lora = json.loads(sys.argv[1])

def peak(config):
    with tempfile.TemporaryDirectory() as name:
        settings, folder = LoopConfig.parse(loop, where="test"), Path(name)
        ids = np.random.default_rng(0).integers(0, config["vocab_size"], (8, 512)).tolist()
        tokens = write_tokens(folder / "t", [(i, None) for i in ids], config["vocab_size"])
        source = RowSource(PackedRows(tokens, 512), 1, settings)
        before = held("VmRSS")
        model = Llama(LlamaConfig.parse(config, where="test"))
        model.init_weights(1)
        if lora is not None:
            model = model.bfloat16()
            add_lora(model, LoraConfig.parse(lora, where="test"))
        Path("/proc/self/clear_refs").write_text("5")  # the peak of building it does not count
        train(model, next_token, source, settings, folder / "c", EventLog(readers=()))
        return held("VmHWM") - before

peak({**config, "dim": 64, "ffn_dim": 64, "vocab_size": 64})  # loads what torch loads when needed
print(peak(config))
"""


def measured(loop: dict[str, Any], lora: dict[str, Any] | None) -> int:
    question = json.dumps([CONFIG, LOOP | loop, lora])
    command = [sys.executable, "-c", MEASURE, question]
    # the C library gives back what is freed, so the peak is of what is in use
    settings = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=settings)
    return int(done.stdout)


def foretold(loop: dict[str, Any], lora: dict[str, Any] | None) -> int:
    adapter = None if lora is None else LoraConfig.parse(lora, where="test")
    config = LlamaConfig.parse(CONFIG, where="test")
    device = torch.device("cpu")
    return estimate(
        config, LoopConfig.parse(LOOP | loop, where="test"), 512, adapter, device=device
    ).peak


@pytest.mark.parametrize(
    ("loop", "lora"),
    [
        ({}, None),
        ({"micro_rows": 2}, {"base": "nf4", "rank": 8}),
    ],
    ids=["full", "qlora"],
)
def test_what_is_foretold_is_within_a_fifth_of_what_a_process_takes(
    loop: dict[str, Any], lora: dict[str, Any] | None
) -> None:
    assert foretold(loop, lora) == pytest.approx(measured(loop, lora), rel=0.2)


def bytes_of(loop: dict[str, Any] | None = None, lora: dict[str, Any] | None = None) -> Any:
    adapter = None if lora is None else LoraConfig.parse(lora, where="test")
    config = LlamaConfig.parse(CONFIG, where="test")
    settings = LoopConfig.parse(LOOP | (loop or {}), where="test")
    return estimate(config, settings, 512, adapter, device=torch.device("cpu"))


def test_weights_gradients_and_moments_are_counted_exactly() -> None:
    n = LlamaConfig.parse(CONFIG, where="test").n_params()
    full = bytes_of()
    assert (full.weights, full.gradients, full.optimizer) == (4 * n, 4 * n, 8 * n)
    assert full.early_gradients == 4 * 8192 * 512
    moments = bytes_of({"optimizer": "adamw8bit"}).optimizer
    assert moments == pytest.approx(2.03 * n, rel=0.01)
    assert bytes_of({"optimizer_in_backward": True}).gradients == 4 * 8192 * 512


def test_an_adapter_needs_gradients_and_moments_of_itself_only() -> None:
    rank, per_block = 16, 4 * 512 + (512 + 256) * 2 + 3 * (512 + 1408)
    adapter = bytes_of(lora={"rank": rank})
    assert adapter.gradients == 4 * 8 * rank * per_block
    assert (adapter.optimizer, adapter.early_gradients) == (2 * adapter.gradients, 0)
    packed = bytes_of(lora={"rank": rank, "base": "nf4"})
    embeddings, norms = 2 * 8192 * 512, 17 * 512
    blocks = LlamaConfig.parse(CONFIG, where="test").n_params() - embeddings - norms
    expected = 2 * (embeddings + norms) + blocks * 4.127 / 8 + adapter.gradients
    assert packed.weights == pytest.approx(expected, rel=1e-3)


def test_recomputed_activations_are_the_inputs_of_blocks() -> None:
    plain, half, full = (
        bytes_of({"recompute": kind, "recompute_every": every})
        for kind, every in (("none", 1), ("full", 2), ("full", 1))
    )
    inputs = 8 * (4 * 512 * 512 * 4)
    assert inputs < full.activations < 1.5 * inputs
    mean = (plain.activations + full.activations) / 2
    assert half.activations == pytest.approx(mean, rel=0.02)
    assert full.activations < bytes_of({"recompute": "selective"}).activations < plain.activations
    rows = bytes_of({"micro_rows": 2})
    assert rows.activations == pytest.approx(plain.activations / 2, rel=0.02)


def test_an_8b_model_in_4_bits_fits_where_its_full_tuning_does_not() -> None:
    """16 bytes a weight are 128 GB before any activation; QLoRA's paper needs 6 GB for 7B."""
    big = llama_config("llama3.1-8b")
    loop = {"batch_rows": 1, "recompute": "full", "precision": "bf16"}
    settings = LoopConfig.parse(LOOP | loop, where="test")
    device = torch.device("cpu")
    assert estimate(big, settings, 2048, device=device).peak > 16 * 8.0e9
    packed = estimate(big, settings, 2048, LoraConfig(base="nf4"), device=device)
    assert 5e9 < packed.peak < 9e9
    assert dict(packed.table())["peak"] == pytest.approx(packed.peak / 1e9)
