"""Training speed and memory beside transformers: the same step on the same weights and batch.

    python benchmarks/train_cpu.py            # eager and compiled, 5 measured steps of each

SmolLM2-135M, batch 4 x 512, bf16 activations over fp32 weights, fused AdamW on both
sides. Each side has a process of its own (for its peak memory); the steps of the two alternate, so
both meet the same weather. Compiled means torch.compile on the whole model for transformers and on
its blocks for Puna, which is what each offers its users.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from puna.core.devices import describe_machine, peak_flops
from puna.formats import load_model, load_tokenizer
from puna.formats.resolve import smollm2_folder
from puna.model import cross_entropy_sum
from puna.training import LoopConfig
from puna.training.optimizer import build_optimizers, learning_rate, scale_and_clip, update

BATCH, TIME = 4, 512
LEARNING_RATE = 1e-5
SIDES = ("puna", "transformers")


def batch() -> torch.Tensor:
    """Rows of real text: a file of Python's library."""
    ids = load_tokenizer("smollm2").encode(Path(argparse.__file__).read_text())
    return torch.tensor(ids[: BATCH * TIME]).view(BATCH, TIME)


def puna_step(compiled: bool) -> Callable[[], float]:
    model, _ = load_model("smollm2")
    model.compute_dtype = torch.bfloat16
    config = LoopConfig(steps=1, batch_rows=BATCH, learning_rate=LEARNING_RATE)
    optimizers = build_optimizers(model, config)
    ids = batch()
    labels = torch.cat([ids[:, 1:], torch.full((BATCH, 1), -100)], dim=1)
    if compiled:
        model.compile_blocks()

    def step() -> float:
        loss, count = cross_entropy_sum(model.hidden(ids), model.head_weight(), labels)
        loss.backward()
        scale_and_clip(model, count, config.clip_norm)
        update(optimizers, learning_rate(config, 0))
        return float(loss.detach()) / count

    return step


def transformers_step(compiled: bool) -> Callable[[], float]:
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(smollm2_folder(), dtype=torch.float32)
    parameters = list(model.parameters())
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": 0.1},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LEARNING_RATE, betas=(0.9, 0.95), fused=True)
    ids = batch()
    run = torch.compile(model) if compiled else model

    def step() -> float:
        with torch.autocast("cpu", torch.bfloat16):
            loss = run(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return float(loss.detach())

    return step


def work(side: str, compiled: bool) -> None:
    """Answer each line on standard input with the time and loss of one step."""
    step = (puna_step if side == "puna" else transformers_step)(compiled)
    for _ in sys.stdin:
        started = time.perf_counter()
        loss = step()
        seconds = time.perf_counter() - started
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        print(json.dumps({"seconds": seconds, "loss": loss, "peak_bytes": peak}), flush=True)


def compare(compiled: bool, steps: int) -> dict[str, Any]:
    """Alternate the sides' steps; medians after two steps of warm-up."""
    mode = ["--compiled"] if compiled else []
    workers = {
        side: subprocess.Popen(
            [sys.executable, __file__, "--side", side, *mode],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for side in SIDES
    }
    answers: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    try:
        for _ in range(steps + 2):
            for side, worker in workers.items():
                assert worker.stdin is not None
                assert worker.stdout is not None
                worker.stdin.write("step\n")
                worker.stdin.flush()
                answers[side].append(json.loads(worker.stdout.readline()))
    finally:
        for worker in workers.values():
            worker.kill()
            worker.wait()
    result: dict[str, Any] = {}
    for side, found in answers.items():
        seconds = statistics.median(answer["seconds"] for answer in found[2:])
        result[side] = {
            "tokens_per_s": round(BATCH * TIME / seconds, 1),
            "peak_gb": round(found[-1]["peak_bytes"] / 1e9, 2),
            "losses": [round(answer["loss"], 4) for answer in found[:3]],
        }
    ours, theirs = result["puna"], result["transformers"]
    result["speed_ratio"] = round(ours["tokens_per_s"] / theirs["tokens_per_s"], 3)
    result["memory_ratio"] = round(ours["peak_gb"] / theirs["peak_gb"], 3)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--side", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--compiled", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    if arguments.side:
        work(arguments.side, arguments.compiled)
        return
    model, _ = load_model("smollm2")
    report: dict[str, Any] = {"machine": describe_machine()}
    for name, compiled in (("eager", False), ("compiled", True)):
        report[name] = compare(compiled, arguments.steps)
        print(name, json.dumps(report[name]), flush=True)
    peak = peak_flops("cpu", torch.bfloat16)
    flops = model.config.flops_per_token(TIME // 2)
    for name in ("eager", "compiled"):
        for side in SIDES:
            rate = report[name][side]["tokens_per_s"]
            report[name][side]["mfu"] = round(rate * flops / peak, 3)
    report["bf16_peak_gflops"] = round(peak / 1e9)
    print(json.dumps(report, indent=2))


if __name__ == "__main__":
    main()
