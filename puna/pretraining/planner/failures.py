"""Effective training time under failures: how often to save, and what is lost all the same."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Effective:
    """What failures cost a run whose checkpoints come at the best interval; seconds."""

    between_failures_s: float
    """Mean time between failures of the whole run."""
    checkpoint_every_s: float
    """Work between two checkpoints that loses the least."""
    stall_s: float
    """What a checkpoint holds the training up for."""
    restart_s: float
    """From a failure to the first step that is done again."""
    fraction: float
    """Useful over elapsed time: effective training time."""
    lost_per_failure_s: float
    """Useful time lost for each failure, the checkpoints' stalls included."""


def best_interval(stall_s: float, between_s: float) -> float:
    """Work between checkpoints that minimises the run's time.

    Daly 2006 ("A higher order estimate of the optimum checkpoint interval for restart dumps", eq.
    37), whose first term is Young's sqrt(2 * stall * mean time between failures).
    """
    if stall_s >= 2 * between_s:
        return between_s
    x = math.sqrt(stall_s / (2 * between_s))
    return math.sqrt(2 * stall_s * between_s) * (1 + x / 3 + x * x / 9) - stall_s


def fraction(interval_s: float, stall_s: float, restart_s: float, between_s: float) -> float:
    """Useful over elapsed time for failures that come at a constant rate.

    Daly 2006, eq. 20: failures may hit work, checkpoint and restart alike.
    """
    exponent = (interval_s + stall_s) / between_s
    if exponent > 700 or restart_s / between_s > 700:
        return 0.0  # no interval is ever survived
    elapsed = between_s * math.exp(restart_s / between_s) * math.expm1(exponent)
    return interval_s / elapsed


def effective(n_gpus: int, gpu_hours_between: float, stall_s: float, restart_s: float) -> Effective:
    """The best interval and what it leaves.

    Args:
        n_gpus: in the run; one failure stops all.
        gpu_hours_between: hours of one GPU, with its part of everything else, per failure. 45,600
            in "The Llama 3 Herd of Models" section 3.3.4: 54 days of 16,384 GPUs, 466 stops.
        stall_s: that a checkpoint holds training up.
        restart_s: until training goes on from the checkpoint.
    """
    between = gpu_hours_between * 3600 / n_gpus
    every = best_interval(stall_s, between)
    share = fraction(every, stall_s, restart_s, between)
    return Effective(between, every, stall_s, restart_s, share, (1 - share) * between)
