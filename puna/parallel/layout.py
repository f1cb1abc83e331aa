"""How the processes of a run share a model and its batches, as settings of a recipe.

Only arithmetic: nothing here needs a process group, so a plan for thousands of GPUs is checked by
the same code that starts two processes.
"""

from typing import Literal, Self

from pydantic import Field, model_validator

from puna.core.config import Config
from puna.core.errors import UsageError
from puna.model import LlamaConfig

Schedule = Literal["1f1b", "interleaved", "interleaved-zero-bubble", "zbv", "dualpipev"]
_STAGES_EACH = {"1f1b": 1, "zbv": 2, "dualpipev": 2}


class Layout(Config):
    """Sizes of the dimensions along which the work of a step is divided; all ones is one process.

    Neighbours in ``tp`` have consecutive ranks, then those in ``cp``, ``dp_shard``,
    ``dp_replicate`` and ``pp``: the more two processes exchange, the nearer they are.
    """

    dp_replicate: int = Field(default=0, ge=0)
    """Groups of processes that each hold the whole model; 0 takes as many as the run has processes
    for."""
    dp_shard: int = Field(default=1, ge=1)
    """Processes that each hold a part of every weight and gather it where it is used (FSDP)."""
    tp: int = Field(default=1, ge=1)
    """Processes that share every product, each with some heads and a part of the vocabulary."""
    cp: int = Field(default=1, ge=1)
    """Processes that share every row, each with two pieces of its positions."""
    pp: int = Field(default=1, ge=1)
    """Processes that hold the layers one after the other."""
    microbatches: int = Field(default=0, ge=0)
    """Parts of a forward pass's rows that follow each other through the pipeline; 0 takes two for
    each of its stages."""
    schedule: Schedule = "1f1b"
    """Order of the pipeline's work. All but 1f1b give each process several stages: interleaved and
    interleaved-zero-bubble take turns, zbv and dualpipev go down the processes and up again."""
    stages_each: int = Field(default=2, ge=2)
    """Stages of a process under interleaved and interleaved-zero-bubble; zbv and dualpipev have
    two."""

    gather_dtype: Literal["fp32", "bf16"] = "fp32"
    """Data type in which blocks' weights are gathered under ``dp_shard``; gradients are always
    summed in fp32."""
    reshard: Literal["auto", "always", "never"] = "auto"
    """Whether gathered weights are dropped after the forward pass and gathered again for the
    backward pass; auto drops them unless a pipeline would gather them for every microbatch."""
    cpu_offload: bool = False
    """Keep weights, gradients and optimizer state in the host's memory under ``dp_shard``."""
    async_tp: bool = False
    """On GPUs, divide the products under ``tp`` so that their exchanges go on meanwhile; the blocks
    must be compiled."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.pp == 1 and (self.microbatches or self.schedule != "1f1b"):
            raise ValueError("microbatches and schedule are of a pipeline: set pp, or leave them")
        if self.pp > 1:
            self._check_microbatches()
        if self.async_tp and self.tp == 1:
            raise ValueError("async_tp is of tensor parallelism: set tp, or leave it")
        return self

    def _check_microbatches(self) -> None:
        parts, name = self.n_microbatches, self.schedule
        if name in ("1f1b", "dualpipev") and parts < self.stages:
            raise ValueError(
                f"microbatches {parts} leaves some of the {self.stages} stages of {name} without "
                f"work: raise it to at least {self.stages}"
            )
        rounds = max(1, parts // self.pp)
        if name.startswith("interleaved") and parts % rounds:
            raise ValueError(
                f"microbatches {parts} does not go round {self.pp} processes evenly: set it to "
                f"{rounds * self.pp}"
            )

    @property
    def stages(self) -> int:
        """Stages of the pipeline, over all processes."""
        each = _STAGES_EACH.get(self.schedule, self.stages_each)
        return self.pp * (each if self.pp > 1 else 1)

    @property
    def n_microbatches(self) -> int:
        """``microbatches``, or what 0 stands for."""
        return self.microbatches or (2 * self.stages if self.pp > 1 else 1)

    @property
    def model_size(self) -> int:
        """Processes that hold the model once."""
        return self.dp_shard * self.tp * self.cp * self.pp

    @property
    def dp(self) -> int:
        """Parts into which the rows of a batch are divided."""
        return self.dp_replicate * self.dp_shard

    @property
    def n_processes(self) -> int:
        """Processes in all; ``dp_replicate`` must not be 0."""
        return self.dp_replicate * self.model_size

    @property
    def only_replicas(self) -> bool:
        """Whether every process holds the whole model."""
        return self.model_size == 1

    @property
    def cuts_passes(self) -> bool:
        """Whether a process does a part of a forward pass only."""
        return self.tp * self.cp * self.pp > 1

    def of(self, n_processes: int) -> "Layout":
        """This layout with ``dp_replicate`` as the number of processes makes it.

        Raises `UsageError` when it does not divide.
        """
        sizes = "dp_shard * tp * cp * pp"
        if self.dp_replicate == 0:
            if n_processes % self.model_size:
                raise UsageError(
                    f"layout: {n_processes} processes are no multiple of {sizes} = "
                    f"{self.model_size}: start {_next(n_processes, self.model_size)}, or change "
                    "one of them"
                )
            replicas = n_processes // self.model_size
            return self.model_copy(update={"dp_replicate": replicas})
        if self.n_processes != n_processes:
            raise UsageError(
                f"layout: dp_replicate * {sizes} = {self.n_processes}, but the run has "
                f"{n_processes} processes: start {self.n_processes}, or set layout.dp_replicate to "
                "0 so that it follows their number"
            )
        return self

    def check_model(self, config: LlamaConfig) -> None:
        """Raise `UsageError`, naming the number to change, where the model does not divide."""
        for name in ("n_heads", "n_kv_heads", "ffn_dim", "vocab_size"):
            size = getattr(config, name)
            if size % self.tp:
                both = (n for n in range(self.tp, 0, -1) if config.n_kv_heads % n == 0)
                fits = next(n for n in both if config.n_heads % n == 0)
                raise UsageError(
                    f"layout.tp {self.tp} does not divide the model's {name} {size}: set tp to "
                    f"{fits if name.endswith('heads') else 'a divisor of it'}"
                )
        if config.n_layers < self.stages:
            raise UsageError(
                f"layout.pp {self.pp} makes {self.stages} stages under schedule {self.schedule}, "
                f"the model has {config.n_layers} layers: lower pp"
            )

    def check_batches(self, row_length: int, batch_rows: int, micro_rows: int) -> None:
        """Raise `UsageError`, naming the number to change, where rows or batches do not divide.

        ``dp_replicate`` must not be 0. Replicas alone may have unequal shares.
        """
        pieces = 2 * self.cp if self.cp > 1 else 1
        if row_length % pieces:
            raise UsageError(
                f"layout.cp {self.cp} cuts a row into {pieces} pieces, row_length {row_length} is "
                f"no multiple: set row_length to {_next(row_length, pieces)}"
            )
        if row_length // self.cp % self.tp:
            raise UsageError(
                f"layout.tp {self.tp} does not divide the {row_length // self.cp} positions of a "
                f"process: set row_length to {_next(row_length, pieces * self.tp)}"
            )
        if self.only_replicas:
            return
        if batch_rows % self.dp:
            raise UsageError(
                f"batch_rows {batch_rows} is no multiple of dp_replicate * dp_shard = {self.dp}: "
                f"set it to {_next(batch_rows, self.dp)}"
            )
        share = batch_rows // self.dp
        rows = micro_rows or share
        if share % rows:
            raise UsageError(
                f"micro_rows {micro_rows} does not divide a process's {share} rows of a batch: set "
                "it to a divisor of them"
            )
        if rows % self.n_microbatches:
            setting = "micro_rows" if micro_rows else "batch_rows"
            mend = _next(rows, self.n_microbatches) * (1 if micro_rows else self.dp)
            raise UsageError(
                f"a forward pass has {rows} rows, no multiple of the pipeline's "
                f"{self.n_microbatches} microbatches: set {setting} to {mend}, or change "
                "layout.microbatches"
            )

    def layers_of_stages(self, n_layers: int) -> list[int]:
        """Number of layers in each stage, first to last.

        Embedding and head count as a layer each, so that stages take equal time: where the layers
        do not divide evenly, the first and the last stage have fewer ("The Llama 3 Herd of Models",
        section 3.3.2: 126 layers on 16 stages are 7, then 8 fourteen times, then 7).
        """
        layers = [1] * self.stages
        loads = layers.copy()
        loads[0] += 1
        loads[-1] += 1
        order = [0, self.stages - 1, *range(1, self.stages - 1)]  # of those with equal loads
        for _ in range(n_layers - self.stages):
            least = min(order, key=loads.__getitem__)
            layers[least] += 1
            loads[least] += 1
        return layers

    def stages_of(self, place: int) -> list[int]:
        """The stages that the process at ``place`` of the pipeline holds, first to last."""
        if self.schedule in ("zbv", "dualpipev"):
            return [place, self.stages - 1 - place]
        return list(range(place, self.stages, self.pp))


def _next(number: int, of: int) -> int:
    """The least multiple of ``of`` that is not below ``number``."""
    return -(-number // of) * of
