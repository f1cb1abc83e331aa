import weakref
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from puna.core.errors import UsageError
from puna.formats.weights import build_model
from puna.model.config import LlamaConfig
from puna.model.llama import Llama

Build = Callable[..., Llama]


def shapes_of(model: Llama) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def rebuilt(
    config: LlamaConfig,
    shapes: dict[str, tuple[int, ...]],
    read: Callable[[str], Tensor],
    dtype: torch.dtype = torch.float32,
) -> Llama:
    return build_model(Llama, config, shapes, read, dtype=dtype, device="cpu", where="here")


def test_one_source_tensor_is_in_memory_at_a_time(tiny_llama: Build) -> None:
    model = tiny_llama()
    alive: list[weakref.ref[Tensor]] = []

    def read(name: str) -> Tensor:
        assert all(source() is None for source in alive)
        source = model.state_dict()[name].clone()
        alive.append(weakref.ref(source))
        return source

    rebuilt(model.config, shapes_of(model), read)
    assert len(alive) == len(model.state_dict())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_model_is_a_copy_in_the_data_type_asked_for(
    dtype: torch.dtype, tiny_llama: Build
) -> None:
    source = tiny_llama().state_dict()
    model = rebuilt(tiny_llama().config, shapes_of(tiny_llama()), source.__getitem__, dtype)
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad
        assert parameter.dtype == dtype
        assert torch.equal(parameter, source[name].to(dtype))
        assert parameter.data_ptr() != source[name].data_ptr()


def test_what_does_not_fit_is_named_before_anything_is_read(tiny_llama: Build) -> None:
    model = tiny_llama()
    whole = shapes_of(model)
    less = {name: shape for name, shape in whole.items() if "layers.1.mlp" not in name}
    cases = {
        r"^here: the tensor 'model.layers.1.mlp.gate_proj.weight' \(and 2 more\) is missing": less,
        r"^here: unexpected tensor 'model.layers.0.self_attn.q_proj.bias'": whole
        | {"model.layers.0.self_attn.q_proj.bias": (64,)},
        r"^here: the tensor 'model.norm.weight' has shape \(63,\), expected \(64,\)": whole
        | {"model.norm.weight": (63,)},
    }

    def read(name: str) -> Tensor:
        raise AssertionError(f"{name} was read")

    for message, shapes in cases.items():
        with pytest.raises(UsageError, match=message):
            rebuilt(model.config, shapes, read)


@pytest.mark.parametrize(
    "change", [{"n_layers": 2**40}, {"ffn_dim": 2**62}, {"vocab_size": 2**70}], ids=str
)
def test_hostile_sizes_are_refused_at_once(change: dict[str, int], tiny_llama: Build) -> None:
    model = tiny_llama()
    config = model.config.model_copy(update=change)
    with pytest.raises(UsageError, match=r"^here: the configuration asks for \d+ layers"):
        rebuilt(config, shapes_of(model), model.state_dict().__getitem__)
