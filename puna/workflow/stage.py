"""A stage is a function from artifacts to artifacts, recorded in a manifest.

Config, inputs and outputs are hashed: a finished stage is skipped, a killed one goes on from what
it left, a changed one starts over.
"""

import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from puna.core.errors import UsageError
from puna.core.events import EventLog
from puna.core.files import remove_unfinished, sha256_file, sha256_value, write_json
from puna.parallel import here

FORMAT = 1  # raised when a stage's outputs change their layout
SCRATCH = "scratch"  # below a stage's folder: not an output, removed when the stage is done
_MANIFEST, _STARTED = "manifest.json", "started.json"


@dataclass(frozen=True)
class Artifact:
    """What a finished stage left."""

    folder: Path
    """Where its outputs lie."""
    digest: str
    """Hash over the outputs' names and contents."""
    facts: dict[str, Any]
    """Figures the stage reports."""
    seconds: float
    """Wall-clock time of the process that finished it."""
    skipped: bool
    """Whether it was found finished."""


def _outputs(folder: Path) -> dict[str, str]:
    files = (f for f in sorted(folder.rglob("*")) if f.is_file())
    names = {f.relative_to(folder).as_posix(): f for f in files}
    return {
        name: sha256_file(file)
        for name, file in names.items()
        if name not in (_MANIFEST, _STARTED) and not name.startswith(f"{SCRATCH}/")
    }


def _read(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _finished(folder: Path, fingerprint: str) -> Artifact | None:
    """The stage's artifact if its manifest matches and every output is as it was written."""
    manifest = _read(folder / _MANIFEST)
    if manifest.get("fingerprint") != fingerprint:
        return None
    found = _outputs(folder)
    if any(found.get(name) != digest for name, digest in manifest["outputs"].items()):
        return None
    digest = sha256_value(manifest["outputs"])
    return Artifact(folder, digest, manifest["facts"], manifest["seconds"], skipped=True)


@dataclass(frozen=True)
class Origin:
    """What split a model's training problems from the held-out ones."""

    seed: int
    kinds: dict[str, float]


def origin_of(model: str | Path) -> Origin | None:
    """The seed and kinds a stage's model was trained with; None for a model from elsewhere."""
    path = Path(model)
    config = _read(path.parent / _MANIFEST).get("config") if path.is_dir() else None
    return Origin(config["seed"], config["kinds"]) if config else None


def run_stage(
    root: Path,
    name: str,
    config: Mapping[str, Any],
    inputs: Sequence[str],
    work: Callable[[Path], dict[str, Any]],
    events: EventLog,
    *,
    together: bool = False,
) -> Artifact:
    """Run ``work`` in ``root/name`` unless it was done before with equal config and inputs.

    Args:
        config: JSON value of everything that shapes the outputs.
        inputs: digests of the artifacts it reads.
        work: given the folder, writes outputs there and returns figures as a JSON mapping; called
            again after a kill, it finds what it left (below `SCRATCH` for unfinished work).
        together: whether all processes do the work, all but the first in a folder below `SCRATCH`;
            else the first one does, and the others wait for it.
    """
    folder, mesh = root / name, here()
    fingerprint = sha256_value([FORMAT, name, config, list(inputs)])
    if found := mesh.on_first(partial(_begin, folder, fingerprint, events)):
        return found
    begun = time.perf_counter()
    if together:
        facts = work(folder if mesh.is_first else _own_place(folder, mesh.rank))
    else:
        facts = mesh.on_first(partial(work, folder))
    seconds = time.perf_counter() - begun
    mesh.wait()  # until nobody needs the scratch any more
    manifest = {
        "stage": name,
        "fingerprint": fingerprint,
        "config": config,
        "inputs": list(inputs),
        "facts": facts,
        "seconds": round(seconds, 3),
    }
    return mesh.on_first(partial(_finish, folder, manifest, events))


def _begin(folder: Path, fingerprint: str, events: EventLog) -> Artifact | None:
    """The artifact of a stage that is done; else a folder that is ready for the work."""
    if found := _finished(folder, fingerprint):
        events.emit("stage_skip", stage=folder.name)
        return found
    started = _read(folder / _STARTED).get("fingerprint")
    if folder.exists() and started != fingerprint:
        if started is None and any(folder.iterdir()):
            raise UsageError(f"{folder} was not made by puna: choose another name or --runs")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    remove_unfinished(folder)
    (folder / _MANIFEST).unlink(missing_ok=True)
    write_json(folder / _STARTED, {"fingerprint": fingerprint})
    events.emit("stage_start", stage=folder.name)
    return None


def _own_place(folder: Path, rank: int) -> Path:
    """Where a process that is not the first may write: a folder of the stage's name."""
    place = folder / SCRATCH / f"process-{rank}" / folder.name
    place.mkdir(parents=True, exist_ok=True)
    return place


def _finish(folder: Path, manifest: dict[str, Any], events: EventLog) -> Artifact:
    """Hash what the work left and write the manifest, with which the stage is done."""
    shutil.rmtree(folder / SCRATCH, ignore_errors=True)
    outputs = _outputs(folder)
    write_json(folder / _MANIFEST, manifest | {"outputs": outputs})
    facts, seconds = manifest["facts"], manifest["seconds"]
    events.emit("stage_end", stage=folder.name, seconds=seconds)
    return Artifact(folder, sha256_value(outputs), facts, seconds, skipped=False)
