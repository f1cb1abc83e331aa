"""Whether a recipe fits the machines, stage by stage, before anything starts."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from puna.core.errors import UsageError
from puna.model import LlamaConfig
from puna.pretraining.planner.hardware import Hardware
from puna.pretraining.planner.memory import GIB
from puna.pretraining.planner.search import Wish, describe, search
from puna.training import LoopConfig
from puna.workflow.memory import free_bytes, shape_of, stage_estimate
from puna.workflow.recipe import Recipe


@dataclass(frozen=True)
class StageFit:
    """What a stage takes, and what there is."""

    stage: str
    needs_gib: float
    """Of the fullest process."""
    free_gib: float
    """Of a process's device."""
    fits: bool
    how: str
    """The parts of it, or the layout."""


def fits_of(recipe: Recipe, gpu: Hardware | None, n_gpus: int = 1) -> list[StageFit]:
    """What the stages that train one model in a loop take; no weight is made.

    Args:
        gpu: what each process would run on; None is this machine, as much of it as is free.
        n_gpus: processes. One is estimated by a dry run of the stage as it is set; for more the
            planner takes the stage's layout or, where it has none, the fastest it finds.

    Raises `UsageError` when the recipe has no stage that trains, or more GPUs come without ``gpu``.
    """
    if n_gpus > 1 and gpu is None:
        raise UsageError("--gpus is of machines elsewhere: name them, e.g. --gpu h100")
    found = []
    for name, model, stage in _trained(recipe):
        if n_gpus > 1 and not hasattr(stage, "row_length"):
            continue  # the planner knows no rollouts
        if n_gpus == 1:
            found.append(_alone(name, model, stage, gpu))
        else:
            assert gpu is not None
            found += [
                _together(batch, model, stage, gpu, n_gpus) for batch in _batches(name, stage)
            ]
    if not found:
        raise UsageError(f"{recipe.name} has no stage that trains: nothing to plan")
    return found


def _trained(recipe: Recipe) -> Iterator[tuple[str, LlamaConfig, Any]]:
    """(name, shape, settings) of the stages with a loop."""
    stages = recipe.stages
    shape: LlamaConfig | None = None
    if stages.pretrain:
        vocab = stages.tokenizer.vocab_size if stages.tokenizer else 0
        shape = stages.pretrain.model.build(vocab)
        yield "pretrain", shape, stages.pretrain
    for name, stage in stages.tuning():
        base = stage.base
        if base and base not in type(stages).model_fields:
            shape = shape_of(base)
        if shape is not None and hasattr(stage, "loop"):
            yield name, shape, stage


def _alone(name: str, model: LlamaConfig, stage: Any, gpu: Hardware | None) -> StageFit:
    found = stage_estimate(name, model, stage)
    free = free_bytes() if gpu is None else gpu.memory_gb * 1e9
    how = ", ".join(f"{part} {gb * 1e9 / GIB:.1f}" for part, gb in found.table())
    return StageFit(name, found.peak / GIB, free / GIB, found.peak <= free, f"GiB: {how}")


@dataclass(frozen=True)
class _Batch:
    """Rows of a step somewhere in a stage."""

    name: str
    row_length: int
    rows: int
    keeps_layout: bool = True
    """Whether it is meant for the layout that the stage has."""


def _batches(name: str, stage: Any) -> list[_Batch]:
    """Those of a stage; of a curriculum all that differ. Long rows come with a layout of theirs."""
    curriculum = getattr(stage, "curriculum", None)
    if curriculum is None:
        return [_Batch(name, stage.row_length, stage.loop.batch_rows)]
    found: dict[tuple[int, int], _Batch] = {}
    for phase in curriculum.phases:
        size = phase.row_length, phase.batch_rows
        found.setdefault(size, _Batch(f"{name}, {phase.name}", *size))
    for part in curriculum.long_context.stages if curriculum.long_context else []:
        size = part.row_length, part.batch_rows
        found[size] = _Batch(f"{name}, {size[0]:,} tokens", *size, keeps_layout=False)
    return sorted(found.values(), key=lambda batch: (batch.row_length, batch.rows))


def _together(
    batch: _Batch, model: LlamaConfig, stage: Any, gpu: Hardware, n_gpus: int
) -> StageFit:  # fmt: skip
    loop: LoopConfig = stage.loop
    wish = Wish(model, gpu, n_gpus, batch.row_length, batch.rows * batch.row_length)
    if batch.keeps_layout and not loop.layout.only_replicas:
        layout = loop.layout.of(n_gpus)
        wish = replace(
            wish, tp=layout.tp, cp=layout.cp, pp=layout.pp, dp=layout.dp,
            rows=batch.rows // layout.dp,
            schedule=layout.schedule if layout.pp > 1 else None, recompute=loop.recompute,
        )  # fmt: skip
    best = search(wish).best
    how = f"{describe(best)}; step {best.times.total:.2f} s"
    return StageFit(batch.name, best.memory.total / GIB, best.limit / GIB, best.fits, how)
