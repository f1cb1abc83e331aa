"""Adapters on models whose weights are spread by rows: begun, saved and merged in pieces.

FSDP cuts a product's weight, its B and DoRA's lengths at the same outputs, so each process merges
its own rows; only A is needed whole.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from puna.core.errors import UsageError
from puna.formats.peft import adapter_tensors, write_adapter
from puna.model import Llama, LoraConfig
from puna.model.lora import draw_down, generator_of, lora_layers
from puna.model.merge import MergeReport, merged_rows, weight_error
from puna.model.nf4 import NF4Linear
from puna.parallel.gradients import local, spread_like, whole
from puna.parallel.layout import Layout
from puna.parallel.mesh import Mesh

_FOUR_BITS = (
    "weights in 4 bits are held whole by every process: leave out layout, or set lora.base to kept "
    "or bf16"
)
_OWN = (".lora_A", ".lora_B", ".magnitude")  # parameters that only an adapter has


def has_adapter(model: Llama) -> bool:
    """Whether some product has an adapter."""
    return any(True for _ in lora_layers(model))


def check_adapter(model: Llama, layout: Layout) -> None:
    """Raise `UsageError`, naming what to change, where ``layout`` cannot spread an adapter."""
    for name in ("tp", "pp"):
        size = getattr(layout, name)
        if has_adapter(model) and size > 1:
            raise UsageError(
                f"layout.{name} {size} does not divide adapters, dp_shard and cp do: set it to 1, "
                "or lora to null"
            )
    if any(isinstance(module, NF4Linear) for module in model.modules()):
        raise UsageError(_FOUR_BITS)


def check_base(lora: LoraConfig) -> None:
    """Raise `UsageError` where its base cannot be spread."""
    if lora.base == "nf4":
        raise UsageError(_FOUR_BITS)


def plain_name(parameter: str) -> str | None:
    """The name in a model's folder of a parameter; None for one of an adapter's own."""
    if parameter.endswith(_OWN):
        return None
    return parameter.replace(".base.weight", ".weight")


@torch.no_grad()
def start_adapter(model: Llama, seed: int, fill: Callable[[Tensor, Tensor], None]) -> None:
    """Set every adapter as `add_lora` would; ``fill`` sets a tensor from all of it."""
    for name, layer in lora_layers(model):
        inputs = layer.lora_A.shape[1]
        fill(layer.lora_A, draw_down(layer.config, inputs, generator_of(seed, name)))
        local(layer.lora_B).zero_()
        if layer.magnitude is not None:
            base: Any = layer.base.weight
            layer.base_square = whole(base.detach().float().square().sum(1))
            fill(layer.magnitude, layer.base_square.sqrt())


def save_spread_adapter(folder: Path, model: Llama, base_model: str, mesh: Mesh) -> None:
    """`puna.formats.peft.save_adapter` of a spread model; all call it, the first one writes."""
    tensors = adapter_tensors(model, whole)
    if mesh.is_first:
        write_adapter(folder, model, base_model, tensors)


@torch.no_grad()
def merged_weights(model: Llama, mesh: Mesh) -> tuple[dict[str, Tensor], MergeReport]:
    """Weights in fp32 with the adapter added, spread as before, by their names in a folder.

    The model stays as it is. All processes call it; the report is that of the whole.
    """
    names = ((plain_name(name), p.detach()) for name, p in model.named_parameters())
    found = {name: p.float() for name, p in names if name is not None}
    products, largest, squares = [], list[float](), list[float]()
    for name, layer in lora_layers(model):
        base: Any = layer.base.weight
        lengths = None if layer.magnitude is None else local(layer.magnitude)
        merged, most, sums = merged_rows(
            local(base).float(), whole(layer.lora_A), local(layer.lora_B), lengths, layer.scale,
            torch.float32,
        )  # fmt: skip
        found[f"{name}.weight"] = spread_like(merged, base)
        products.append(name)
        largest.append(most)
        squares += sums
    largest, total = list(mesh.largest(largest)), mesh.sum(squares)
    errors = [
        weight_error(name, largest[number], total[3 * number : 3 * number + 3])
        for number, name in enumerate(products)
    ]
    return found, MergeReport(tuple(errors), None, None)
