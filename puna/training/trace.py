"""What a step does, operation by operation: traces in Chrome's format, which Perfetto opens."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch.profiler import ProfilerActivity, profile

from puna.core.events import EventLog
from puna.training.config import LoopConfig


@contextmanager
def traced(
    config: LoopConfig, step: int, stage: str, rank: int, device_type: str, events: EventLog
) -> Iterator[None]:
    """Within, operations are recorded if ``step`` (from 1) is the one that ``config`` names.

    The step takes longer for it. Its trace is named after stage, step and process.
    """
    if step != config.trace_step:
        yield
        return
    activities = [ProfilerActivity.CPU]
    if device_type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities, record_shapes=True) as recorded:
        yield
    path = Path(config.trace_to) / f"{stage.replace('/', '-')}-step-{step}-process-{rank}.json.gz"
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}")  # keeps the suffix that says how to write it
    recorded.export_chrome_trace(str(unfinished))
    unfinished.replace(path)
    events.emit("note", text=f"trace of step {step}: {path}")
