"""The planner beside published runs: fits its constants, prints what is left, draws the pictures.

    python benchmarks/planner.py            the table, with the constants of the code
    python benchmarks/planner.py --fit      fits them anew on the runs marked for it, prints them
    python benchmarks/planner.py --pictures docs/pictures     strong and weak scaling as SVG

No GPU is needed: the published runs are in ``puna/pretraining/planner/published.py``.
"""

import argparse
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure

from puna.model import llama_config
from puna.pretraining.planner.constants import FITTED, Constants
from puna.pretraining.planner.hardware import hardware
from puna.pretraining.planner.published import Compared, Published, compare, published_runs
from puna.pretraining.planner.search import Candidate, Wish, describe, search
from puna.pretraining.planner.speed import TERA, model_flops

FREE = ("attention", "ring", "float8", "eager", "overlapped_tp")
MACHINES = ("h100", "h100-500w")


def error(found: Compared) -> float:
    """Logarithm of planned over published speed."""
    return float(np.log1p(found.speed_error))


def fit(runs: list[Published]) -> dict[str, float]:
    """Constants and fractions of the peak by Gauss-Newton on the logarithms of the speeds."""
    fractions = {run.job.gpu.about: run.job.gpu.gemm_fraction for run in runs}
    names = [*FREE, *fractions]
    start = np.log([*(getattr(FITTED, name) for name in FREE), *fractions.values()])

    def errors(logs: np.ndarray) -> np.ndarray:
        values = dict(zip(names, np.exp(logs), strict=True))
        constants = replace(FITTED, **{name: values[name] for name in FREE})
        return np.array([error(compare(with_fraction(run, values), constants)) for run in runs])

    logs = start
    for _ in range(8):
        jacobian = derivative(errors, logs)
        # a light pull towards the start, for what the runs do not fix
        left = np.vstack([jacobian, 0.03 * np.eye(len(logs))])
        right = np.concatenate([errors(logs), 0.03 * (logs - start)])
        logs = logs - np.linalg.lstsq(left, right, rcond=None)[0]
    return dict(zip(names, np.exp(logs), strict=True))


def derivative(function: Callable[[np.ndarray], np.ndarray], at: np.ndarray) -> np.ndarray:
    """Jacobian by central differences."""
    steps = 1e-4 * np.eye(len(at))
    return np.stack([(function(at + s) - function(at - s)) / 2e-4 for s in steps], axis=1)


def with_fraction(run: Published, values: dict[str, float]) -> Published:
    """The run on a machine whose products reach the fraction that is tried."""
    gpu = run.job.gpu
    changed = gpu.model_copy(update={"gemm_fraction": values[gpu.about]})
    return replace(run, job=replace(run.job, gpu=changed))


def table(runs: list[Published], constants: Constants = FITTED) -> str:
    """Markdown: published and planned speed and memory of each run."""
    lines = [
        "| run | | published | planned | | published GiB | planned | |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for run in runs:
        found = compare(run, constants)
        if run.tflops:
            speeds = f"{run.tflops:.0f} TFLOP/s | {found.tflops:.0f}"
        else:
            speeds = f"{run.tokens_per_s:,.0f} tokens/s | {found.tokens_per_s:,.0f}"
        memory = "| | "
        if found.memory_error is not None:
            memory = f"{run.memory_gib} | {found.memory_gib:.1f} | {found.memory_error:+.0%}"
        state = "fitted" if run.fitted else "held out"
        lines.append(f"| {run.name} | {state} | {speeds} | {found.speed_error:+.0%} | {memory} |")
    return "\n".join(lines)


def scaling_points(gpus: Sequence[int], batch_of: Callable[[int], int]) -> list[Candidate]:
    """The best plan for 405B at each number of GPUs, with tensor parallelism over a node."""
    model, gpu = llama_config("llama3.1-405b"), hardware("h100")
    return [search(Wish(model, gpu, n, 8192, batch_of(n), tp=8)).best for n in gpus]


def draw(folder: Path) -> None:
    """Strong scaling (one batch for all) and weak scaling (as many tokens for each GPU)."""
    gpus = [1024, 2048, 4096, 8192, 12288, 16384, 24576]
    strong = scaling_points(gpus, lambda _: 2**24)
    weak = scaling_points(gpus, lambda n: 2**10 * n)
    with rc_context({"svg.fonttype": "none", "svg.hashsalt": "puna", "font.size": 9}):
        figure = Figure(figsize=(9, 3.4), layout="constrained")
        left, right = figure.subplots(1, 2)
        for name, found in (("strong: 16.8M tokens a step", strong), ("weak: 1,024 a GPU", weak)):
            speed = [candidate.tokens_per_s / 1e6 for candidate in found]
            flops = [
                model_flops(c.job) / c.times.total / c.job.layout.n_processes / TERA for c in found
            ]
            left.plot(gpus, speed, "o-", ms=4, label=name)
            right.plot(gpus, flops, "o-", ms=4, label=name)
        linear = strong[0].tokens_per_s / 1e6 / gpus[0]
        left.plot(gpus, [linear * n for n in gpus], ":", color="gray", label="linear")
        left.set(xlabel="H100 GPUs", ylabel="million tokens/s", title="405B, length 8,192, planned")
        right.set(xlabel="H100 GPUs", ylabel="TFLOP/s per GPU", ylim=(0, None))
        for axes in (left, right):
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False)
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(folder / "planner-scaling.svg", metadata={"Date": None})
    for name, found in (("strong", strong), ("weak", weak)):
        for candidate in found:
            n = candidate.job.layout.n_processes
            print(f"{name} {n}: {describe(candidate)}: {candidate.tokens_per_s:,.0f} tokens/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--fit", action="store_true")
    parser.add_argument("--pictures", type=Path)
    options = parser.parse_args()
    if options.pictures:
        draw(options.pictures)
        return
    runs = published_runs()
    if options.fit:
        for name, value in fit([run for run in runs if run.fitted]).items():
            print(f"{name}: {value:.3f}")
    print(table(runs))


if __name__ == "__main__":
    main()
