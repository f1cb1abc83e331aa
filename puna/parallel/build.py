"""Models made where they are spread: no process ever has more of one than its part.

The modules are made without memory, laid out, and then filled tensor by tensor. Fresh weights are
drawn as one process draws them: each process draws all, one after the other, and keeps its part.
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from puna.core.devices import default_device
from puna.model import Llama, LlamaConfig, LoraConfig, add_lora
from puna.model.llama import fresh_weights
from puna.parallel.adapters import check_base, plain_name, start_adapter
from puna.parallel.gradients import local, part_of
from puna.parallel.layout import Layout
from puna.parallel.parallelize import Parallel, parallelize


def fresh_spread(config: LlamaConfig, layout: Layout, seed: int) -> Llama:
    """A model with fresh weights, laid out; all processes call it.

    The weights are those of `Llama.init_weights`, bit for bit. Beside its part a process has one
    whole tensor at a time.
    """
    model, parallel = empty_spread(config, layout)
    held = held_by_name(model, parallel)
    shapes = {name: tuple(tensor.shape) for name, tensor in whole_weights(config).items()}
    for name, drawn in fresh_weights(shapes, config.n_layers, seed):
        for tensor in held.get(name, ()):
            fill(tensor, drawn)
    return model


def empty_spread(
    config: LlamaConfig,
    layout: Layout,
    *,
    dtype: torch.dtype = torch.float32,
    lora: LoraConfig | None = None,
) -> tuple[Llama, Parallel]:
    """A model laid out, its weights not set; with ``lora`` its adapter's are not either."""
    if lora is not None:
        check_base(lora)
    with torch.device("meta"):
        model = Llama(config).to(dtype)
        if lora is not None:
            add_lora(model, lora)
    parallel = parallelize(model, layout)
    model.to_empty(device=default_device())
    return model, parallel


def held_by_name(model: Llama, parallel: Parallel) -> dict[str, list[Tensor]]:
    """What this process holds of the model's own weights, by their names in a folder.

    Two copies of a tied embedding have one name.
    """
    found: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        plain = plain_name(parallel.name_of(name))
        if plain is not None:
            found.setdefault(plain, []).append(parameter.detach())
    return found


def begin_adapter(model: Llama, seed: int) -> None:
    """Set the adapter of a spread model whose own weights are there, as `add_lora` would."""
    start_adapter(model, seed, fill)


@torch.no_grad()
def fill(tensor: Tensor, whole: Tensor) -> None:
    """Set what this process holds of ``tensor`` from all of it."""
    local(tensor).copy_(part_of(whole, tensor))


def whole_weights(config: LlamaConfig) -> Mapping[str, Tensor]:
    """The weights of the whole model by name, without their numbers."""
    with torch.device("meta"):
        return dict(Llama(config).named_parameters())
