"""What LoRA adapters cost: one batch of texts with none, one, four and sixteen of them.

    python benchmarks/adapters.py                       # medians of 5, bf16 and w8a8
    python benchmarks/adapters.py --weights bf16 --repeats 3

SmolLM2-135M, 16 texts together, 64 tokens read and 64 written each, no server. The adapters are
random, of rank 16 on all seven products of every block: 4.9 million numbers each, about what people
train. The texts take turns with the adapters, so with 16 each has one of its own.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from harness import THREADS, all_cores, print_table, rounds
from safetensors.torch import save_file

from puna.core.devices import describe_machine
from puna.inference import Engine, EngineConfig, Request, Sampling, generate, load_engine
from puna.model import LlamaConfig

ROWS, PROMPT, ANSWER = 16, 64, 64
COUNTS = (0, 1, 4, 16)
RANK = 16


def write_adapter(folder: Path, config: LlamaConfig, seed: int) -> Path:
    """An adapter of small random changes, as PEFT writes it."""
    generator = torch.Generator().manual_seed(seed)
    keys, queries = config.n_kv_heads * config.head_dim, config.n_heads * config.head_dim
    shapes = {f"self_attn.{part}_proj": (keys, config.dim) for part in "kv"}
    shapes |= {"self_attn.q_proj": (queries, config.dim), "self_attn.o_proj": (config.dim, queries)}
    shapes |= {f"mlp.{part}_proj": (config.ffn_dim, config.dim) for part in ("gate", "up")}
    shapes |= {"mlp.down_proj": (config.dim, config.ffn_dim)}
    tensors = {}
    for layer in range(config.n_layers):
        for name, (outputs, inputs) in shapes.items():
            stem = f"base_model.model.model.layers.{layer}.{name}.lora_"
            for side, shape in (("A", (RANK, inputs)), ("B", (outputs, RANK))):
                tensors[f"{stem}{side}.weight"] = 0.01 * torch.randn(shape, generator=generator)
    folder.mkdir()
    settings = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "target_modules": list(shapes)}
    (folder / "adapter_config.json").write_text(json.dumps(settings))
    save_file(tensors, folder / "adapter_model.safetensors")
    return folder


def engine_with_adapters(weights: str, folder: Path) -> Engine:
    """The model with as many adapters as the largest batch uses."""
    fields = {"weights": weights, "compile": True, "prefix_cache": False, "cache_tokens": 4096}
    engine = load_engine("smollm2", EngineConfig.parse(fields, where="engine"))
    for number in range(max(COUNTS)):
        own = folder / str(number)
        if not own.exists():
            write_adapter(own, engine.model.config, number)
        engine.load_adapter(str(number), own)
    return engine


def batch(engine: Engine, n_adapters: int) -> Mapping[str, float]:
    """Tokens written per second while every row uses one of ``n_adapters``; 0 is none."""
    sampling = Sampling(max_new_tokens=ANSWER, ignore_stop_tokens=True)
    prompts = torch.randint(
        1000, 40_000, (ROWS, PROMPT), generator=torch.Generator().manual_seed(1)
    )
    requests = [
        Request(prompt, sampling, adapter=str(row % n_adapters) if n_adapters else None)
        for row, prompt in enumerate(prompts.tolist())
    ]
    began = time.perf_counter()
    written = sum(len(answer.ids) for answer in generate(engine, requests))
    assert written == ROWS * ANSWER, written
    return {"tokens_per_s": written / (time.perf_counter() - began)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", nargs="+", default=["bf16", "w8a8"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the figures there too")
    options = parser.parse_args()
    all_cores()
    torch.set_num_threads(THREADS)
    report: dict[str, Any] = {"machine": describe_machine()}
    with tempfile.TemporaryDirectory() as folder:
        for weights in options.weights:
            engine = engine_with_adapters(weights, Path(folder))
            measures: dict[str, Callable[[], Mapping[str, float]]] = {
                f"adapters: {n}": partial(batch, engine, n) for n in COUNTS
            }
            report[weights] = found = rounds(measures, options.repeats)
            without = found["adapters: 0"]["tokens_per_s"]
            rates = {name: figures["tokens_per_s"] for name, figures in found.items()}
            print(f"\n{weights}, {ROWS} texts")
            print_table(
                ["", "tokens/s", "of that without"],
                [[name, f"{rate:,.0f}", f"{rate / without:.0%}"] for name, rate in rates.items()],
            )
    print("\n" + ", ".join(f"{key} {value}" for key, value in report["machine"].items()))
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
