"""Tokens/s on one process and on two: what working together costs.

    python benchmarks/scaling.py                  # replicas, FSDP, tensor and pipeline parallel
    python benchmarks/scaling.py --json

Weak scaling: each process has a core of its own and the same number of rows, so a cost that grows
linearly with the work gives equal tokens/s per process. A model of 8.4M parameters, rows of 512
packed tokens, fp32. The runs of one process and of two alternate; medians of 5 sittings.
"""

import argparse
import json
import multiprocessing
import os
import socket
import statistics
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from puna.core.devices import describe_machine
from puna.core.events import EventLog
from puna.data import PackedRows, TokenFile, write_tokens
from puna.model import Llama, LlamaConfig
from puna.parallel import Layout, joined
from puna.training import LoopConfig, RowSource, next_token, train

VOCAB, ROW, ROWS_EACH, STEPS, SITTINGS = 4096, 512, 4, 4, 5
SHAPE = {"dim": 256, "n_layers": 8, "n_heads": 8, "n_kv_heads": 4, "ffn_dim": 704}
LAYOUTS: dict[str, tuple[int, dict[str, Any]]] = {
    "one process": (1, {}),
    "two replicas": (2, {}),
    "FSDP 2": (2, {"dp_shard": 2}),
    "tensor parallel 2": (2, {"tp": 2}),
    "context parallel 2": (2, {"cp": 2}),
    "pipeline 2, 1F1B": (2, {"pp": 2, "microbatches": 4}),
}


def work(rank: int, count: int, port: int, folder: Path, layout: dict[str, Any]) -> None:
    """One process of a run; the first leaves its tokens/s, of all processes, in ``folder``."""
    os.sched_setaffinity(0, {rank % (os.cpu_count() or 1)})
    torch.set_num_threads(1)
    places = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_PORT": port}
    os.environ |= {name: str(value) for name, value in places.items()}
    os.environ["MASTER_ADDR"] = "127.0.0.1"
    with joined():
        loop = LoopConfig(
            steps=STEPS + 1,
            batch_rows=ROWS_EACH * count,
            learning_rate=1e-4,
            precision="fp32",
            log_every=1,
            checkpoint_every=STEPS + 1,
            layout=Layout.parse(layout, where="layout"),
        )
        model = Llama(LlamaConfig.parse(SHAPE | {"vocab_size": VOCAB}, where="benchmark"))
        model.init_weights(0)
        source = RowSource(PackedRows(TokenFile(folder / "tokens"), ROW), 0, loop)
        seen: list[dict[str, Any]] = []
        with tempfile.TemporaryDirectory() as scratch:
            shared = Path(scratch) if count == 1 else folder / f"checkpoints-{port}"
            train(model, next_token, source, loop, shared, EventLog(readers=(seen.append,)))
        if rank == 0:
            speeds = [e["tokens_per_s"] for e in seen if e["kind"] == "train_step"]
            (folder / "speed").write_text(str(statistics.median(speeds[1:])))  # the first warms up


def measure(folder: Path, count: int, layout: dict[str, Any]) -> float:
    """Tokens/s of all processes, the median step of one run."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    spawn = multiprocessing.get_context("spawn")
    started = [
        spawn.Process(target=work, args=(rank, count, port, folder, layout))
        for rank in range(count)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join()
    if any(process.exitcode for process in started):
        raise SystemExit("a process failed: its error stands above")
    return float((folder / "speed").read_text())


def main() -> None:
    """Measure every layout in turn, several times, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--sittings", type=int, default=SITTINGS)
    parser.add_argument("--only", nargs="*", default=[], help="names of layouts besides the first")
    asked = parser.parse_args()
    names = [n for n in LAYOUTS if n == "one process" or not asked.only or n in asked.only]
    speeds: dict[str, list[float]] = {name: [] for name in names}
    rng = np.random.default_rng(0)
    documents = [(rng.integers(0, VOCAB, n).tolist(), None) for n in rng.integers(32, ROW, 600)]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_tokens(folder / "tokens", documents, VOCAB)
        for _ in range(asked.sittings):
            for name in names:
                speeds[name].append(measure(folder, *LAYOUTS[name]))
    alone = statistics.median(speeds["one process"])
    rows = [
        {
            "layout": name,
            "processes": LAYOUTS[name][0],
            "tokens_per_s_per_process": round(statistics.median(found) / LAYOUTS[name][0], 1),
            "of_one_process": round(statistics.median(found) / LAYOUTS[name][0] / alone, 3),
        }
        for name, found in speeds.items()
    ]
    if asked.json:
        print(json.dumps({"machine": describe_machine(), "rows": rows}))
        return
    print(describe_machine())
    for row in rows:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")


if __name__ == "__main__":
    main()
