"""Layouts tried one after the other: what each takes, which fit, which is fastest, and why."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import product
from typing import Any

from puna.core.errors import UsageError
from puna.model import LlamaConfig
from puna.parallel import Layout
from puna.parallel.layout import Schedule
from puna.pretraining.planner.hardware import Hardware
from puna.pretraining.planner.job import PUNA, Job, Kept, Style
from puna.pretraining.planner.memory import GIB, Memory, worst_place
from puna.pretraining.planner.speed import Times, times_of

_SCHEDULES: tuple[tuple[Schedule, int], ...] = (
    ("1f1b", 2), ("interleaved", 2), ("interleaved", 4), ("interleaved", 8), ("zbv", 2),
)  # fmt: skip
_RECOMPUTE: tuple[Kept, ...] = ("none", "selective", "full")
_LARGEST_TP, _LARGEST_PP, _LARGEST_CP = 16, 32, 64
_SHORTEST_PIECE = 2048  # tokens of a row that context parallelism leaves a process, at least
_MICRO_ROWS = (1, 2, 4, 8)
_LONGEST_PASS = 32_768  # tokens of a process beyond which more rows of a pass gain nothing
_DRIVER_BYTES = 1.5e9  # context, libraries and buffers of communication
_OFF_BATCH = 0.2  # how far a batch may be from what is asked, so that it divides


@dataclass(frozen=True)
class Wish:
    """What a plan is made for; 0 and empty leave the choice to the planner."""

    model: LlamaConfig
    gpu: Hardware
    n_gpus: int
    row_length: int
    batch_tokens: int
    """Tokens of a step; with ``rows`` and ``dp`` given it follows from them."""
    tp: int = 0
    cp: int = 0
    pp: int = 0
    dp: int = 0
    rows: int = 0
    """Rows of a step for each data-parallel part."""
    micro_rows: int = 0
    schedule: Schedule | None = None
    recompute: Kept | None = None
    style: Style = PUNA


@dataclass(frozen=True)
class Candidate:
    """A layout with what it takes."""

    job: Job

    @cached_property
    def place(self) -> int:
        """The place of the pipeline that is fullest."""
        return worst_place(self.job)[0]

    @cached_property
    def memory(self) -> Memory:
        """Bytes of the fullest process."""
        return worst_place(self.job)[1]

    @cached_property
    def times(self) -> Times:
        """Seconds of a step."""
        return times_of(self.job)

    @property
    def limit(self) -> float:
        """Bytes that a process may take."""
        return self.job.gpu.memory_gb * 1e9 - _DRIVER_BYTES

    @property
    def fits(self) -> bool:
        """Whether the fullest process has room."""
        return self.memory.total <= self.limit

    @cached_property
    def tokens_per_s(self) -> float:
        """Of the whole run."""
        return self.job.tokens_of_step / self.times.total


@dataclass(frozen=True)
class Found:
    """All that was tried."""

    candidates: list[Candidate]
    """Those that divide, the fastest first; those that fit before those that do not."""
    undivided: dict[str, int]
    """Why layouts do not divide, and how many."""

    @property
    def best(self) -> Candidate:
        """The fastest that fits; where none does, the one that needs the least memory."""
        first = self.candidates[0]
        return first if first.fits else min(self.candidates, key=lambda c: c.memory.total)

    @property
    def fitting(self) -> list[Candidate]:
        """Those with room, the fastest first."""
        return [candidate for candidate in self.candidates if candidate.fits]

    def distinct(self, number: int) -> list[Candidate]:
        """The fastest that fit, of different sizes along the dimensions."""
        sizes: dict[tuple[int, ...], Candidate] = {}
        for candidate in self.fitting:
            layout = candidate.job.layout
            sizes.setdefault((layout.tp, layout.cp, layout.pp), candidate)
        return list(sizes.values())[:number]


def search(wish: Wish) -> Found:
    """Every layout that the wish leaves open; raises `UsageError` where none divides."""
    found: list[Candidate] = []
    undivided: dict[str, int] = {}
    for job in _jobs(wish, undivided):
        try:
            job.check()
        except UsageError as error:
            reason = str(error)
            undivided[reason] = undivided.get(reason, 0) + 1
        else:
            found.append(Candidate(job))
    if not found:
        reason = next(iter(undivided), f"{wish.n_gpus} GPUs are not the product of the sizes given")
        raise UsageError(f"no layout divides: {reason}")
    found.sort(key=lambda c: (not c.fits, -c.tokens_per_s))
    return Found(found, undivided)


def _jobs(wish: Wish, undivided: dict[str, int]) -> Iterator[Job]:
    for tp, cp, pp in _sizes(wish):
        dp, rest = divmod(wish.n_gpus, tp * cp * pp)
        if rest or (wish.dp and wish.dp != dp):
            continue
        rows = wish.rows or max(1, round(wish.batch_tokens / wish.row_length / dp))
        off = rows * dp * wish.row_length / wish.batch_tokens - 1
        if not wish.rows and abs(off) > _OFF_BATCH:
            reason = f"{dp} data-parallel parts of whole rows make no batch of the size asked for"
            undivided[reason] = undivided.get(reason, 0) + 1
            continue
        yield from _ways(wish, {"tp": tp, "cp": cp, "pp": pp, "dp_shard": dp}, rows)


def _sizes(wish: Wish) -> Iterator[tuple[int, int, int]]:
    tps = [wish.tp] if wish.tp else _powers(min(_LARGEST_TP, wish.gpu.node_gpus))
    most = min(_LARGEST_CP, max(1, wish.row_length // _SHORTEST_PIECE))
    cps = [wish.cp] if wish.cp else _powers(most)
    deepest = min(_LARGEST_PP, wish.model.n_layers)
    pps = [wish.pp] if wish.pp else [p for p in range(1, deepest + 1) if wish.n_gpus % p == 0]
    return product(tps, cps, pps)


def _powers(most: int) -> list[int]:
    return [2**n for n in range(most.bit_length()) if 2**n <= most]


def _ways(wish: Wish, sizes: dict[str, int], rows: int) -> Iterator[Job]:
    """Schedules, micro-batches and recomputation for given sizes."""
    wanted = [s for s in _SCHEDULES if wish.schedule in (None, s[0])]
    if wish.schedule and not wanted:
        wanted = [(wish.schedule, 2)]
    schedules = wanted if sizes["pp"] > 1 else [("1f1b", 2)]
    piece = wish.row_length // sizes["cp"]
    micros = [m for m in _MICRO_ROWS if rows % m == 0 and (m == 1 or m * piece <= _LONGEST_PASS)]
    micros = [wish.micro_rows] if wish.micro_rows else micros
    kinds: tuple[Kept, ...] = (wish.recompute,) if wish.recompute else _RECOMPUTE
    for micro, (schedule, each) in product(micros, schedules):
        settings: dict[str, Any] = {"dp_replicate": 1, "gather_dtype": "bf16", **sizes}
        if sizes["pp"] > 1:
            settings |= {"schedule": schedule, "microbatches": rows // micro}
            if schedule.startswith("interleaved"):
                settings["stages_each"] = each
        try:
            layout = Layout.parse(settings, where="layout")
        except UsageError:
            continue  # too few micro-batches for this schedule
        job = Job(
            wish.model, wish.gpu, layout, wish.row_length, rows, micro, kinds[0], wish.style
        )  # fmt: skip
        yield from (replace(job, recompute=kind) for kind in kinds)


def why_not(found: Found) -> list[str]:
    """For each other size along a dimension, the best plan with it and what speaks against it."""
    best, lines = found.best, []
    for name in ("tp", "cp", "pp", "schedule", "recompute"):
        chosen = _setting(best, name)
        others = sorted({_setting(c, name) for c in found.candidates} - {chosen})
        for other in others:
            rivals = [c for c in found.candidates if _setting(c, name) == other]
            least = min(rivals, key=lambda c: c.memory.total)
            rival = rivals[0] if rivals[0].fits else least
            lines.append(f"{name} {other}: {_against(rival, best)}")
    return lines


def _setting(candidate: Candidate, name: str) -> Any:
    if name == "recompute":
        return candidate.job.recompute
    return getattr(candidate.job.layout, name)


def _against(rival: Candidate, best: Candidate) -> str:
    if not rival.fits:
        needed, room = rival.memory.total / GIB, rival.limit / GIB
        return f"does not fit: {describe(rival)} takes {needed:.0f} GiB of {room:.0f}"
    slower = 1 - rival.tokens_per_s / best.tokens_per_s
    tokens, reference = rival.job.tokens_of_step, best.job.tokens_of_step
    growth = {
        name: seconds / tokens - getattr(best.times, name) / reference
        for name, seconds in vars(rival.times).items()
    }
    cause = max(growth, key=lambda name: growth[name])
    share = getattr(rival.times, cause) / rival.times.total
    return (
        f"{slower:.1%} slower: {describe(rival)} spends {share:.0%} of the step on "
        f"{cause.replace('_', ' ')}"
    )


def describe(candidate: Candidate) -> str:
    """A layout in a few words."""
    job, layout = candidate.job, candidate.job.layout
    sizes = f"tp {layout.tp} cp {layout.cp} pp {layout.pp} dp {layout.dp}"
    each = f" x {layout.stages_each}" if layout.schedule.startswith("interleaved") else ""
    schedule = f", {layout.schedule}{each}" if layout.pp > 1 else ""
    return f"{sizes}{schedule}, recompute {job.recompute}, {job.passes} x {job.micro_rows} rows"
