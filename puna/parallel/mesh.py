"""Where a process stands among those of a run, and what they do together.

Everything but tensors on a GPU is exchanged over the CPU, and before the GPUs exchange anything: a
process that fails closes its connections, and the others learn of it while they still can.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from puna.core.errors import PunaError
from puna.data import Share
from puna.parallel.layout import Layout

Result = TypeVar("Result")
_ALONE = Layout(dp_replicate=1)
LOST = (
    "lost the connection to another process of this run: it has ended; run the same command to go "
    "on from the last checkpoint"
)
BUCKET = 2**24  # numbers sent together
_alone = False  # whether this process is at what the others wait for


@dataclass(frozen=True)
class Mesh:
    """The processes of a run, and which of them this is; one process is all ones."""

    layout: Layout = _ALONE
    """How they share the work; by default each holds the whole model."""
    rank: int = 0
    """Number of this process."""

    @property
    def n_processes(self) -> int:
        """All of them."""
        return self.layout.n_processes

    @property
    def is_first(self) -> bool:
        """Whether this process writes what is written once."""
        return self.rank == 0

    @property
    def places(self) -> dict[str, int]:
        """This process's place in each dimension of the layout."""
        left, found = self.rank, {}
        for name in ("tp", "cp", "dp_shard", "dp_replicate", "pp"):
            left, found[name] = divmod(left, getattr(self.layout, name))
        return found

    @property
    def share(self) -> Share:
        """This process's part of every batch."""
        places = self.places
        number = places["dp_replicate"] * self.layout.dp_shard + places["dp_shard"]
        return Share(number, self.layout.dp)

    @property
    def counts(self) -> bool:
        """Whether this process's losses are summed: one of those that compute the same does."""
        stages = self.layout.stages_of(self.places["pp"])
        return self.places["tp"] == 0 and self.layout.stages - 1 in stages

    def of(self, layout: Layout) -> "Mesh":
        """The same processes, sharing the work by another layout.

        Raises `UsageError` where it does not fit their number.
        """
        return Mesh(layout.of(self.n_processes), self.rank)

    @property
    def devices(self) -> DeviceMesh:
        """Processes by dimension for sharding: pp, replicate, shard and tp.

        ``shard`` has both those of ``dp_shard`` and of ``cp``: the latter see other positions as
        the former see other rows, so gradients are summed over both. The first call of a layout
        makes its process groups: all must take part.
        """
        return _devices(self.layout, ("pp", "replicate", "shard", "tp"))

    def group(self, dimension: str) -> dist.ProcessGroup:
        """This process and its neighbours in ``pp``, ``cp`` or ``tp``; all must take part."""
        if dimension == "cp":
            return _devices(self.layout, ("outer", "cp", "tp")).get_group("cp")
        return self.devices.get_group(dimension)

    def total(self, numbers: Sequence[float]) -> Sequence[float]:
        """Each number, summed over the processes whose losses count. All must call it."""
        return self.sum(numbers if self.counts else [0.0] * len(numbers))

    def sum(self, numbers: Sequence[float]) -> Sequence[float]:
        """Each number, summed over the processes in fp64. All must call it."""
        return self._reduced(numbers, dist.ReduceOp.SUM)

    def largest(self, numbers: Sequence[float]) -> Sequence[float]:
        """The largest of each number over the processes. All must call it."""
        return self._reduced(numbers, dist.ReduceOp.MAX)

    def _reduced(self, numbers: Sequence[float], how: Any) -> Sequence[float]:
        if self.n_processes == 1:
            return numbers
        total = torch.tensor(numbers, dtype=torch.float64)
        with _connected():
            dist.all_reduce(total, how)
        return total.tolist()

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in some process. All must call it: so it is a barrier too."""
        return self.sum([float(flag)])[0] > 0

    def wait(self) -> None:
        """Until all processes are here."""
        self.any(False)

    def on_first(self, work: Callable[[], Result]) -> Result:
        """What ``work`` returns in the first process; the others wait and are sent it, pickled.

        Within ``work`` that process is `here` by itself, so what it trains there it trains alone.
        """
        if self.n_processes == 1:
            return work()
        box: list[Any] = [None]
        if self.is_first:
            with _by_itself():
                box = [work()]
        with _connected():
            dist.broadcast_object_list(box, device=torch.device("cpu"))
        found: Result = box[0]
        return found

    @torch.no_grad()
    def sum_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Sum the gradients of the replicas in fp32; a process without one counts as zeros."""
        if self.n_processes == 1:
            return
        trained = [p for p in parameters if p.requires_grad]
        used = self.sum([float(p.grad is not None) for p in trained])
        gradients = []
        for parameter, users in zip(trained, used, strict=True):
            if users:
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
        for bucket in _buckets(gradients):
            _in_one(bucket, dist.all_reduce)

    @torch.no_grad()
    def align(self, parameters: Iterable[nn.Parameter]) -> None:
        """Give all replicas the first one's values of what is trained."""
        if self.n_processes == 1:
            return
        for bucket in _buckets([p for p in parameters if p.requires_grad]):
            _in_one(bucket, lambda flat: dist.broadcast(flat, 0))


def here() -> Mesh:
    """The mesh of this process: ones, unless it has `joined` others and works with them."""
    if not _alone and dist.is_available() and dist.is_initialized():
        return Mesh(Layout(dp_replicate=dist.get_world_size()), dist.get_rank())
    return Mesh()


@cache
def _devices(layout: Layout, names: tuple[str, ...]) -> DeviceMesh:
    sizes = {
        "pp": layout.pp,
        "replicate": layout.dp_replicate,
        "shard": layout.dp_shard * layout.cp,
        "outer": layout.pp * layout.dp_replicate * layout.dp_shard,
        "cp": layout.cp,
        "tp": layout.tp,
    }
    kind = "cuda" if torch.cuda.is_available() else "cpu"
    with _connected():
        return init_device_mesh(kind, tuple(sizes[n] for n in names), mesh_dim_names=names)


@contextmanager
def _by_itself() -> Iterator[None]:
    global _alone
    before, _alone = _alone, True
    try:
        yield
    finally:
        _alone = before


@contextmanager
def _connected() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # what torch raises when a peer is gone
        raise PunaError(LOST) from error


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """In order, as many as `BUCKET` holds, or a larger one by itself."""
    bucket: list[Tensor] = []
    for tensor in tensors:
        if bucket and sum(t.numel() for t in bucket) + tensor.numel() > BUCKET:
            yield bucket
            bucket = []
        bucket.append(tensor)
    if bucket:
        yield bucket


def _in_one(bucket: Sequence[Tensor], exchange: Callable[[Tensor], Any]) -> None:
    """Exchange tensors as one, in fp32."""
    if len(bucket) == 1 and bucket[0].dtype == torch.float32 and bucket[0].is_contiguous():
        flat = bucket[0].view(-1)  # a large one: no copy is made
    else:
        flat = torch.cat([tensor.flatten().float() for tensor in bucket])
    with _connected():
        exchange(flat)
    for tensor, part in zip(bucket, flat.split([t.numel() for t in bucket]), strict=True):
        tensor.copy_(part.view_as(tensor))
