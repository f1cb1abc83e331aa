"""Tokens/s on one process and on two, measured, and on up to 24,576 GPUs, planned.

    python benchmarks/scaling.py                  # replicas, FSDP, tensor and pipeline parallel
    python benchmarks/scaling.py --json
    python benchmarks/scaling.py --sittings 3 --out benchmarks/scaling_processes.json
    python benchmarks/scaling.py --draw docs/pictures/linear-cost.svg    # from what --out kept

Weak scaling: each process has a core of its own and the same number of rows, so a cost that grows
linearly with the work gives equal tokens/s per process. A model of 8.4M parameters, rows of 512
packed tokens, fp32. Runs of one process and of two alternate; medians of 5 sittings. The picture
has the planner's strong and weak scaling of 405B beside it (``benchmarks/planner.py``).
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
from matplotlib import rc_context
from matplotlib.figure import Figure
from planner import scaling_points

from puna.core.devices import describe_machine
from puna.core.events import EventLog
from puna.core.files import write_json
from puna.data import PackedRows, TokenFile, write_tokens
from puna.model import Llama, LlamaConfig
from puna.parallel import Layout, joined
from puna.training import LoopConfig, RowSource, next_token, train

KEPT = Path(__file__).parent / "scaling_processes.json"
GPUS = [1024, 2048, 4096, 8192, 16384, 24576]
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
    parser.add_argument("--out", type=Path, help="keep runs here, and go on from what is kept")
    parser.add_argument("--draw", type=Path, metavar="SVG", help="measure nothing, draw")
    asked = parser.parse_args()
    if asked.draw:
        draw(json.loads((asked.out or KEPT).read_text())["rows"], asked.draw)
        return
    names = [n for n in LAYOUTS if n == "one process" or not asked.only or n in asked.only]
    kept = json.loads(asked.out.read_text())["runs"] if asked.out and asked.out.exists() else {}
    speeds: dict[str, list[float]] = {name: [] for name in names} | kept
    rng = np.random.default_rng(0)
    documents = [(rng.integers(0, VOCAB, n).tolist(), None) for n in rng.integers(32, ROW, 600)]
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        write_tokens(folder / "tokens", documents, VOCAB)
        for sitting in range(asked.sittings):
            for name in names:
                if len(speeds[name]) > sitting:
                    continue
                speeds[name].append(round(measure(folder, *LAYOUTS[name]), 1))
                if asked.out:
                    write_json(asked.out, {"runs": speeds})
    found = {"machine": describe_machine(), "runs": speeds, "rows": rows_of(speeds)}
    if asked.out:
        write_json(asked.out, found)
    if asked.json:
        print(json.dumps(found))
        return
    print(found["machine"])
    for row in found["rows"]:
        print("| " + " | ".join(str(value) for value in row.values()) + " |")


def rows_of(speeds: dict[str, list[float]]) -> list[dict[str, Any]]:
    """Tokens/s of a process in each layout, and its share of what one alone reaches."""
    alone = statistics.median(speeds["one process"])
    each = {name: statistics.median(seen) / LAYOUTS[name][0] for name, seen in speeds.items()}
    return [
        {
            "layout": name,
            "processes": LAYOUTS[name][0],
            "tokens_per_s_per_process": round(speed, 1),
            "of_one_process": round(speed / alone, 3),
        }
        for name, speed in each.items()
    ]


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Measured tokens/s of a process, and planned tokens/s of a GPU, strong and weak."""
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "puna", "font.size": 9}):
        figure = Figure(figsize=(10, 3.2), layout="constrained")
        left, right = figure.subplots(1, 2)
        names = [row["layout"] for row in rows][::-1]
        shares = [row["of_one_process"] for row in rows][::-1]
        bars = left.barh(names, shares, color=["C0"] * (len(names) - 1) + ["gray"])
        left.bar_label(bars, [f"{share:.0%}" for share in shares], padding=3)
        left.axvline(1, color="gray", ls=":")
        left.set(xlim=(0, 1.2), xlabel="tokens/s per process, of one process alone",
                 title="8.4M on two cores, measured")  # fmt: skip
        for name, planned in (
            ("strong: 16.8M tokens a step", scaling_points(GPUS, lambda _: 2**24)),
            ("weak: 1,024 a GPU", scaling_points(GPUS, lambda n: 2**10 * n)),
        ):
            speeds = [c.tokens_per_s / n for c, n in zip(planned, GPUS, strict=True)]
            right.plot(GPUS, [speed / speeds[0] for speed in speeds], "o-", ms=4, label=name)
        right.axhline(1, color="gray", ls=":", label="linear")
        right.set(xlabel="H100 GPUs", ylabel="tokens/s per GPU, of that at 1,024", ylim=(0, 1.1),
                  title="405B, length 8,192, planned")  # fmt: skip
        right.legend(frameon=False, loc="lower left")
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path, metadata={"Date": None})


if __name__ == "__main__":
    main()
