"""Published runs, as jobs for the planner: what its constants were fitted on, and what not."""

from dataclasses import dataclass

from puna.model import llama_config
from puna.parallel import Layout
from puna.pretraining.planner.constants import FITTED, Constants
from puna.pretraining.planner.hardware import hardware
from puna.pretraining.planner.job import Job, Kept, Style
from puna.pretraining.planner.memory import GIB, worst_place
from puna.pretraining.planner.speed import TERA, model_flops, times_of

LLAMA3 = "The Llama 3 Herd of Models, table 4"
TORCHTITAN = "torchtitan, llama3_h100_202412_torchtitan.md"


@dataclass(frozen=True)
class Published:
    """A run that others measured."""

    name: str
    source: str
    job: Job
    fitted: bool
    """Whether the constants were fitted on it."""
    tflops: float = 0.0
    """TFLOP/s per GPU as printed; 0 where tokens are."""
    tokens_per_s: float = 0.0
    """Tokens per second and GPU as printed; 0 where TFLOP/s are."""
    memory_gib: float = 0.0
    """GiB of the fullest GPU; 0 where nothing is printed."""


@dataclass(frozen=True)
class Compared:
    """A published run beside the plan for it."""

    run: Published
    tflops: float
    tokens_per_s: float
    memory_gib: float

    @property
    def speed_error(self) -> float:
        """Planned over published speed, less one."""
        if self.run.tflops:
            return self.tflops / self.run.tflops - 1
        return self.tokens_per_s / self.run.tokens_per_s - 1

    @property
    def memory_error(self) -> float | None:
        """Planned over published memory, less one; None where nothing is printed."""
        return self.memory_gib / self.run.memory_gib - 1 if self.run.memory_gib else None


def compare(run: Published, constants: Constants = FITTED) -> Compared:
    """The plan for a published run."""
    n_gpus, seconds = run.job.layout.n_processes, times_of(run.job, constants).total
    return Compared(
        run,
        tflops=model_flops(run.job) / seconds / n_gpus / TERA,
        tokens_per_s=run.job.tokens_of_step / seconds / n_gpus,
        memory_gib=worst_place(run.job, constants)[1].total / GIB,
    )


def published_runs() -> list[Published]:
    """All of them."""
    return [*_llama3(), *_one_dimension(), *_long_8b(), *_tensor_parallel(), *_pipelines()]


def _layout(**sizes: object) -> Layout:
    return Layout.parse({"dp_replicate": 1, **sizes}, where="published run")


def _style(**traits: bool) -> Style:
    """torchtitan's: all logits at once, everything gathered in bf16."""
    return Style(logits="whole", wide_ends=False, **traits)


def _llama3() -> list[Published]:
    """The three rows of table 4; the number of virtual stages is not printed: four."""
    rows = [
        (8192, 1, 64, 8192, 32, 430.0, True),
        (16384, 1, 128, 8192, 16, 400.0, False),
        (16384, 16, 8, 131_072, 16, 380.0, False),
    ]
    found = []
    for n_gpus, cp, dp, length, rows_each, tflops, fitted in rows:
        layout = _layout(
            tp=8, cp=cp, pp=16, dp_shard=dp, microbatches=rows_each, schedule="interleaved",
            stages_each=4,
        )  # fmt: skip
        job = Job(
            llama_config("llama3.1-405b"), hardware("h100"), layout, length, rows_each,
            recompute="selective", style=Style(wide_ends=False),
        )  # fmt: skip
        name = f"405B, {n_gpus:,} GPUs, length {length:,}"
        found.append(Published(name, LLAMA3, job, fitted, tflops=tflops))
    return found


def _titan(
    name: str, size: str, layout: Layout, length: int, rows: int, micro_rows: int,
    recompute: Kept, style: Style, fitted: bool, tokens_per_s: float, memory_gib: float,
) -> Published:  # fmt: skip
    job = Job(
        llama_config(size),
        hardware("h100-500w"),
        layout,
        length,
        rows,
        micro_rows,
        recompute,
        style,
    )
    return Published(
        name, TORCHTITAN, job, fitted, tokens_per_s=tokens_per_s, memory_gib=memory_gib
    )


def _one_dimension() -> list[Published]:
    rows = [
        (8, False, False, 5762.0, 82.4, True),
        (8, True, False, 6667.0, 77.0, True),
        (8, True, True, 8532.0, 76.8, True),
        (128, False, False, 5605.0, 67.0, False),
        (128, True, False, 6514.0, 62.0, False),
        (128, True, True, 8380.0, 61.8, False),
    ]
    return [
        _titan(
            f"8B, {n_gpus} GPUs, {'float8' if float8 else 'compiled' if compiled else 'eager'}",
            "llama3.1-8b", _layout(dp_shard=n_gpus), 8192, 2, 2, "alternate",
            _style(float8=float8, compiled=compiled), fitted, speed, memory,
        )
        for n_gpus, compiled, float8, speed, memory, fitted in rows
    ]  # fmt: skip


def _long_8b() -> list[Published]:
    style = _style(float8=True, ring=True)
    rows = [
        (1, 3890.0, 83.9, True),
        (2, 2540.0, 84.2, False),
        (4, 1071.0, 84.0, False),
        (8, 548.0, 84.5, True),
    ]
    return [
        _titan(
            f"8B, 8 GPUs, CP {cp}, length {cp * 32768:,}", "llama3.1-8b",
            _layout(dp_shard=8 // cp, cp=cp), cp * 32768, 1, 1, "full", style, fitted, speed,
            memory,
        )
        for cp, speed, memory, fitted in rows
    ]  # fmt: skip


def _tensor_parallel() -> list[Published]:
    layout = _layout(dp_shard=32, tp=8)
    rows = [(False, 829.0, 71.9), (True, 876.0, 67.6)]
    return [
        _titan(
            f"70B, 256 GPUs, TP 8{', asynchronous' if overlapped else ''}", "llama3.1-70b", layout,
            8192, 16, 16, "full", _style(float8=True, overlapped_tp=overlapped),
            True, speed, memory,
        )
        for overlapped, speed, memory in rows
    ]  # fmt: skip


def _pipelines() -> list[Published]:
    """405B on 512 GPUs: as many micro-batches as places of the pipeline, that program's default."""
    style = _style(float8=True, overlapped_tp=True, ring=True)
    rows = [
        ("1f1b", 1, 8192, 32, 100.0, 82.5),
        ("interleaved", 1, 8192, 32, 128.0, 72.7),
        ("1f1b", 1, 32768, 8, 76.0, 75.3),
        ("1f1b", 2, 65536, 8, 47.0, 75.9),
        ("1f1b", 4, 131_072, 8, 31.0, 77.1),
        ("1f1b", 8, 262_144, 8, 16.0, 84.9),
    ]
    return [
        _titan(
            f"405B, 512 GPUs, {schedule}, CP {cp}, length {length:,}", "llama3.1-405b",
            _layout(dp_shard=8 // cp, tp=8, cp=cp, pp=8, microbatches=8, schedule=schedule), length,
            rows_each, rows_each // 8, "full", style, False, speed, memory,
        )
        for schedule, cp, length, rows_each, speed, memory in rows
    ]  # fmt: skip
