"""Training speed on one GPU beside transformers: TFLOP/s of whole models and of an 8B's blocks.

    python benchmarks/train_gpu.py                       # all sizes: about 6 minutes on an H100
    python benchmarks/train_gpu.py --sizes 1b --log runs/gpu.jsonl

Whole 1B and 3B models and as many blocks of an 8B, with its embedding and head, as the memory
holds; fp32 weights and AdamW, rows of 8,192 tokens, vocabulary 128,256. Puna runs its own training
loop with compiled blocks: rows packed with documents of log-normal length (median 1,024) that do
not see each other, then rows of one document each, then packed ones in float8. transformers runs
``LlamaForCausalLM`` under autocast with SDPA's flash attention and fused AdamW, rows of one
document each, which spares it a mask; two rows, or one where two do not fit. Each side has a
process of its own; figures are medians over steps after two of warm-up, timed with the device
synchronised.

TFLOP/s are 6 per weight that multiplies, and for attention 12 * layers * heads * head_dim times
the row's length, as torchtitan counts; the second figure counts only the positions that are
attended to. Recomputed work does not count.
"""

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import Claim, finish, print_table

from puna.core.devices import default_device, describe_machine, peak_flops
from puna.core.events import EventLog
from puna.data import PackedRows, write_tokens
from puna.model import Llama, LlamaConfig, cross_entropy_sum
from puna.model.config import llama_config
from puna.model.float8 import FORWARD
from puna.training import LoopConfig, next_token, train

LENGTH, WARM_UP = 8192, 2
LEAST, RATIO, FLOAT8_RATIO, LOSS_SHARE = 400, 1.1, 1.25, 0.05
# size: (published size, layers on 80 GB, layers on 140 GB, Puna's rows on each)
SIZES = {
    "8b-blocks": ("llama3-8b", (8, 16), (2, 2)),
    "3b": ("llama3.2-3b", (28, 28), (1, 2)),
    "1b": ("llama3.2-1b", (16, 16), (2, 4)),
}
TINY = {"vocab_size": 512, "dim": 64, "n_heads": 4, "n_kv_heads": 2, "ffn_dim": 128}


class EnoughSteps(Exception):
    """What was to be measured is measured."""


def large() -> bool:
    """Whether this GPU has far more than 80 GB."""
    on_gpu = torch.cuda.is_available()
    return on_gpu and torch.cuda.get_device_properties(0).total_memory > 100e9


def config_of(size: str, tiny: bool) -> LlamaConfig:
    name, layers, _ = SIZES[size]
    changes: dict[str, Any] = {"n_layers": layers[large()], "rope_scaling": None}
    changes |= {"context": LENGTH}
    if tiny:
        changes |= TINY | {"n_layers": 2, "context": 256}
    return llama_config(name, **changes)


def new_model(config: LlamaConfig, device: torch.device) -> Llama:
    """With random weights drawn on the device."""
    with device:
        model = Llama(config)
        torch.manual_seed(1)
        for parameter in model.parameters():
            with torch.no_grad():
                if parameter.ndim > 1:
                    parameter.normal_(0, 0.02)
                else:
                    parameter.fill_(1)
    return model


def synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def peak_gib() -> float:
    return torch.cuda.max_memory_allocated() / 2**30 if torch.cuda.is_available() else 0.0


def packed_rows(folder: Path, config: LlamaConfig, *, whole: bool) -> PackedRows:
    rng = np.random.default_rng(3)
    length, items = config.context, []
    for _ in range(200 if not whole else 40):
        drawn = int(np.clip(rng.lognormal(np.log(length / 8), 0.8), 16, length))
        items.append(
            (rng.integers(0, config.vocab_size, length if whole else drawn).tolist(), None)
        )
    name = "whole" if whole else "packed"
    return PackedRows(write_tokens(folder / name, items, config.vocab_size), length)


def attended(rows: PackedRows) -> float:
    """Positions a token attends to, on average."""
    lengths = rows.packing.length.astype(np.float64)
    return float((lengths * (lengths + 1) / 2).sum() / lengths.sum())


def steps_of_loop(
    model: Llama, rows: PackedRows, n_rows: int, precision: str, steps: int, folder: Path
) -> dict[str, float]:
    """Medians over steps of Puna's own loop."""
    loop = LoopConfig.parse(
        {
            "steps": 1000,
            "batch_rows": n_rows,
            "learning_rate": 1e-5,
            "precision": precision,
            "compile": model.device.type == "cuda",
            "checkpoint_every": 1000,
            "log_every": 1,
        },
        where="loop",
    )
    seconds: list[float] = []
    last = [0.0]
    losses: list[float] = []

    def after_step(done: int, _model: object) -> None:
        synchronise()
        now = time.perf_counter()
        if done > WARM_UP:
            seconds.append(now - last[0])
        last[0] = now
        if len(seconds) == steps:
            raise EnoughSteps

    def source(step: int, _share: object) -> list[Any]:
        wanted = (np.arange(n_rows) + step * n_rows) % len(rows)
        return [rows.rows(wanted)]

    events = EventLog(readers=(lambda e: losses.append(e.get("loss", 0.0)),))
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with suppress(EnoughSteps):
        train(model, next_token, source, loop, folder / precision, events, after_step=after_step)
    step_s = statistics.median(seconds)
    tokens = n_rows * rows.packing.row_length * (1 - rows.packing.padding)
    return {
        "tokens_per_s": tokens / step_s,
        "step_s": step_s,
        "rows": n_rows,
        "gib": peak_gib(),
        "attended": attended(rows),
        "first_loss": losses[0],
        "last_loss": losses[-1],
    }


def run_puna(size: str, tiny: bool, steps: int, say: Callable[..., None]) -> None:
    config, device = config_of(size, tiny), default_device()
    n_rows = 2 if tiny else SIZES[size][2][large()]
    with tempfile.TemporaryDirectory() as scratch:
        packed = packed_rows(Path(scratch), config, whole=False)
        whole = packed_rows(Path(scratch), config, whole=True)
        model = new_model(config, device)
        for name, rows, precision in (
            ("packed documents, bf16", packed, "bf16"),
            ("one document a row, bf16", whole, "bf16"),
            ("packed documents, float8", packed, "float8"),
        ):
            folder = Path(scratch) / name
            found = steps_of_loop(model, rows, n_rows, precision, steps, folder)
            say("puna", name, found)


def peer_model(config: LlamaConfig, dtype: torch.dtype) -> Any:
    """transformers' model of this shape, random, on the device, with SDPA."""
    from transformers import LlamaConfig as PeerConfig
    from transformers import LlamaForCausalLM

    with default_device():
        return LlamaForCausalLM._from_config(
            PeerConfig(
                vocab_size=config.vocab_size,
                hidden_size=config.dim,
                intermediate_size=config.ffn_dim,
                num_hidden_layers=config.n_layers,
                num_attention_heads=config.n_heads,
                num_key_value_heads=config.n_kv_heads,
                max_position_embeddings=config.context,
                tie_word_embeddings=config.tie_embeddings,
            ),
            attn_implementation="sdpa",
            dtype=dtype,
        )


def run_transformers(size: str, tiny: bool, steps: int, say: Callable[..., None]) -> None:
    config, device = config_of(size, tiny), default_device()
    model = peer_model(config, torch.float32)
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, betas=(0.9, 0.95), fused=True)
    generator = torch.Generator(device).manual_seed(1)
    kind = device.type
    for n_rows in (2, 1):
        seconds: list[float] = []
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        try:
            for step in range(WARM_UP + steps):
                ids = torch.randint(0, config.vocab_size, (n_rows, config.context),
                                    generator=generator, device=device)  # fmt: skip
                synchronise()
                started = time.perf_counter()
                with torch.autocast(kind, torch.bfloat16):
                    loss = model(input_ids=ids, labels=ids, use_cache=False).loss
                loss.backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
                optimizer.step()
                optimizer.zero_grad()
                synchronise()
                if step >= WARM_UP:
                    seconds.append(time.perf_counter() - started)
        except torch.OutOfMemoryError:
            continue
        step_s = statistics.median(seconds)
        found = {"tokens_per_s": n_rows * config.context / step_s, "step_s": step_s,
                 "rows": n_rows, "gib": peak_gib(), "attended": config.context / 2}  # fmt: skip
        say("transformers", "one document a row, bf16", found)
        return


def run_loss(size: str, tiny: bool, steps: int, say: Callable[..., None]) -> None:
    """Head and loss alone: time and peak memory beyond inputs and the gradients they return."""
    config, device = config_of(size, tiny), default_device()
    n_tokens = 4 * config.context
    hidden = torch.randn(1, n_tokens, config.dim, device=device).bfloat16().requires_grad_()
    weight = (0.02 * torch.randn(config.vocab_size, config.dim, device=device)).requires_grad_()
    labels = torch.randint(0, config.vocab_size, (1, n_tokens), device=device)
    seconds, most = [], 0
    for step in range(WARM_UP + steps):
        hidden.grad = weight.grad = None
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if torch.cuda.is_available() else 0
        synchronise()
        started = time.perf_counter()
        cross_entropy_sum(hidden, weight, labels)[0].backward()
        synchronise()
        if step >= WARM_UP:
            seconds.append(time.perf_counter() - started)
        if torch.cuda.is_available():
            most = torch.cuda.max_memory_allocated() - before
    returned = 2 * hidden.numel() + 4 * weight.numel()
    cast = 2 * weight.numel()  # the weight in bf16, which every product needs
    found = {"bytes": most - returned - cast, "logit_bytes": 4 * n_tokens * config.vocab_size,
             "tflops": 6 * n_tokens * weight.numel() / statistics.median(seconds) / 1e12,
             "step_s": statistics.median(seconds)}  # fmt: skip
    say("puna", "head and loss", found)


SIDES = {"puna": run_puna, "transformers": run_transformers, "loss": run_loss}


def answer(side: str, size: str, tiny: bool, steps: int) -> None:
    """One side's process: a line of JSON for each thing measured."""
    config = config_of(size, tiny)

    def say(who: str, what: str, found: dict[str, float]) -> None:
        if "tokens_per_s" in found:
            for key, length in (("tflops", config.context), ("attended_tflops", found["attended"])):
                per_token = config.flops_per_token(length)  # type: ignore[arg-type]
                found[key] = found["tokens_per_s"] * per_token / 1e12
        row = {"size": size, "side": who, "what": what, "layers": config.n_layers, **found}
        print("FOUND " + json.dumps(row), flush=True)

    if side == "peaks":
        kind = default_device().type
        dtypes = {"bf16": torch.bfloat16} | ({"float8": FORWARD} if kind == "cuda" else {})
        say("device", "peaks", {n: peak_flops(kind, d) / 1e12 for n, d in dtypes.items()})
        return
    SIDES[side](size, tiny, steps, say)


def ask(side: str, size: str, arguments: argparse.Namespace, log: Path) -> list[dict[str, Any]]:
    command = [sys.executable, __file__, "--side", side, "--sizes", size]
    command += ["--steps", str(arguments.steps), *(["--tiny"] if arguments.tiny else [])]
    found = []
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("FOUND "):
                found.append(json.loads(line[6:]))
                print(line[6:], end="", flush=True)
                with log.open("a") as handle:
                    handle.write(line[6:])
    if process.returncode:
        print(f"{side} {size} ended with {process.returncode}", file=sys.stderr, flush=True)
    return found


def claims_of(rows: list[dict[str, Any]]) -> list[Claim]:
    claims = []
    for size in SIZES:
        of = {r["what"]: r for r in rows if r["size"] == size and r["side"] == "puna"}
        peers = [r for r in rows if r["size"] == size and r["side"] == "transformers"]
        bf16, whole = of.get("packed documents, bf16"), of.get("one document a row, bf16")
        if bf16:
            claims.append(Claim(f"{size}: TFLOP/s, packed", bf16["tflops"], LEAST, goal=500))
        if whole and peers:
            best = max(peers, key=lambda r: r["tokens_per_s"])
            claims.append(
                Claim(f"{size}: tokens/s, one document", whole["tokens_per_s"], RATIO,
                      best["tokens_per_s"], "transformers")
            )  # fmt: skip
        if bf16 and (eight := of.get("packed documents, float8")):
            claims.append(
                Claim(f"{size}: float8", eight["tokens_per_s"], FLOAT8_RATIO,
                      bf16["tokens_per_s"], "bf16")
            )  # fmt: skip
        if loss := of.get("head and loss"):
            claims.append(
                Claim(f"{size}: loss memory, bytes", loss["bytes"], LOSS_SHARE,
                      loss["logit_bytes"], "fp32 logits", at_most=True)
            )  # fmt: skip
    return claims


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=(*SIDES, "peaks"), help=argparse.SUPPRESS)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--sides", nargs="+", choices=SIDES, default=list(SIDES))
    parser.add_argument("--steps", type=int, default=7, help="measured steps of each side")
    parser.add_argument("--tiny", action="store_true", help="tiny models, to try the script on CPU")
    parser.add_argument("--log", type=Path, default=Path("runs/train_gpu.jsonl"))
    parser.add_argument("--json", type=Path, help="also write everything to this file")
    arguments = parser.parse_args()
    if arguments.side:
        answer(arguments.side, arguments.sizes[0], arguments.tiny, arguments.steps)
        return
    if not (torch.cuda.is_available() or arguments.tiny):
        parser.error("no GPU is here: --tiny tries the script on CPU")
    arguments.log.parent.mkdir(parents=True, exist_ok=True)
    found = ask("peaks", arguments.sizes[0], arguments, arguments.log)
    for size in arguments.sizes:
        for side in arguments.sides:
            found += ask(side, size, arguments, arguments.log)
    head = ["size", "layers", "side", "what", "rows", "tokens/s", "TFLOP/s", "attended", "GiB"]
    print_table(
        head,
        [
            [r["size"], str(r["layers"]), r["side"], r["what"], str(r["rows"]),
             f"{r['tokens_per_s']:,.0f}", f"{r['tflops']:.0f}", f"{r['attended_tflops']:.0f}",
             f"{r['gib']:.1f}"]
            for r in found if "tokens_per_s" in r
        ],
    )  # fmt: skip
    finish({"machine": describe_machine(), "rows": found}, claims_of(found), arguments.json)


if __name__ == "__main__":
    main()
