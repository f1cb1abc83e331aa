"""A model laid out over processes, from outside: it knows nothing of them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from puna.core.devices import default_device
from puna.data import Batch
from puna.model import Llama
from puna.parallel.adapters import check_adapter
from puna.parallel.layout import Layout
from puna.parallel.mesh import Mesh, here

_MADE = "_parallel"  # attribute of a model that is laid out


@dataclass(frozen=True)
class Parallel:
    """A model that is laid out, and how it is run."""

    mesh: Mesh
    """The processes."""
    parts: list[Llama]
    """What this process runs of the model: all of its layers, or those of each of its stages."""
    pipeline: Any = None
    """Runs the stages (`puna.parallel.pipeline.Pipeline`); None without."""
    pieces: Any = None
    """Cuts rows (`puna.parallel.context.Pieces`); None where processes take whole rows."""
    tie: Any = None
    """Holds copies of one weight together (`puna.parallel.pipeline.Tie`); None without."""

    def mine(self, batch: Any) -> Any:
        """What this process sees of a batch of its rows, where the model is.

        Raises `UsageError`, naming the number to change, when the layout cannot share them out.
        """
        batch = batch.to(self.parts[0].device)
        if isinstance(batch, Batch) and not self.mesh.layout.only_replicas:
            rows, row_length = batch.ids.shape
            self.mesh.layout.check_batches(row_length, rows * self.mesh.layout.dp, 0)
        return batch if self.pieces is None else self.pieces.batch(batch)

    def bubble(self) -> float | None:
        """Share of the pipelines' time in which a process computed nothing, the mean of all.

        None without a pipeline.

        Since it was asked for last. All processes call it.
        """
        if self.pipeline is None:
            return None
        busy, whole = self.mesh.sum(self.pipeline.seconds())
        return 1 - busy / whole

    def complete_gradients(self, parameters: Sequence[nn.Parameter]) -> None:
        """After the last backward pass of a step: sum what is not summed within it."""
        if self.mesh.layout.only_replicas:
            self.mesh.sum_gradients(parameters)
        if self.tie is not None:
            self.tie.sum_gradients()

    def name_of(self, parameter: str) -> str:
        """The name in a checkpoint of the parameter called so here: a copy has its original's."""
        tied = self.tie is not None and parameter == "lm_head.weight"
        return "model.embed_tokens.weight" if tied else parameter

    def counted(self, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
        """Those that are no copies of others."""
        copy = None if self.tie is None else self.tie.head
        return [parameter for parameter in parameters if parameter is not copy]

    @torch.no_grad()
    def look(self, objective: Callable[[Llama, Any], Any], batch: Any) -> list[Any]:
        """What ``objective`` makes of this process's rows, no gradient recorded.

        All processes call it, those of one ``share`` with the same batch; empty where the process
        has no end of the pipeline. Rows must have a multiple of 2 cp * tp positions.
        """
        batch = batch.to(self.parts[0].device)
        batch = batch if self.pieces is None else self.pieces.batch(batch)
        if self.pipeline is not None:
            found: list[Any] = self.pipeline.look(objective, batch)
        else:
            found = [objective(self.parts[0], batch)]
        self.drop_gathered()
        return found

    def drop_gathered(self) -> None:
        """After a forward pass without a backward pass FSDP keeps what it has gathered last."""
        if self.mesh.layout.dp_shard * self.mesh.layout.cp == 1:
            return
        from torch.distributed.fsdp import FSDPModule

        for root in self.parts if self.pipeline is None else self.pipeline.stages:
            for module in root.modules():
                if isinstance(module, FSDPModule):
                    module.reshard()

    def run(
        self,
        objective: Callable[[Llama, Any], Any],
        batch: Any,
        before_backward: Callable[[Any], None],
    ) -> list[Any]:
        """Add the gradients of ``batch`` to those there are; returns what ``objective`` returned.

        Once for the batch, or for each microbatch of a pipeline on the process that has the last
        stage and never on the others. ``before_backward`` is given it first.

        Args:
            batch: `mine` of a batch.
        """
        if self.pipeline is not None:
            outcomes: list[Any] = self.pipeline.run(objective, batch)
            return outcomes
        outcome = objective(self.parts[0], batch)
        before_backward(outcome)
        outcome.loss_sum.backward()
        return [outcome]


def parallelize(model: Llama, layout: Layout) -> Parallel:
    """Lay ``model`` out over the processes of this run, in place; again, it stays as it is.

    All processes call it, each with the whole model, and all with equal weights. In one process,
    and where every process holds the whole model, nothing changes. Raises `UsageError` naming the
    number to change where the layout does not fit the model or the processes.
    """
    mesh = here().of(layout)
    made = laid_out(model)
    if made is not None:
        assert made.mesh.layout == mesh.layout, "a model keeps its layout"
        return made
    mesh.layout.check_model(model.config)
    if mesh.layout.only_replicas:
        return Parallel(mesh, [model])
    check_adapter(model, mesh.layout)
    vars(model)[_MADE] = made = _laid_out(model, mesh)
    return made


def _laid_out(model: Llama, mesh: Mesh) -> Parallel:
    # what a single process needs none of is not imported: it takes a second
    layout, parts = mesh.layout, [model]
    roots: Sequence[nn.Module] = parts
    pipeline = pieces = tie = None
    if layout.pp > 1:
        from puna.parallel.pipeline import Pipeline, Tie, cut_into_stages

        stages = cut_into_stages(model, mesh)
        roots, parts = stages, [stage.part for stage in stages]
        tie = Tie(stages, mesh) if model.config.tie_embeddings else None
        pipeline = Pipeline(stages, mesh)
    if layout.cp > 1:
        from puna.parallel.context import Pieces, spread_positions

        pieces = Pieces(mesh.group("cp"), mesh.places["cp"], layout.cp)
        for part in parts:
            spread_positions(part, pieces)
    if layout.tp > 1:
        from puna.parallel.tensor import exchange_within_products, spread_products

        for part in parts:
            spread_products(part, mesh.devices["tp"])
        if layout.async_tp and default_device().type == "cuda":
            exchange_within_products(mesh.devices["tp"].get_group())
    if layout.dp * layout.cp > 1:
        from torch.distributed.fsdp import register_fsdp_forward_method

        from puna.parallel.shard import spread_weights

        for root, part in zip(roots, parts, strict=True):
            spread_weights(root, part, mesh)
        if pipeline is None:
            register_fsdp_forward_method(model, "hidden")
    return Parallel(mesh, parts, pipeline, pieces, tie)


def as_it_is(model: Llama) -> Parallel:
    """How ``model`` is laid out, or this process alone where it has all of it."""
    return laid_out(model) or Parallel(Mesh(), [model])


def laid_out(model: nn.Module) -> Parallel | None:
    """How `parallelize` has spread ``model``; None while this process has all of it."""
    found: Parallel | None = vars(model).get(_MADE)
    return found
