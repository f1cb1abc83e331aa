"""Checkpoints, whole or absent: what is trained, optimizer, random state, position, checksummed.

Frozen weights are not in them: they are those the run starts from. Replicas leave one file, written
by the first process; a model that is spread over processes leaves a file of each. Either is read
under any layout (`puna.training.spread_state`).
"""

import json
import shutil
import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.distributed as dist
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.optim import Optimizer

from puna.core.errors import PunaError
from puna.core.events import EventLog
from puna.core.files import new_folder, sha256_file, write_json
from puna.parallel import files
from puna.parallel.parallelize import Parallel
from puna.training import durable, spread_state
from puna.training.config import LoopConfig
from puna.training.optimizer import states

KEPT = 2  # the newest, and one before it should the newest be damaged
_TENSORS, _STATE = "state.safetensors", "checkpoint.json"


@dataclass(frozen=True)
class Progress:
    """Where a training run stands."""

    step: int
    """Optimizer steps done."""
    tokens: int
    """Tokens seen."""
    seconds: float
    """Time spent in steps, over all processes that worked on this run."""


class Kept(Protocol):
    """What a method remembers from step to step besides weights, such as the answers in hand."""

    def state_dict(self) -> dict[str, Tensor]:
        """All of it, in all processes; what the first one gives is written."""
        ...

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on from what `state_dict` gave; the tensors are on the CPU."""
        ...


class Checkpoints:
    """Those of one run: written at its steps, found again when it is started anew.

    Args:
        root: their folder, on a disk that all processes see.
        trained: what is in them, under the names of its parameters.
        optimizers: whose state is in them.
        kept: what else is remembered.
        parallel: how the model is laid out. All processes call every method.
        config: how often, whether beside training, and where else.
        events: told of each that is written, and of those that are damaged.
        stage: named in the events.
    """

    def __init__(
        self,
        root: Path,
        trained: nn.Module,
        optimizers: Sequence[Optimizer],
        kept: Kept | None,
        parallel: Parallel,
        config: LoopConfig,
        events: EventLog,
        stage: str,
    ) -> None:
        self.root, self._trained, self._optimizers, self._kept = root, trained, optimizers, kept
        self._parallel, self._mesh, self._config = parallel, parallel.mesh, config
        self._events, self._stage = events, stage
        self._spread = not self._mesh.layout.only_replicas
        self._writing: threading.Thread | None = None
        self._failure: list[BaseException] = []
        # its own, so that writing beside training does not come between the exchanges of that
        apart = config.checkpoint_async and self._spread
        self._group = dist.new_group(backend="gloo") if apart else None

    def save(self, at: Progress, *, last: bool = False) -> None:
        """Write a checkpoint of this moment, then remove all but the newest two.

        With ``config.checkpoint_async`` it returns once the state is copied, and the files are
        written while training goes on. The ``last`` one of a run is there when this returns.
        """
        self.finish()
        tensors = self._tensors()
        if not self._config.checkpoint_async:
            self._write(tensors, at, last)
            return
        copies = spread_state.on_cpu(tensors)
        self._writing = threading.Thread(
            target=self._write_beside, args=(copies, at, last), name="puna-checkpoint", daemon=True
        )
        self._writing.start()
        if last:
            self.finish()

    def finish(self) -> None:
        """Wait for what is being written; raises what went wrong with it."""
        if self._writing is not None:
            self._writing.join()
            self._writing = None
        if self._failure:
            raise self._failure.pop()

    def restore(self) -> Progress | None:
        """Load the newest checkpoint that is whole; None when there is none at all.

        A damaged one is passed over for the one before it, with a warning. Raises `PunaError` when
        all are damaged, or of another model.
        """
        if self._config.durable:
            self._mesh.on_first(self._fetch)
        folders = self._mesh.on_first(lambda: sorted(self.root.glob("step-*"), reverse=True))
        problem = ""
        for folder in folders:
            problem = self._problem(folder)
            if not problem:
                return self._load(folder)
            self._events.emit("warning", text=f"checkpoint passed over: {problem}")
        if problem:
            raise PunaError(
                f"no checkpoint is whole: {problem}: put the file back, or remove {self.root} to "
                "begin anew"
            )
        return None

    def _tensors(self) -> dict[str, Tensor]:
        """What this process writes."""
        first = self._mesh.is_first
        remembered = {} if self._kept is None else self._kept.state_dict()
        if not (first or self._spread):
            return {}
        name_of = self._parallel.name_of
        tensors = spread_state.state_of(self._trained, self._optimizers, name_of)
        if first:
            tensors |= {f"kept.{name}": value for name, value in remembered.items()}
            tensors["rng.cpu"] = torch.get_rng_state()
            if torch.cuda.is_available():
                tensors["rng.cuda"] = torch.cuda.get_rng_state()
        return tensors

    def _write_beside(self, *arguments: Any) -> None:
        try:
            self._write(*arguments)
        except BaseException as error:  # noqa: BLE001  raised by `finish`
            self._failure.append(error)

    def _write(self, tensors: dict[str, Tensor], at: Progress, last: bool) -> None:
        if not (self._spread or self._mesh.is_first):
            return
        target = self.root / f"step-{at.step:08d}"
        with ExitStack() as stack:
            folder = target
            if self._mesh.is_first:
                folder = stack.enter_context(new_folder(target))
            if self._spread:
                sums = self._write_shards(folder, tensors)
            else:
                _write_file(folder / _TENSORS, tensors, target)
                sums = {_TENSORS: sha256_file(folder / _TENSORS)}
            if self._mesh.is_first:
                write_json(folder / _STATE, {"files": sums, **at.__dict__})
        if not self._mesh.is_first:
            return
        for old in sorted(self.root.glob("step-*"))[:-KEPT]:
            shutil.rmtree(old)
        self._events.emit("checkpoint", stage=self._stage, step=at.step)
        if self._config.durable and (last or at.step % self._config.durable_every == 0):
            self._upload(target)

    def _write_shards(self, folder: Path, tensors: dict[str, Tensor]) -> dict[str, str]:
        """Write the files of all processes into the first one's ``folder``; their checksums."""
        box = [str(folder)]
        dist.broadcast_object_list(box, device=torch.device("cpu"), group=self._group)
        place = Path(box[0])
        files.write(place, tensors, self._group)
        mine = {p.name: sha256_file(p) for p in files.shards_of(self._mesh.rank, place)}
        every: list[Any] | None = [None] * self._mesh.n_processes if self._mesh.is_first else None
        dist.gather_object(mine, every, group=self._group)
        return {name: digest for part in every or [] for name, digest in part.items()}

    def _problem(self, folder: Path) -> str:
        """What is wrong with the files of a checkpoint; empty when they are as written.

        Each process reads its share of them.
        """
        rank, n = self._mesh.rank, self._mesh.n_processes

        def found() -> str:
            if not folder.exists():
                return f"process {rank} does not see {folder}: put --runs on a disk all share"
            try:
                sums = json.loads((folder / _STATE).read_text())["files"]
            except (OSError, ValueError, KeyError, TypeError):
                return f"{folder / _STATE} is missing or damaged"
            for name in sorted(sums)[rank::n]:
                path = folder / Path(name).name
                if not path.exists():
                    return f"{path} is missing"
                if sha256_file(path) != sums[name]:
                    return f"{path} is damaged, its checksum differs"
            return ""

        mine = found()
        if not self._mesh.any(bool(mine)):
            return ""
        told: list[Any] = [mine]
        if n > 1:
            told = [None] * n
            dist.all_gather_object(told, mine)
        return str(next(problem for problem in told if problem))

    def _load(self, folder: Path) -> Progress:
        state = json.loads((folder / _STATE).read_text())
        whole = state.pop("files").keys() == {_TENSORS}
        if whole and not self._spread:
            tensors = load_file(folder / _TENSORS)
            self._fill(folder, tensors)
        else:
            shapes = self._mesh.on_first(lambda: files.shapes_in(folder))
            name_of = self._parallel.name_of
            spread_state.read(folder, shapes, self._trained, self._optimizers, name_of, self._mesh)
            others = [name for name in shapes if name.startswith(("rng.", "kept."))]
            tensors = {n: torch.empty(shapes[n][0], dtype=shapes[n][1]) for n in others}
            files.read_tensors(folder, tensors.items(), self._mesh)
        if self._kept is not None:
            self._kept.load_state_dict(_below("kept.", tensors))
        torch.set_rng_state(tensors["rng.cpu"])
        if "rng.cuda" in tensors and torch.cuda.is_available():
            torch.cuda.set_rng_state(tensors["rng.cuda"])
        return Progress(**state)

    @torch.no_grad()
    def _fill(self, folder: Path, tensors: dict[str, Tensor]) -> None:
        for name, parameter, optimizer in states(self._trained, self._optimizers):
            stored = tensors.get(f"model.{name}")
            spread_state.check(folder, name, parameter, None if stored is None else stored.shape)
            assert stored is not None
            parameter.copy_(stored)
            for key, value in _below(f"optimizer.{name}.", tensors).items():
                optimizer.state[parameter][key] = value.to(parameter.device)

    def _upload(self, folder: Path) -> None:
        try:
            durable.upload(folder, self._config.durable, KEPT)
        except OSError as error:  # training goes on, with the checkpoints of its own disk
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            text = f"step {int(folder.name[5:])} is not at {self._config.durable}: {reason}"
            self._events.emit("warning", text=text)

    def _fetch(self) -> None:
        """Take the durable checkpoint where it is newer than those of this disk."""
        here = [int(path.name[5:]) for path in self.root.glob("step-*")]
        fetched = durable.fetch_newest(self._config.durable, self.root, max(here, default=0))
        if fetched is not None:
            self._events.emit("note", text=f"{fetched.name} taken from {self._config.durable}")


def _write_file(path: Path, tensors: dict[str, Tensor], target: Path) -> None:
    try:
        save_file({k: v.contiguous() for k, v in tensors.items()}, path)
    except SafetensorError as error:  # the library wraps the system's error in text
        if "No space left" in str(error):
            raise PunaError(
                f"the disk is full while writing {target}: free some space and run again, "
                "the last checkpoint is intact"
            ) from error
        raise


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin with ``prefix``, under the rest of the name."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
