"""The plan for a run as figures, and as text for people."""

from dataclasses import asdict, dataclass
from typing import Any

from puna.pretraining.planner.failures import effective
from puna.pretraining.planner.memory import GIB, memory_of
from puna.pretraining.planner.search import Candidate, Found, Wish, describe, search, why_not
from puna.pretraining.planner.shares import held_numbers
from puna.pretraining.planner.speed import TERA, model_flops

_STATE_BYTES = 12  # of a parameter in a checkpoint: fp32 weight and two moments
_COPY_GBPS = 10.0  # from a GPU to the host's memory, while training waits (asynchronous saving)
_SHOWN = 3  # layouts explained


@dataclass(frozen=True)
class Failures:
    """How often something fails, and what it costs."""

    gpu_hours_between: float
    """Hours of one GPU, with its part of all else, per failure."""
    restart_s: float = 300.0
    """From a failure until training goes on from the checkpoint."""
    stall_s: float = 0.0
    """That a checkpoint holds training up; 0: the time to copy it to the host's memory."""


def plan(
    wish: Wish, tokens: float = 0.0, failures: Failures | None = None
) -> tuple[dict[str, Any], Found]:
    """Figures of the best layout, of those after it, and why others were not taken.

    Args:
        tokens: to train on; 0 leaves days, hours and price out.
        failures: with it, checkpoints' best interval and effective training time.
    """
    found = search(wish)
    best = found.best
    figures = {
        "parameters": wish.model.n_params(),
        "gpus": wish.n_gpus,
        "gpu": wish.gpu.about,
        **candidate_figures(best),
        "fits": best.fits,
        "memory_limit_gib": best.limit / GIB,
        "memory_gib_by_place": _by_place(best),
    }
    useful = 1.0
    if failures is not None:
        figures["failures"] = _failures(best, failures)
        useful = figures["failures"]["effective_fraction"]
    if tokens:
        figures |= _whole(best, tokens, useful)
    figures["best"] = [candidate_figures(each) for each in found.distinct(_SHOWN)]
    figures["why_not"] = why_not(found)
    figures["tried"] = len(found.candidates)
    figures["fitting"] = len(found.fitting)
    figures["do_not_divide"] = found.undivided
    return figures, found


def candidate_figures(candidate: Candidate) -> dict[str, Any]:
    """Speed and memory of a layout. TFLOP/s and MFU count attention in full, as published ones."""
    job, seconds = candidate.job, candidate.times.total
    n_gpus = job.layout.n_processes
    tflops = model_flops(job) / seconds / n_gpus / TERA
    peak = job.gpu.fp8_tflops if job.style.float8 else job.gpu.bf16_tflops
    return {
        "layout": job.layout.model_dump(mode="json"),
        "micro_rows": job.micro_rows,
        "rows_per_dp": job.rows,
        "row_length": job.row_length,
        "batch_tokens": job.tokens_of_step,
        "recompute": job.recompute,
        "precision": "float8" if job.style.float8 else "bf16",
        "step_time_s": seconds,
        "step_time_s_by": asdict(candidate.times),
        "tokens_per_s_per_gpu": job.tokens_of_step / seconds / n_gpus,
        "tflops_per_gpu": tflops,
        "tflops_per_gpu_causal": model_flops(job, causal=True) / seconds / n_gpus / TERA,
        "mfu": tflops / peak,
        "memory_gib_per_gpu": candidate.memory.total / GIB,
        "memory_gib_by": {name: b / GIB for name, b in asdict(candidate.memory).items()},
    }


def _by_place(candidate: Candidate) -> list[dict[str, Any]]:
    """Layers and GiB of each place of the pipeline."""
    job = candidate.job
    return [
        {
            "place": place,
            "layers": layers,
            "parameters": held_numbers(job, place),
            "memory_gib": memory_of(job, place).total / GIB,
        }
        for place, layers in enumerate(job.layers_of_places)
    ]


def _failures(candidate: Candidate, failures: Failures) -> dict[str, Any]:
    job = candidate.job
    held = max(held_numbers(job, place) for place in job.kinds_of_places)
    stall = failures.stall_s or held * _STATE_BYTES / (_COPY_GBPS * 1e9)
    found = effective(job.layout.n_processes, failures.gpu_hours_between, stall, failures.restart_s)
    return {
        "hours_between_failures": found.between_failures_s / 3600,
        "checkpoint_every_s": found.checkpoint_every_s,
        "checkpoint_every_steps": max(1, round(found.checkpoint_every_s / candidate.times.total)),
        "checkpoint_stall_s": stall,
        "restart_s": failures.restart_s,
        "lost_per_failure_s": found.lost_per_failure_s,
        "effective_fraction": found.fraction,
    }


def _whole(candidate: Candidate, tokens: float, useful: float) -> dict[str, Any]:
    hours = tokens / candidate.tokens_per_s / 3600 / max(useful, 1e-9)
    gpu_hours = hours * candidate.job.layout.n_processes
    price = candidate.job.gpu.usd_per_hour
    return {
        "tokens": tokens,
        "steps": round(tokens / candidate.job.tokens_of_step),
        "days": hours / 24,
        "gpu_hours": gpu_hours,
        "usd": gpu_hours * price if price else None,
    }


def plan_text(figures: dict[str, Any], found: Found) -> str:
    """The plan for people."""
    best = found.best
    lines = [
        f"{figures['parameters']:,} parameters on {figures['gpus']:,} x {figures['gpu']}",
        f"{describe(best)}; batch {figures['batch_tokens']:,} tokens",
        "",
        f"{figures['tflops_per_gpu']:.3g} TFLOP/s per GPU, MFU {figures['mfu']:.1%}, "
        f"{figures['tokens_per_s_per_gpu']:,.0f} tokens/s per GPU, step "
        f"{figures['step_time_s']:.2f} s",
        "  of the step: " + _parts(figures["step_time_s_by"], figures["step_time_s"]),
        f"{figures['memory_gib_per_gpu']:.1f} GiB of {figures['memory_limit_gib']:.1f} on the "
        f"fullest GPU{'' if best.fits else ': DOES NOT FIT'}",
        "  GiB: "
        + ", ".join(f"{k.replace('_', ' ')} {v:.1f}" for k, v in figures["memory_gib_by"].items()),
    ]
    lines += _text_of_failures(figures) + _text_of_whole(figures)
    fastest = " The fastest:" if figures["fitting"] else ""
    lines += ["", f"{figures['fitting']} of {figures['tried']} layouts fit.{fastest}"]
    lines += [
        f"  {number}. {describe(each)}: {each.tokens_per_s / best.tokens_per_s:.1%}, "
        f"{each.memory.total / GIB:.1f} GiB; {_parts(vars(each.times), each.times.total, 3)}"
        for number, each in enumerate(found.distinct(_SHOWN), 1)
    ]
    if figures["why_not"]:
        lines += ["Why not", *(f"  {line}" for line in figures["why_not"])]
    if found.undivided:
        lines.append(f"{sum(found.undivided.values())} more do not divide, such as:")
        lines += [f"  {reason}" for reason in list(found.undivided)[:_SHOWN]]
    return "\n".join(lines)


def _parts(seconds: dict[str, float], total: float, most: int = 8) -> str:
    shares = sorted(((s / total, n.replace("_", " ")) for n, s in seconds.items()), reverse=True)
    return ", ".join(f"{name} {share:.0%}" for share, name in shares[:most] if share >= 0.005)


def _text_of_failures(figures: dict[str, Any]) -> list[str]:
    failures = figures.get("failures")
    if failures is None:
        return []
    return [
        f"a failure every {failures['hours_between_failures']:.2f} h: save every "
        f"{failures['checkpoint_every_s']:.0f} s ({failures['checkpoint_every_steps']} steps), "
        f"effective training time {failures['effective_fraction']:.1%}, "
        f"{failures['lost_per_failure_s'] / 60:.1f} minutes lost each"
    ]


def _text_of_whole(figures: dict[str, Any]) -> list[str]:
    if "days" not in figures:
        return []
    price = "" if figures["usd"] is None else f", {figures['usd']:,.0f} USD by the price table"
    return [
        f"{figures['tokens']:.4g} tokens: {figures['steps']:,} steps, {figures['days']:.1f} days, "
        f"{figures['gpu_hours']:,.0f} GPU-hours{price}"
    ]
