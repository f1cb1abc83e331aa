"""The engine on one GPU: the same text as on CPU, and its speed beside transformers.

    python benchmarks/inference_gpu.py              # about 3 minutes on an H100
    python benchmarks/inference_gpu.py --parity     # correctness only

Parity: a small model in fp32 on the GPU against the same on CPU: losses and gradients of packed
rows with shared prefixes, products in float8, greedy texts of many rows with and without graphs.
Speed: models of 1B and 8B shape with random weights in bf16, prompts of 512 tokens.
``transformers`` generates with SDPA and its dynamic cache. The bandwidth's share counts the weights
that each token reads, against what reading memory was measured to give.
"""

import argparse
import statistics
import time
from pathlib import Path
from typing import Any, cast

import torch
from harness import Claim, finish, print_table
from train_gpu import new_model, peer_model, synchronise

from puna.core.devices import default_device, describe_machine, memory_bandwidth
from puna.inference import Engine, EngineConfig, Request, Sampling
from puna.model import Llama, LlamaConfig, cross_entropy_sum, token_logprobs
from puna.model.config import llama_config
from puna.model.float8 import Float8Linear
from puna.model.linear import Linear
from puna.tokenizer import Tokenizer

SMALL = {"vocab_size": 512, "dim": 256, "n_layers": 3, "n_heads": 4, "n_kv_heads": 2,
         "ffn_dim": 512, "context": 1024}  # fmt: skip
PROMPT, NEW, ROWS = 512, 128, 64
PEER_NEW = 48  # tokens that transformers writes: each takes the same time
REPEATS = 5


class Numbers:
    """As much of a tokenizer as the engine asks for: each id's text is its number."""

    special_ids: frozenset[int] = frozenset()

    def token_bytes(self, id: int) -> bytes:
        return f"{id} ".encode()


def a_tokenizer() -> Tokenizer:
    return cast(Tokenizer, Numbers())


def relative(found: torch.Tensor, expected: torch.Tensor) -> float:
    found, expected = found.detach().cpu().double(), expected.detach().cpu().double()
    return float((found - expected).norm() / expected.norm())


def packed_loss(model: Llama, device: torch.device) -> list[torch.Tensor]:
    """Loss, log-probabilities and some gradients of packed rows of which one shares a prefix."""
    generator = torch.Generator().manual_seed(2)
    ids = torch.randint(0, 512, (2, 600), generator=generator)
    documents = torch.tensor([[0] * 200 + [1] * 150 + [2] * 250, [0] * 590 + [-1] * 10])
    prefixes = documents.clone()
    prefixes[0, 350:] = 0
    labels = ids.roll(-1, 1).masked_fill(documents < 0, -100)
    ids, documents, prefixes, labels = (t.to(device) for t in (ids, documents, prefixes, labels))
    hidden = model.hidden(ids, documents_bt=documents, prefixes_bt=prefixes)
    loss, _ = cross_entropy_sum(hidden, model.head_weight(), labels)
    logprobs = token_logprobs(hidden, model.head_weight(), labels)
    (loss + (logprobs * logprobs).sum()).backward()
    layer: Any = model.model.layers[0]
    weights = (layer.self_attn.k_proj.weight, layer.mlp.up_proj.weight, model.head_weight())
    return [loss, logprobs, *(w.grad for w in weights if w.grad is not None)]


def greedy(model: Llama, tokenizer: Tokenizer, **settings: Any) -> list[list[int]]:
    fields = {"weights": "fp32", "cache_tokens": 16384, **settings}
    engine = Engine(model, tokenizer, EngineConfig.parse(fields, where="benchmark"))
    prompts = [list(range(5 + n, 40 + 7 * n)) for n in range(11)]
    sampling = Sampling(temperature=0, max_new_tokens=48, ignore_stop_tokens=True)
    written: dict[int, list[int]] = {engine.submit(Request(p, sampling)): [] for p in prompts}
    while not engine.idle:
        for handle, delta in engine.step():
            assert delta.error is None, delta.error
            written[handle] += delta.ids
    return list(written.values())


def same_share(found: list[list[int]], expected: list[list[int]]) -> float:
    """Share of texts that are equal to the last token."""
    return sum(a == b for a, b in zip(found, expected, strict=True)) / len(expected)


def parity() -> list[Claim]:
    config, device = LlamaConfig(**SMALL), default_device()
    sides = []
    for place in (torch.device("cpu"), device):
        model = Llama(config)
        model.init_weights(seed=1)
        sides.append(model.to(place))
    here, there = (packed_loss(model, model.device) for model in sides)
    names = ("loss", "log-probabilities", "gradient k", "gradient up", "gradient head")
    claims = [
        Claim(f"GPU to CPU, fp32, {name}", relative(b, a), 1e-4, at_most=True)
        for name, a, b in zip(names, here, there, strict=True)
    ]
    sides[1].compute_dtype = torch.bfloat16
    for parameter in sides[1].parameters():
        parameter.grad = None
    half = packed_loss(sides[1], device)
    claims += [
        Claim(f"bf16 to fp32, {name}", relative(b, a), 5e-2, at_most=True)
        for name, a, b in zip(names, here, half, strict=True)
    ]
    layer = Linear(256, 512).to(device)
    torch.nn.init.normal_(layer.weight, 0, 0.02)
    x = torch.randn(300, 256, device=device)
    expected = layer(x)
    layer.__class__ = Float8Linear
    claims.append(
        Claim("float8 product", relative(layer(x.bfloat16()), expected), 2**-4, at_most=True)
    )
    tokenizer = a_tokenizer()
    sides[1].compute_dtype = None
    on_cpu = greedy(sides[0], tokenizer)
    for name, settings in (
        ("eager", {}),
        ("graphs", {"compile": True}),
        ("graphs, chunks of 16", {"compile": True, "chunk_tokens": 16}),
        (
            "graphs, no prefix cache, 3 rows",
            {"compile": True, "prefix_cache": False, "max_rows": 3},
        ),
        ("speculation", {"compile": True, "speculation": 4}),
    ):
        found = greedy(sides[1], tokenizer, **settings)
        claims.append(Claim(f"greedy texts equal to CPU's: {name}", same_share(found, on_cpu), 1))
    int8 = greedy(sides[1], tokenizer, weights="int8", compile=True)
    claims.append(
        Claim("int8, graphs: first tokens", same_share([t[:1] for t in int8],
              [t[:1] for t in on_cpu]), 0.8)
    )  # fmt: skip
    return claims


class Measured:
    """Speeds of an engine."""

    def __init__(self, model: Llama, weights: str, *, graphs: bool) -> None:
        fields = {"weights": weights, "compile": graphs, "prefix_cache": False,
                  "cache_tokens": ROWS * (PROMPT + NEW + 64) + 16384, "chunk_tokens": 8192,
                  "max_rows": ROWS}  # fmt: skip
        self.engine = Engine(model, a_tokenizer(), EngineConfig.parse(fields, where="benchmark"))
        self.vocab_size = model.config.vocab_size
        self._generator = torch.Generator().manual_seed(1)

    def times(self, n_rows: int, n_prompt: int, n_new: int) -> tuple[float, float]:
        """Seconds until all first tokens are there, and from then to the end."""
        sampling = Sampling(temperature=0, max_new_tokens=n_new, ignore_stop_tokens=True)
        for _ in range(n_rows):
            ids = torch.randint(0, self.vocab_size, (n_prompt,), generator=self._generator)
            self.engine.submit(Request(ids.tolist(), sampling))
        began, first, seen = time.perf_counter(), 0.0, set()
        while not self.engine.idle:
            for handle, delta in self.engine.step():
                assert delta.error is None, delta.error
                seen.add(handle)
            if not first and len(seen) == n_rows:
                first = time.perf_counter()
        return first - began, time.perf_counter() - first

    def figures(self) -> dict[str, float]:
        self.times(1, PROMPT, 8)
        self.times(ROWS, PROMPT, 8)
        single = statistics.median(self.times(1, PROMPT, NEW)[1] for _ in range(REPEATS))
        many = statistics.median(self.times(ROWS, PROMPT, NEW)[1] for _ in range(REPEATS))
        self.times(1, 8000, 1)
        prefill = statistics.median(self.times(1, 8000, 1)[0] for _ in range(REPEATS))
        return {
            "decode": (NEW - 1) / single,
            f"decode of {ROWS}": ROWS * (NEW - 1) / many,
            "prefill": 8000 / prefill,
        }


def peer_figures(config: LlamaConfig) -> dict[str, float]:
    """transformers' ``generate`` in bf16."""
    device, model = default_device(), peer_model(config, torch.bfloat16).eval()

    @torch.inference_mode()
    def seconds(n_rows: int, n_prompt: int, n_new: int) -> float:
        ids = torch.randint(0, config.vocab_size, (n_rows, n_prompt), device=device)
        synchronise()
        began = time.perf_counter()
        model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=n_new,
                       min_new_tokens=n_new, do_sample=False)  # fmt: skip
        synchronise()
        return time.perf_counter() - began

    def decode(n_rows: int) -> float:
        first = statistics.median(seconds(n_rows, PROMPT, 1) for _ in range(3))
        whole = statistics.median(seconds(n_rows, PROMPT, PEER_NEW) for _ in range(3))
        return n_rows * (PEER_NEW - 1) / (whole - first)

    seconds(1, PROMPT, 4)
    figures = {"decode": decode(1), f"decode of {ROWS}": decode(ROWS)}
    seconds(1, 8000, 1)
    prefill = statistics.median(seconds(1, 8000, 1) for _ in range(3))
    return figures | {"prefill": 8000 / prefill}


def speeds(sizes: list[str], tiny: bool) -> tuple[list[dict[str, Any]], list[Claim]]:
    rows, claims = [], []
    for size in sizes:
        changes = {"rope_scaling": None, "context": 8192}
        changes |= SMALL | {"context": 8192} if tiny else {}
        config = llama_config(size, **changes)
        model = new_model(config, default_device()).bfloat16()
        found: dict[str, dict[str, float]] = {}
        for name, weights, graphs in (
            ("bf16", "bf16", False), ("bf16, graphs", "bf16", True), ("int8, graphs", "int8", True),
        ):  # fmt: skip
            measured = Measured(model, weights, graphs=graphs)
            found[name] = measured.figures()
            read = measured.engine.weight_bytes * found[name]["decode"]
            found[name]["bandwidth share"] = read / memory_bandwidth(default_device().type)
            print(size, name, found[name], flush=True)
            del measured
        del model
        found["transformers"] = peer_figures(config)
        print(size, "transformers", found["transformers"], flush=True)
        rows += [{"size": size, "side": name, **figures} for name, figures in found.items()]
        best, peer = found["bf16, graphs"], found["transformers"]
        claims += [
            Claim(f"{size}: {what}", best[what], least, peer[what], "transformers")
            for what, least in (("decode", 3), (f"decode of {ROWS}", 1), ("prefill", 1))
        ]
    return rows, claims


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--parity", action="store_true", help="correctness only")
    parser.add_argument("--sizes", nargs="+", default=["llama3.2-1b", "llama3.1-8b"])
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try it on CPU")
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    arguments = parser.parse_args()
    if not (torch.cuda.is_available() or arguments.tiny):
        parser.error("no GPU is here: --tiny tries the script on CPU")
    claims, rows = parity(), []
    if not arguments.parity:
        rows, more = speeds(arguments.sizes, arguments.tiny)
        claims += more
        columns = ["decode", f"decode of {ROWS}", "prefill"]
        print_table(
            ["size", "side", *columns, "of bandwidth"],
            [
                [r["size"], r["side"], *(f"{r[c]:,.0f}" for c in columns),
                 f"{r.get('bandwidth share', 0):.0%}"]
                for r in rows
            ],
        )  # fmt: skip
    finish({"machine": describe_machine(), "rows": rows}, claims, arguments.json)


if __name__ == "__main__":
    main()
